"""`DataUsage`: the share of a log that training and evaluation use, and the reasons for what they leave out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxrec.data.batches import BatchConfig
from jaxrec.data.sampler import training_sequences
from jaxrec.data.splits import EvaluationCases, Split

#: Share of targets that are repeats from which keeping seen items is advised.
COMMON_REPEATS = 0.05

#: Fewest test cases that are not worth a warning.
FEW_CASES = 100


@dataclasses.dataclass(frozen=True)
class DataUsage:
    """Numbers of interactions, targets and cases that a split and its batches use.

    Attributes:
      users: users of the dataset.
      interactions: interactions of the dataset.
      training_interactions: in the training part of users with at least two of them, as input or target.
      single_interactions: in the training part of users with only one, who have neither input nor target.
      held_out_interactions: outside the training part.
      targets: training interactions that could be a target: all but the first of each user, or all for a task that makes
        targets of its own out of whole sequences.
      targets_per_epoch: of them, those that an epoch trains on.
      targets_beyond_length: of them, those that no epoch reaches, since they are older than the last
        ``batches.max_length``.
      users_beyond_length: training users with more inputs than ``batches.max_length``.
      max_length: longest history that the model sees.
      valid_cases: histories that are evaluated in validation.
      test_cases: the same for the test.
      test_users: distinct users among them.
      test_histories_cut: share of test histories longer than ``batches.max_length``.
      test_repeats: share of test targets that occur in their own history.
      warnings: sentences about the data that change how results are to be read.
      whole_sequences: whether the task makes targets of its own, so that users with one interaction train, too.
    """

    users: int
    interactions: int
    training_interactions: int
    single_interactions: int
    held_out_interactions: int
    targets: int
    targets_per_epoch: int
    targets_beyond_length: int
    users_beyond_length: int
    max_length: int
    valid_cases: int
    test_cases: int
    test_users: int
    test_histories_cut: float
    test_repeats: float
    warnings: tuple[str, ...] = ()
    whole_sequences: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings)}

    def lines(self) -> list[str]:
        """Return sentences for people: numbers first, then advice and warnings."""
        targets = "positions" if self.whole_sequences else "targets"
        lines = [
            f"training uses {self.targets_per_epoch:,} of {self.targets:,} {targets} per epoch "
            f"({_percent(self.targets_per_epoch, self.targets)}), from {self.training_interactions:,} of "
            f"{self.interactions:,} interactions",
            f"validation has {self.valid_cases:,} cases, the test {self.test_cases:,} of {self.test_users:,} users "
            f"({_percent(self.test_users, self.users)} of all)",
        ]
        if self.targets_beyond_length:
            lines.append(
                f"{self.targets_beyond_length:,} {targets} ({_percent(self.targets_beyond_length, self.targets)}) of "
                f"{self.users_beyond_length:,} users are older than the last {self.max_length} interactions and never "
                "trained on: --batches.long-histories windows uses them, or a longer --batches.max-length"
            )
        if self.single_interactions:
            lines.append(
                f"users with a single training interaction, which is neither input nor target: {self.single_interactions:,}"
            )
        return lines + [f"warning: {warning}" for warning in self.warnings]


def data_usage(
    split: Split, batches: BatchConfig, *, remove_seen: bool = True, whole_sequences: bool = False
) -> DataUsage:
    """Count what training and evaluation use of a split.

    Args:
      split: of the dataset.
      batches: how training cuts the histories.
      remove_seen: whether the evaluation removes seen items from the candidates.
      whole_sequences: whether the task reads the newest training interaction, too, and makes targets of its own
        (`jaxrec.tasks.base.TaskConfig`).
    """
    dataset = split.dataset
    lengths = np.asarray(split.train_stops - split.train_starts)
    # Such a task has an input in the place of the last target.
    stops = split.train_stops + int(whole_sequences)
    targets = np.maximum(stops - split.train_starts - 1, 0)
    sequences = training_sequences(split.train_starts, stops, batches.max_length, batches.long_histories)
    if batches.mode == "prefix":
        per_sequence = batches.prefixes_per_sequence
        drawn = np.minimum(targets, per_sequence) if per_sequence else targets
        if batches.prefix_targets == "all":
            # Prefixes of 1, 2, ... interactions, but no longer than L, each as likely as the others.
            short = np.minimum(targets, batches.max_length)
            in_all = short * (short + 1) // 2 + (targets - short) * batches.max_length
            drawn = drawn * in_all / np.maximum(targets, 1)
        per_epoch = round(float(drawn.sum()))
        reached = int(targets.sum())
    else:
        reached = int(sequences.lengths.sum())
        per_epoch = len(sequences.lengths) if batches.targets == "last" else reached
    test = split.test
    history = test.history_stops - test.history_starts
    repeated = test.repeated(dataset.items)
    usage = DataUsage(
        users=dataset.n_users,
        interactions=dataset.n_interactions,
        training_interactions=int(lengths[targets > 0].sum()),
        single_interactions=int(np.count_nonzero((lengths == 1) & (targets == 0))),
        held_out_interactions=int(dataset.n_interactions - lengths.sum()),
        targets=int(targets.sum()),
        targets_per_epoch=per_epoch,
        targets_beyond_length=int(targets.sum()) - reached,
        users_beyond_length=int(np.count_nonzero(targets > batches.max_length)),
        max_length=batches.max_length,
        valid_cases=len(split.valid),
        test_cases=len(test),
        test_users=len(np.unique(test.users)),
        test_histories_cut=float((history > batches.max_length).mean()) if len(test) else 0.0,
        test_repeats=float(repeated.mean()) if len(repeated) else 0.0,
        whole_sequences=whole_sequences,
    )
    return dataclasses.replace(usage, warnings=tuple(_warnings(split, batches, usage, remove_seen)))


def _warnings(split: Split, batches: BatchConfig, usage: DataUsage, remove_seen: bool) -> list[str]:
    warnings = [str(warning) for warning in split.dataset.meta.get("warnings", ())]
    if remove_seen and usage.test_repeats >= COMMON_REPEATS:
        warnings.append(repeat_advice(usage.test_repeats))
    if usage.test_cases < FEW_CASES:
        warnings.append(
            f"the test has only {usage.test_cases} cases: one of them alone moves HR by "
            f"{1 / max(usage.test_cases, 1):.3f}, so differences between models are mostly chance"
        )
    candidates = _candidates_left(split, remove_seen)
    if usage.test_cases and candidates <= 20:
        warnings.append(
            f"a test case has {candidates:.0f} candidates on average, so HR@10 is "
            f"{min(1.0, 10 / max(candidates, 1)):.2f} even for random scores"
        )
    warnings += split.warnings
    if batches.mode == "prefix" and batches.position_origin != "end":
        warnings.append(
            "--batches.mode prefix gives each target positions relative to itself only with "
            "--batches.position-origin end; with start they count from the oldest interaction, as in packed mode"
        )
    return warnings


def repeat_advice(share: float) -> str:
    """Return the sentence about repeat consumption, for a share of targets that are in their own history."""
    return (
        f"{share:.1%} of the test targets are in their own history (repeat consumption), and lists without seen items can "
        "never hold them: --evaluation.no-remove-seen keeps seen items among the candidates"
    )


def _candidates_left(split: Split, remove_seen: bool) -> float:
    """Mean number of candidates of a test case."""
    if not remove_seen:
        return float(split.dataset.n_items)
    return split.dataset.n_items - _mean_distinct(split.test, split.dataset.items)


def _mean_distinct(cases: EvaluationCases, items: np.ndarray) -> float:
    """Mean number of distinct items of some hundred histories."""
    sample = np.linspace(0, len(cases) - 1, min(len(cases), 200)).astype(int)
    sizes = [len(np.unique(items[cases.history_starts[e] : cases.history_stops[e]])) for e in sample]
    return float(np.mean(sizes)) if sizes else 0.0


def _percent(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else "none"
