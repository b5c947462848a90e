"""Audit of a dataset: ties in time, repeats, unseen items and leaks, which make results incomparable."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.times import GIVEN, PER_SECOND
from jaxrec.data.splits import Split, split_dataset
from jaxrec.data.usage import COMMON_REPEATS, repeat_advice
from jaxrec.errors import ConfigError

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclasses.dataclass(frozen=True)
class Audit:
    """Findings of `audit`.

    Fields about time are None where the dataset has no timestamps; times are whole seconds, so where the source was finer,
    ties are counted that its order had settled.

    Attributes:
      name, fingerprint: of the dataset.
      users, items, interactions: U, V, N.
      density: N / (U V).
      length_quantiles, item_count_quantiles: of interactions per user and per item, at `QUANTILES`.
      mean_length: N / U.
      repeats: interactions whose user had the item before.
      users_with_repeats: users with any.
      duplicate_events: interactions equal to an earlier one in user, item and time.
      tied_interactions: interactions that share their time with another of the same user.
      users_with_ties: users with any.
      ambiguous_valid_targets, ambiguous_test_targets: leave-one-out targets that another order of the ties
        would change (the tie holds more than one item). Ties keep the order of the source file.
      leave_one_out_users: users with at least three interactions, who have such targets.
      users_too_short: users with fewer than three: never evaluated by leave-one-out.
      strategy: of the split that the next fields are about.
      items_unseen_in_training: items without a training interaction under that split.
      valid_targets_unseen, test_targets_unseen: targets that are such items.
      test_targets_repeated: test targets that occur in their own history: lists without seen items cannot hold them.
      warnings: sentences about how the data was read, and advice.
      leaking_targets: leave-one-out test targets that some other user's training interaction post-dates: the
        model has seen a future that it could not have known.
      later_training_share: mean over the leave-one-out test targets of the share of other users' training
        interactions that come after the target.
      first_time, last_time: seconds since 1970.
      time_unit: of the source's times: s, ms, us or ns, "date" or "datetime"; None where it is not known.
      time_assumed: how that was concluded from the numbers, if it was.
    """

    name: str
    fingerprint: str
    users: int
    items: int
    interactions: int
    density: float
    length_quantiles: tuple[int, ...]
    item_count_quantiles: tuple[int, ...]
    mean_length: float
    repeats: int
    users_with_repeats: int
    duplicate_events: int | None
    tied_interactions: int | None
    users_with_ties: int | None
    ambiguous_valid_targets: int | None
    ambiguous_test_targets: int | None
    leave_one_out_users: int
    users_too_short: int
    strategy: str
    items_unseen_in_training: int
    valid_targets_unseen: int
    test_targets_unseen: int
    leaking_targets: int | None
    later_training_share: float | None
    first_time: int | None
    last_time: int | None
    test_targets: int
    test_targets_repeated: int
    warnings: tuple[str, ...] = ()
    time_unit: str | None = None
    time_assumed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    @property
    def _reading_of_times(self) -> str:
        """Assumption about times that are numbers, in brackets; empty where there is none."""
        if not self.time_assumed:
            return ""
        return f" ({self.time_assumed}: {self.time_unit}; --data.time-unit states another)"

    def __str__(self) -> str:
        """Format as a table, with advice below."""

        def share(count: int, of: int) -> str:
            return f"{count:,} ({count / of:.1%})" if of else f"{count:,}"

        def spread(values: tuple[int, ...]) -> str:
            return "  ".join(f"{q:.0%} {v:,}" for q, v in zip(QUANTILES, values, strict=True))

        rows = [
            ("users, items, interactions", f"{self.users:,}  {self.items:,}  {self.interactions:,}"),
            ("density", f"{self.density:.3%}"),
            (
                "interactions per user",
                f"mean {self.mean_length:.1f}; quantiles {spread(self.length_quantiles)}",
            ),
            ("interactions per item", f"quantiles {spread(self.item_count_quantiles)}"),
            ("  MIQ-Attn's rule for its query window", f"{max(1, round(self.mean_length / 10))} (mean / 10)"),
            ("repeats (user had the item before)", share(self.repeats, self.interactions)),
            ("users with repeats", share(self.users_with_repeats, self.users)),
            ("users under 3 interactions", share(self.users_too_short, self.users)),
            (f"items unseen in training ({self.strategy})", share(self.items_unseen_in_training, self.items)),
            ("  validation targets unseen", f"{self.valid_targets_unseen:,}"),
            ("  test targets unseen", f"{self.test_targets_unseen:,}"),
            ("  test targets in their own history", share(self.test_targets_repeated, self.test_targets)),
        ]
        if self.first_time is None or self.last_time is None:
            rows.append(
                ("times", "none: ties, duplicates and leaks cannot be counted; the order is the source's")
            )
        else:
            days = np.array([self.first_time, self.last_time], "datetime64[s]").astype("datetime64[D]")
            evaluated = self.leave_one_out_users
            rows += [
                ("times", f"{days[0]} to {days[1]}{self._reading_of_times}"),
                ("duplicate events (user, item, time)", share(self.duplicate_events or 0, self.interactions)),
                ("interactions tied in time", share(self.tied_interactions or 0, self.interactions)),
                ("users with ties", share(self.users_with_ties or 0, self.users)),
                (
                    "leave-one-out validation targets that depend on tie-breaking",
                    share(self.ambiguous_valid_targets or 0, evaluated),
                ),
                (
                    "leave-one-out test targets that depend on tie-breaking",
                    share(self.ambiguous_test_targets or 0, evaluated),
                ),
                (
                    "leave-one-out test targets with later training data",
                    share(self.leaking_targets or 0, evaluated),
                ),
                ("  mean share of training data after the target", f"{self.later_training_share or 0.0:.1%}"),
            ]
        width = max(len(label) for label, _ in rows)
        head = f"Audit of {self.name} ({self.fingerprint[:12]})"
        table = [f"  {label:<{width}}  {value}" for label, value in rows]
        return "\n".join([head, *table, *(f"warning: {warning}" for warning in self.warnings)])


def audit(dataset: SequenceDataset, split: Split | None = None) -> Audit:
    """Count what could make results on ``dataset`` depend on chance, on file order or on the future.

    Args:
      dataset: to audit.
      split: whose unseen items and targets are counted; leave-one-out by default.

    Raises:
      ConfigError: the split is of another dataset.
    """
    if split is None:
        split = split_dataset(dataset)
    elif split.dataset.fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"split is of dataset {split.dataset.name!r}, not of {dataset.name!r}: "
            "split the dataset that is audited"
        )
    lengths = dataset.lengths
    users = np.repeat(np.arange(dataset.n_users), lengths)
    items = np.asarray(dataset.items)
    repeated = _repeats(users, items, dataset.n_items)
    item_counts = np.bincount(items, minlength=dataset.n_items + 1)[1:]
    repeated_targets = split.test.repeated(items)
    unit, assumed = (dataset.meta.get("time", {}).get(name) for name in ("unit", "assumed"))
    warnings = [str(warning) for warning in dataset.meta.get("warnings", ())]
    if len(repeated_targets) and repeated_targets.mean() >= COMMON_REPEATS:
        warnings.append(repeat_advice(float(repeated_targets.mean())))
    warnings += split.warnings
    return Audit(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        users=dataset.n_users,
        items=dataset.n_items,
        interactions=dataset.n_interactions,
        density=dataset.n_interactions / (dataset.n_users * dataset.n_items),
        length_quantiles=_quantiles(lengths),
        item_count_quantiles=_quantiles(item_counts),
        mean_length=dataset.n_interactions / dataset.n_users,
        repeats=int(repeated.sum()),
        users_with_repeats=len(np.unique(users[repeated])),
        leave_one_out_users=int(np.count_nonzero(lengths >= 3)),
        users_too_short=int(np.count_nonzero(lengths < 3)),
        strategy=split.strategy,
        items_unseen_in_training=split.counts["items_unseen_in_training"],
        valid_targets_unseen=split.counts["valid_targets_unseen"],
        test_targets_unseen=split.counts["test_targets_unseen"],
        test_targets=len(repeated_targets),
        test_targets_repeated=int(repeated_targets.sum()),
        warnings=tuple(warnings),
        time_unit=unit,
        time_assumed=assumed if unit in ("date", *PER_SECOND) and assumed != GIVEN else "",
        **_about_time(dataset, users, items),
    )


def _quantiles(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.quantile(values, QUANTILES, method="nearest"))


def _repeats(users: np.ndarray, items: np.ndarray, n_items: int) -> np.ndarray:
    """bool[N], whether the user had the item before."""
    repeated = np.ones(len(items), bool)
    repeated[np.unique(users * (n_items + 1) + items, return_index=True)[1]] = False
    return repeated


def _about_time(dataset: SequenceDataset, users: np.ndarray, items: np.ndarray) -> dict[str, Any]:
    names = (
        "duplicate_events", "tied_interactions", "users_with_ties", "ambiguous_valid_targets",
        "ambiguous_test_targets", "leaking_targets", "later_training_share", "first_time", "last_time",
    )  # fmt: skip
    if dataset.timestamps is None:
        return dict.fromkeys(names)
    times = np.asarray(dataset.timestamps)
    # A group is a run of one user's interactions at one time.
    new = np.ones(len(items), bool)
    new[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    group = np.cumsum(new) - 1
    begins = np.flatnonzero(new)
    sizes = np.diff(np.append(begins, len(items)))
    tied = sizes[group] > 1
    mixed = np.minimum.reduceat(items, begins) != np.maximum.reduceat(items, begins)
    duplicate = _repeats(group, items, dataset.n_items)
    evaluated = np.flatnonzero(dataset.lengths >= 3)
    last = dataset.offsets[1:][evaluated] - 1
    leaking, later = _leaks(dataset, users, times, evaluated, last)
    values = (
        int(duplicate.sum()),
        int(tied.sum()),
        len(np.unique(users[tied])),
        int(mixed[group[last - 1]].sum()),
        int(mixed[group[last]].sum()),
        leaking,
        later,
        int(times.min()),
        int(times.max()),
    )
    return dict(zip(names, values, strict=True))


def _leaks(
    dataset: SequenceDataset, users: np.ndarray, times: np.ndarray, evaluated: np.ndarray, last: np.ndarray
) -> tuple[int, float]:
    """Leave-one-out test targets that others' training data post-date, and how much of it."""
    if not len(evaluated):
        return 0, 0.0
    trains = np.ones(len(times), bool)
    trains[last] = trains[last - 1] = False
    # A user's own training interactions are never after the own target, so counting all of them counts the
    # others'.
    training_times = np.sort(times[trains])
    own = np.bincount(users[trains], minlength=dataset.n_users)[evaluated]
    after = len(training_times) - np.searchsorted(training_times, times[last], side="right")
    others = np.maximum(len(training_times) - own, 1)
    return int(np.count_nonzero(after)), float((after / others).mean())
