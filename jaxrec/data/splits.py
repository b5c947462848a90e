"""Which interactions train the model and which it is asked for: leave-one-out, leave-last-n and the global
temporal split.

Every part is a stretch of the dataset's log, so a split costs a few integers a user and copies nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError

#: Former names of fields, as they occur in the configuration of an older run.
RENAMED_FIELDS = {"split.protocol": "split.strategy"}


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How the log is split.

    Attributes:
      strategy: "leave-one-out": of each user with at least three interactions the last is the test target,
        the one before it the validation target; "leave-last-n": the same with n targets each; "temporal": one
        moment for all users separates training from validation, and a later one validation from test.
      n: leave-last-n: targets a user in validation and again in test.
      valid_quantile, test_quantile: temporal: the cuts, as quantiles of the times of all interactions.
      valid_time, test_time: temporal: the cuts in seconds since 1970, in place of the quantiles.
      target: temporal: of a user's interactions in a period predict the "first" (from the history before the
        period), the "last" (from everything before it), or "all" (as one set, from the history before the
        period).
      holdout_users: temporal: users with an interaction at or after the test cut are removed from training
        altogether; their last interaction is the test target and the one before it, if at or after the cut,
        the validation target (the protocol of AIRI's Scalable-SASRec). Needs target="last"; the validation
        cut is not used.
      drop_unseen_targets: leave out targets that no training interaction has (they are counted either way).
      min_length: users with fewer interactions in all have no evaluation case; their training part stays.
    """

    strategy: Literal["leave-one-out", "leave-last-n", "temporal"] = "leave-one-out"
    n: int = 1
    valid_quantile: float = 0.9
    test_quantile: float = 0.95
    valid_time: int | None = None
    test_time: int | None = None
    target: Literal["first", "last", "all"] = "first"
    holdout_users: bool = False
    drop_unseen_targets: bool = False
    min_length: int = 0

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("strategy", self.strategy, ("leave-one-out", "leave-last-n", "temporal")),
            ("target", self.target, ("first", "last", "all")),
        ):
            if value not in allowed:
                raise ConfigError(f"split.{field} must be one of {', '.join(allowed)}; got {value!r}")
        if self.n < 1 or (self.n > 1 and self.strategy != "leave-last-n"):
            raise ConfigError(
                f"split.n must be at least 1, and 1 unless strategy='leave-last-n'; got n={self.n} with "
                f"strategy={self.strategy!r}"
            )
        if not 0.0 < self.valid_quantile <= self.test_quantile < 1.0:
            raise ConfigError(
                "split.valid_quantile and split.test_quantile must satisfy 0 < valid <= test < 1, got "
                f"{self.valid_quantile} and {self.test_quantile}"
            )
        if self.valid_time is not None and self.test_time is not None and self.valid_time > self.test_time:
            raise ConfigError(
                f"split.valid_time must not be after split.test_time, got {self.valid_time} and "
                f"{self.test_time}"
            )
        if self.min_length < 0:
            raise ConfigError(f"split.min_length must be at least 0, got {self.min_length}")
        if self.holdout_users and (self.strategy != "temporal" or self.target != "last"):
            raise ConfigError(
                "split.holdout_users needs strategy='temporal' and target='last', got "
                f"strategy={self.strategy!r} and target={self.target!r}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationCases:
    """E questions: after this history, which items come?

    Attributes:
      users: int32[E].
      history_starts, history_stops: int64[E]; the history is ``dataset.items[start:stop]``, never empty.
      targets: int32[T]; case e is asked for ``targets[target_offsets[e]:target_offsets[e + 1]]``.
      target_offsets: int64[E + 1]; every case has a target.
    """

    users: np.ndarray
    history_starts: np.ndarray
    history_stops: np.ndarray
    targets: np.ndarray
    target_offsets: np.ndarray

    def __len__(self) -> int:
        """E."""
        return len(self.users)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A dataset's training part and evaluation cases.

    Attributes:
      dataset: what was split.
      strategy: name of the strategy.
      options: the whole `SplitConfig` as a dict; for a temporal split also the cuts that were used,
        ``valid_cut`` and ``test_cut``, in seconds.
      train_starts, train_stops: int64[U]; ``dataset.items[start:stop]``, a prefix of the user's interactions,
        trains.
      valid, test: evaluation cases.
      counts: what became of users, interactions and targets.
    """

    dataset: SequenceDataset
    strategy: str
    options: Mapping[str, Any]
    train_starts: np.ndarray
    train_stops: np.ndarray
    valid: EvaluationCases
    test: EvaluationCases
    counts: Mapping[str, int]

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """int64[V + 1], training interactions of each item (entry 0 is the padding item's 0)."""
        return _count_items(self.dataset, self.train_starts, self.train_stops)

    def cases(self, split: str) -> EvaluationCases:
        """The cases of "valid" or "test"."""
        if split not in ("valid", "test"):
            raise ConfigError(f"split must be valid or test, got {split!r}")
        return self.valid if split == "valid" else self.test


class _Parts(NamedTuple):
    """Stretches of each user's log, all int64[U]; a user without a case has empty targets."""

    train_stops: np.ndarray
    valid_history_stops: np.ndarray
    valid_targets: tuple[np.ndarray, np.ndarray]
    test_history_stops: np.ndarray
    test_targets: tuple[np.ndarray, np.ndarray]


def split_dataset(dataset: SequenceDataset, config: SplitConfig | None = None) -> Split:
    """Split a dataset.

    Raises:
      DataError: a temporal split without timestamps, or a split that leaves nothing to train on.
    """
    config = config or SplitConfig()
    options: dict[str, Any] = dataclasses.asdict(config)
    starts, stops = np.asarray(dataset.offsets[:-1]), np.asarray(dataset.offsets[1:])
    if config.strategy == "temporal":
        valid_cut, test_cut = _cuts(dataset, config)
        options |= {"valid_cut": valid_cut, "test_cut": test_cut}
        valid_begin, test_begin = (_first_at_or_after(dataset, cut) for cut in (valid_cut, test_cut))
        parts = _temporal(starts, stops, valid_begin, test_begin, config)
        too_short = stops - starts < config.min_length
    else:
        parts = _leave_last(starts, stops, config.n)
        too_short = stops - starts < max(config.min_length, 2 * config.n + 1)
        parts = parts._replace(
            train_stops=np.where(stops - starts < 2 * config.n + 1, stops, parts.train_stops)
        )
    if not np.any(parts.train_stops > starts):
        raise DataError(
            f"the {config.strategy} split leaves no training interaction of {dataset.n_interactions}: "
            "choose later cuts or hold out less"
        )
    item_counts = _count_items(dataset, starts, parts.train_stops)
    counts = {
        "users": dataset.n_users,
        "training_users": int(np.count_nonzero(parts.train_stops - starts >= 2)),
        "training_interactions": int((parts.train_stops - starts).sum()),
        "users_too_short": int(too_short.sum()),
        "items_unseen_in_training": int(np.count_nonzero(item_counts[1:] == 0)),
    }
    cases = []
    for part, history_stops, targets in (
        ("valid", parts.valid_history_stops, parts.valid_targets),
        ("test", parts.test_history_stops, parts.test_targets),
    ):
        found, part_counts = _cases(
            dataset, starts, history_stops, *targets, too_short, item_counts, config.drop_unseen_targets
        )
        cases.append(found)
        counts |= {f"{part}_{name}": number for name, number in part_counts.items()}
    return Split(dataset, config.strategy, options, starts, parts.train_stops, cases[0], cases[1], counts)


def _leave_last(starts: np.ndarray, stops: np.ndarray, n: int) -> _Parts:
    test_begin, valid_begin = np.maximum(stops - n, starts), np.maximum(stops - 2 * n, starts)
    return _Parts(valid_begin, valid_begin, (valid_begin, test_begin), test_begin, (test_begin, stops))


def _cuts(dataset: SequenceDataset, config: SplitConfig) -> tuple[int, int]:
    if dataset.timestamps is None:
        raise DataError(
            f"a temporal split needs timestamps, but dataset {dataset.name!r} has none: "
            "name the time column when loading it, or use strategy='leave-one-out'"
        )

    times = dataset.timestamps

    def cut(time: int | None, quantile: float) -> int:
        # "higher" returns a time that occurs, so the cut is an integer and is reached by an interaction.
        return int(np.quantile(times, quantile, method="higher")) if time is None else time

    valid_cut, test_cut = (
        cut(config.valid_time, config.valid_quantile),
        cut(config.test_time, config.test_quantile),
    )
    if config.holdout_users:
        return test_cut, test_cut
    if valid_cut > test_cut:
        raise DataError(
            f"the validation cut ({valid_cut}) is after the test cut ({test_cut}): "
            "give valid_time and test_time both, or neither"
        )
    return valid_cut, test_cut


def _first_at_or_after(dataset: SequenceDataset, cut: int) -> np.ndarray:
    """int64[U], where in the log each user's interactions at or after ``cut`` begin."""
    assert dataset.timestamps is not None
    before = np.zeros(dataset.n_interactions + 1, np.int64)
    np.cumsum(dataset.timestamps < cut, out=before[1:])
    starts, stops = dataset.offsets[:-1], dataset.offsets[1:]
    return starts + before[stops] - before[starts]


def _temporal(
    starts: np.ndarray,
    stops: np.ndarray,
    valid_begin: np.ndarray,
    test_begin: np.ndarray,
    config: SplitConfig,
) -> _Parts:
    if config.holdout_users:
        held_out = test_begin < stops
        last = np.maximum(stops - 1, test_begin)
        # The validation target is the one before the last; without one at or after the cut the stretch is
        # empty.
        before_last = np.maximum(last - 1, test_begin)
        return _Parts(
            np.where(held_out, starts, stops),
            before_last,
            (before_last, last),
            last,
            (last, np.where(held_out, stops, last)),
        )

    def targets(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        if config.target == "first":
            return begin, (begin, np.minimum(begin + 1, end))
        if config.target == "last":
            last = np.maximum(end - 1, begin)
            return last, (last, end)
        return begin, (begin, end)

    return _Parts(valid_begin, *targets(valid_begin, test_begin), *targets(test_begin, stops))


def _count_items(dataset: SequenceDataset, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """int64[V + 1], interactions of each item inside the stretches, which do not overlap."""
    edges = np.zeros(dataset.n_interactions + 1, np.int8)
    nonempty = stops > starts
    # Neighbouring stretches may share an edge, and there +1 and -1 cancel.
    edges[starts[nonempty]] += 1
    edges[stops[nonempty]] -= 1
    inside = np.cumsum(edges[:-1], dtype=np.int8).astype(bool)
    return np.bincount(dataset.items[inside], minlength=dataset.n_items + 1)


def _cases(
    dataset: SequenceDataset,
    starts: np.ndarray,
    history_stops: np.ndarray,
    target_starts: np.ndarray,
    target_stops: np.ndarray,
    too_short: np.ndarray,
    item_counts: np.ndarray,
    drop_unseen: bool,
) -> tuple[EvaluationCases, dict[str, int]]:
    asked = (target_stops > target_starts) & ~too_short
    no_history = asked & (history_stops <= starts)
    users = np.flatnonzero(asked & ~no_history)
    numbers = target_stops[users] - target_starts[users]
    owner = np.repeat(np.arange(len(users)), numbers)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    targets = np.asarray(dataset.items)[target_starts[users][owner] + within]
    unseen = item_counts[targets] == 0
    counts = {
        "without_history": int(no_history.sum()),
        "targets_unseen": int(unseen.sum()),
        "targets_dropped": int(unseen.sum()) if drop_unseen else 0,
    }
    if drop_unseen:
        owner, targets = owner[~unseen], targets[~unseen]
        numbers = np.bincount(owner, minlength=len(users))
        users, numbers = users[numbers > 0], numbers[numbers > 0]
    offsets = np.zeros(len(users) + 1, np.int64)
    np.cumsum(numbers, out=offsets[1:])
    cases = EvaluationCases(
        users.astype(np.int32), starts[users], history_stops[users], targets.astype(np.int32), offsets
    )
    return cases, {"cases": len(users), "targets": len(targets), **counts}
