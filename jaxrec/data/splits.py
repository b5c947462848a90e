"""Train, validation and test splits: leave-one-out, leave-last-n and the global temporal split.

The training part of each user is a stretch of the dataset's log, so a split costs a few integers per user and copies
nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from jaxrec.data.dataset import SequenceDataset, check_dataset
from jaxrec.data.stretches import held, ranges
from jaxrec.errors import ConfigError, DataError
from jaxrec.options import Idle, Range, idle_options, validate

#: Interactions that are worked on at a time.
BLOCK = 4_000_000

#: Former names of fields, as they occur in the configuration of an older run.
RENAMED_FIELDS = {"split.protocol": "split.strategy"}

#: Of options that only a temporal split reads.
_TEMPORAL = Idle("strategy", ("leave-one-out", "leave-last-n"))
#: Of those of its period of validation.
_BY_TIME = Idle("validation", ("last-item", "users"))

#: Agreement of a temporal target with a test of successive targets, over models and settings: rank correlations of NDCG@10,
#: Kendall's and Spearman's ("Time to Split", arXiv 2507.16289).
AGREEMENT = {"last": (0.83, 0.94), "random": (0.91, 0.98), "first": (0.62, 0.72), "all": (0.43, 0.53)}


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Split of the log into training, validation and test.

    Attributes:
      strategy: leave-one-out: of each user with at least three interactions the last is the test target, the one before it
        the validation target; leave-last-n: the same with n targets each; temporal: one moment for all users separates
        training from validation, and a later one validation from test.
      n: leave-last-n: targets per user in validation and again in test.
      valid_quantile: temporal: the validation cut, as a quantile of the times of all interactions.
      test_quantile: temporal: the test cut, likewise.
      end_quantile: temporal: end of the test period, likewise; 1 = the end of the log.
      valid_time: temporal: the validation cut in seconds since 1970, in place of its quantile.
      test_time: temporal: the test cut, likewise.
      end_time: temporal: end of the test period (exclusive), likewise.
      target: temporal: of a user's interactions in a period predict the last (from everything before it), a random one
        (likewise), successive: each one in turn (likewise), the first (from the history before the period), or all (as one
        set, from the history before the period).
      validation: temporal: targets of validation come from the period between the cuts (time), are the last interaction of
        each user before the test cut (last-item), or the last before the test cut of users who are left out of training
        (users). Only time uses the validation cut.
      valid_share: temporal, validation by users: share of the users who are left out of training.
      seed: temporal: of random targets and of the users for validation.
      holdout_users: temporal: users with an interaction at or after the test cut are removed from training altogether; their
        last interaction is the test target and the one before it, if at or after the cut, the validation target (the
        protocol of AIRI's Scalable-SASRec). Needs target last; the validation cut is not used.
      drop_unseen_targets: leave out targets that no training interaction has (they are counted either way).
      min_length: users with fewer interactions in all have no evaluation case; their training part stays.
    """

    strategy: Literal["leave-one-out", "leave-last-n", "temporal"] = "leave-one-out"
    n: Annotated[int, Range("[1, inf)")] = 1
    valid_quantile: Annotated[float, Range("(0, 1)"), _TEMPORAL, _BY_TIME] = 0.9
    test_quantile: Annotated[float, Range("(0, 1)"), _TEMPORAL] = 0.95
    end_quantile: Annotated[float, Range("(0, 1]"), _TEMPORAL] = 1.0
    valid_time: Annotated[int | None, _TEMPORAL, _BY_TIME] = None
    test_time: Annotated[int | None, _TEMPORAL] = None
    end_time: Annotated[int | None, _TEMPORAL] = None
    target: Annotated[Literal["last", "random", "successive", "first", "all"], _TEMPORAL] = "last"
    validation: Annotated[Literal["time", "last-item", "users"], _TEMPORAL] = "time"
    valid_share: Annotated[float, Range("(0, 1)"), _TEMPORAL, Idle("validation", ("time", "last-item"))] = 0.1
    seed: Annotated[int, Range("[0, 9223372036854775808)"), _TEMPORAL] = 0
    holdout_users: bool = False
    drop_unseen_targets: bool = False
    min_length: Annotated[int, Range("[0, inf)")] = 0

    def __post_init__(self) -> None:
        """Check each option, then those that depend on each other."""
        validate(self, "split")
        if self.n > 1 and self.strategy != "leave-last-n":
            raise ConfigError(
                f"--split.n above 1 needs --split.strategy leave-last-n; got n {self.n} with {self.strategy!r}"
            )
        valid, test, end = self._quantiles_read
        if not valid <= test < end:
            raise ConfigError(
                "--split.valid-quantile, --split.test-quantile and --split.end-quantile must satisfy valid <= test < end, "
                f"got {self.valid_quantile}, {self.test_quantile} and {self.end_quantile}"
            )
        times = [time for time in (self.valid_time, self.test_time, self.end_time) if time is not None]
        if times != sorted(times):
            raise ConfigError(
                "--split.valid-time, --split.test-time and --split.end-time must be in this order, got "
                f"{self.valid_time}, {self.test_time} and {self.end_time}"
            )
        if self.holdout_users and (self.strategy, self.target, self.validation) != (
            "temporal",
            "last",
            "time",
        ):
            raise ConfigError(
                "--split.holdout-users needs --split.strategy temporal, --split.target last and --split.validation time, "
                f"got {self.strategy!r}, {self.target!r} and {self.validation!r}"
            )

    @property
    def _quantiles_read(self) -> tuple[float, float, float]:
        """Quantiles of the validation cut, the test cut and the end; one that is not read agrees with the others."""
        valid, end = self.valid_quantile, self.end_quantile
        if self.holdout_users or self.validation != "time" or self.valid_time is not None:
            valid = 0.0
        if self.end_time is not None:
            end = 2.0
        return valid, valid if self.test_time is not None else self.test_quantile, end

    def through_time(self, test_quantiles: Sequence[float]) -> list[SplitConfig]:
        """Return one temporal split per test cut: cross-validation through time.

        The test period of each split ends where that of the next begins (the last one ends as ``end_quantile`` or
        ``end_time`` says), and the validation period is as long, in interactions, as in this configuration.

        Args:
          test_quantiles: the test cuts, increasing.

        Raises:
          ConfigError: the cuts do not increase, or leave no room for validation before the first.
        """
        cuts = [*test_quantiles, self.end_quantile]
        if len(cuts) < 2 or any(b <= a for a, b in itertools.pairwise(cuts)):
            raise ConfigError(
                f"the cuts must increase and stay below --split.end-quantile {self.end_quantile:g}, got "
                f"{' '.join(f'{cut:g}' for cut in test_quantiles) or 'none'}: give quantiles such as --cuts 0.7 0.8 0.9"
            )
        gap = self.test_quantile - self.valid_quantile
        if test_quantiles[0] <= gap:
            raise ConfigError(
                f"the first cut must leave training data before its validation period of {gap:g} (--split.test-quantile "
                f"less --split.valid-quantile), got {test_quantiles[0]:g}: give a later one"
            )
        return [
            dataclasses.replace(
                self, strategy="temporal", valid_quantile=start - gap, test_quantile=start, end_quantile=end,
                valid_time=None, test_time=None, end_time=self.end_time if start == cuts[-2] else None,
            )
            for start, end in itertools.pairwise(cuts)
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationCases:
    """E evaluation instances: a history and its held-out target items.

    Attributes:
      users: int32[E]; with successive targets a user has several cases.
      history_starts: int64[E]; the history is ``dataset.items[start:stop]``, never empty.
      history_stops: int64[E].
      targets: int32[T]; those of case e are ``targets[target_offsets[e]:target_offsets[e + 1]]``.
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

    def select(self, rows: np.ndarray) -> EvaluationCases:
        """Return the cases of some rows, int[R], in the given order."""
        sizes = np.diff(self.target_offsets)[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        places = ranges(self.target_offsets[rows], sizes)
        return EvaluationCases(
            self.users[rows],
            self.history_starts[rows],
            self.history_stops[rows],
            self.targets[places],
            offsets,
        )

    def repeated(self, items: np.ndarray) -> np.ndarray:
        """bool[T], whether each target occurs in its own history; ``items`` int32[N] is the log."""
        return held(items, self.history_starts, self.history_stops, self.targets, self.target_offsets)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Training part and evaluation cases of a dataset.

    Attributes:
      dataset: the dataset that was split.
      strategy: name of the strategy.
      options: the whole `SplitConfig` as a dict; for a temporal split also its cuts, ``valid_cut``, ``test_cut`` and
        ``end_cut`` (None = the end of the log), in seconds.
      train_starts: int64[U]; ``dataset.items[start:stop]``, a prefix of the user's interactions, trains.
      train_stops: int64[U].
      valid: evaluation cases of validation.
      test: evaluation cases of the test.
      counts: numbers of users, interactions, cases and targets. ``training_interactions`` are those of users with at least
        two, since a single one has neither input nor target.
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

    @property
    def training_mask(self) -> np.ndarray:
        """bool[N], whether each interaction of the log is in the training part."""
        return _inside(self.dataset.n_interactions, self.train_starts, self.train_stops)

    @property
    def description(self) -> str:
        """Strategy, targets and cuts in one phrase, for protocols and records."""
        options = self.options
        if self.strategy != "temporal":
            return self.strategy if self.strategy == "leave-one-out" else f"leave-last-{options['n']}"
        dates = [
            str(np.datetime64(int(options[cut]), "s").astype("datetime64[D]"))
            for cut in ("valid_cut", "test_cut")
        ]
        end = (
            ""
            if options["end_cut"] is None
            else f" to {np.datetime64(options['end_cut'], 's').astype('datetime64[D]')}"
        )
        if options["holdout_users"]:
            return f"temporal, test from {dates[1]}{end}, last target, users of the test period left out of training"
        validation = {
            "time": f"validation from {dates[0]}",
            "last-item": "validation by the last training item",
            "users": f"validation by {options['valid_share']:.0%} of the users",
        }[options["validation"]]
        targets = "all targets" if options["target"] == "all" else f"{options['target']} target"
        return f"temporal, test from {dates[1]}{end}, {targets}, {validation}"

    @property
    def agreement(self) -> str:
        """A sentence about targets "first" and "all", which order models otherwise than successive ones do; else ""."""
        target = self.options["target"]
        if self.strategy != "temporal" or target not in ("first", "all"):
            return ""
        own, last, drawn = (
            "{:.2f} and {:.2f}".format(*AGREEMENT[name]) for name in (target, "last", "random")
        )
        return (
            f"--split.target {target} orders models less as successive targets do than others: Kendall's and Spearman's "
            f"correlations of NDCG@10 are {own}, those of last {last}, those of random {drawn} (arXiv 2507.16289)"
        )

    @property
    def warnings(self) -> list[str]:
        """Sentences about the targets and about options that the strategy does not read."""
        names = {field.name for field in dataclasses.fields(SplitConfig)}
        config = SplitConfig(**{name: value for name, value in self.options.items() if name in names})
        return [
            *filter(None, [self.agreement]),
            *(idle.sentence for idle in idle_options(config, "split").values()),
        ]

    def check_cases(self) -> None:
        """Check that there is something to evaluate, in validation and in the test.

        Raises:
          DataError: there is not.
        """
        for name, cases in (("validation", self.valid), ("test", self.test)):
            if len(cases):
                continue
            need, advice = "an interaction before and one inside its period", "choose other cuts"
            if self.strategy != "temporal":
                need = f"at least {max(2 * self.options['n'] + 1, self.options['min_length'])} interactions"
                advice = "filter or hold out less, or choose another --split.strategy"
            part = "valid" if name == "validation" else name
            if dropped := self.counts.get(f"{part}_targets_dropped", 0):
                need = f"targets that occur in training (all {dropped:,} do not)"
                advice = "leave out --split.drop-unseen-targets, or hold out less"
            raise DataError(
                f"the split ({self.description}) has no {name} case: expected users with {need}, got none of "
                f"{self.dataset.n_users:,}; {advice}"
            )

    def cases(self, split: str) -> EvaluationCases:
        """Return the cases of "valid" or "test"."""
        if split not in ("valid", "test"):
            raise ConfigError(f"split must be valid or test, got {split!r}")
        return self.valid if split == "valid" else self.test


class _Candidates(NamedTuple):
    """Cases before filters, one per entry, all int64[n]; one without targets has an empty stretch."""

    users: np.ndarray
    history_stops: np.ndarray
    target_starts: np.ndarray
    target_stops: np.ndarray


class _Parts(NamedTuple):
    """Training part, int64[U], and the candidates of both evaluations."""

    train_stops: np.ndarray
    valid: _Candidates
    test: _Candidates


def split_dataset(dataset: SequenceDataset, config: SplitConfig | None = None) -> Split:
    """Split a dataset.

    >>> from jaxrec.data import load_dataset
    >>> split = split_dataset(load_dataset("movietweetings"))
    >>> len(split.test.users), split.test.targets[:3].tolist()
    (4333, [5, 12, 25])

    Args:
      dataset: to split.
      config: the strategy; leave-one-out by default.

    Raises:
      DataError: a temporal split without timestamps, a split that leaves nothing to train on, or a damaged dataset.
    """
    config = config or SplitConfig()
    check_dataset(dataset)
    dataset.check_ranges()
    options: dict[str, Any] = dataclasses.asdict(config)
    starts, stops = np.asarray(dataset.offsets[:-1]), np.asarray(dataset.offsets[1:])
    if config.strategy == "temporal":
        cuts = _cuts(dataset, config)
        options |= dict(zip(("valid_cut", "test_cut", "end_cut"), cuts, strict=True))
        begins = [stops if cut is None else _first_at_or_after(dataset, cut) for cut in cuts]
        parts = _temporal(starts, stops, begins, config)
        too_short = stops - starts < config.min_length
    else:
        parts = _leave_last(starts, stops, config.n)
        too_short = stops - starts < max(config.min_length, 2 * config.n + 1)
    if not np.any(parts.train_stops > starts):
        raise DataError(
            f"the {config.strategy} split leaves no training interaction of {dataset.n_interactions}: "
            "choose later cuts or hold out less"
        )
    item_counts = _count_items(dataset, starts, parts.train_stops)
    lengths = parts.train_stops - starts
    counts = {
        "users": dataset.n_users,
        "training_users": int(np.count_nonzero(lengths >= 2)),
        "training_interactions": int(lengths[lengths >= 2].sum()),
        "users_too_short": int(too_short.sum()),
        "items_unseen_in_training": int(np.count_nonzero(item_counts[1:] == 0)),
    }
    cases = []
    for name, candidates in (("valid", parts.valid), ("test", parts.test)):
        part, part_counts = _cases(
            dataset, starts, candidates, too_short, item_counts, config.drop_unseen_targets
        )
        cases.append(part)
        counts |= {f"{name}_{key}": number for key, number in part_counts.items()}
    split = Split(dataset, config.strategy, options, starts, parts.train_stops, cases[0], cases[1], counts)
    vars(split)["item_counts"] = item_counts  # else counted again, by reading the log
    return split


def _leave_last(starts: np.ndarray, stops: np.ndarray, n: int) -> _Parts:
    users = np.arange(len(starts))
    test_begin, valid_begin = np.maximum(stops - n, starts), np.maximum(stops - 2 * n, starts)
    return _Parts(
        np.where(stops - starts < 2 * n + 1, stops, valid_begin),
        _Candidates(users, valid_begin, valid_begin, test_begin),
        _Candidates(users, test_begin, test_begin, stops),
    )


def _cuts(dataset: SequenceDataset, config: SplitConfig) -> tuple[int, int, int | None]:
    if dataset.timestamps is None:
        raise DataError(
            f"a temporal split needs timestamps, but dataset {dataset.name!r} has none: name the time column when "
            "loading it (--data.time-column), or use --split.strategy leave-one-out"
        )

    times = dataset.timestamps

    def cut(time: int | None, quantile: float) -> int:
        return time_quantile(times, quantile) if time is None else time

    test_cut = cut(config.test_time, config.test_quantile)
    end_cut = None
    if config.end_time is not None or config.end_quantile < 1:
        end_cut = cut(config.end_time, config.end_quantile)
    if config.holdout_users or config.validation != "time":
        return test_cut, test_cut, end_cut
    valid_cut = cut(config.valid_time, config.valid_quantile)
    if valid_cut > test_cut:
        raise DataError(
            f"the validation cut ({valid_cut}) is after the test cut ({test_cut}): "
            "give --split.valid-time and --split.test-time both, or neither"
        )
    return valid_cut, test_cut, end_cut


def time_quantile(times: np.ndarray, quantile: float) -> int:
    """Quantile of int64[N] times that is itself one of them: ``np.quantile(times, quantile, method="higher")``.

    The value is bisected by counting some million times at a go, so that a memory-mapped log is never copied.
    """
    place = int(np.ceil((len(times) - 1) * quantile))
    low, high = int(times.min()), int(times.max())
    while low < high:
        middle = (low + high) // 2
        count = sum(
            int(np.count_nonzero(times[first : first + BLOCK] <= middle))
            for first in range(0, len(times), BLOCK)
        )
        low, high = (low, middle) if count > place else (middle + 1, high)
    return low


def _first_at_or_after(dataset: SequenceDataset, cut: int) -> np.ndarray:
    """int64[U], place in the log of the first interaction of each user at or after ``cut``."""
    times, offsets = dataset.timestamps, np.asarray(dataset.offsets)
    assert times is not None
    # Interactions before the cut ahead of each user, and ahead of the end of the log.
    before, total = np.zeros(len(offsets), np.int64), 0
    for first in range(0, len(times), BLOCK):
        sums = np.cumsum(times[first : first + BLOCK] < cut)
        inside = slice(*np.searchsorted(offsets, [first, first + len(sums)], side="right"))
        before[inside] = total + sums[offsets[inside] - first - 1]
        total += int(sums[-1])
    return offsets[:-1] + np.diff(before)


def _temporal(
    starts: np.ndarray, stops: np.ndarray, begins: Sequence[np.ndarray], config: SplitConfig
) -> _Parts:
    valid_begin, test_begin, end = begins
    end = np.maximum(end, test_begin)  # a period that ends before it begins is empty
    users = np.arange(len(starts))
    if config.holdout_users:
        held_out = test_begin < end
        last = np.maximum(end - 1, test_begin)
        # The validation target is the one before the last; without one at or after the cut the stretch is empty.
        before_last = np.maximum(last - 1, test_begin)
        return _Parts(
            np.where(test_begin < stops, starts, stops),
            _Candidates(users, before_last, before_last, last),
            _Candidates(users, last, last, np.where(held_out, end, last)),
        )
    test = _targets(test_begin, end, config, 1)
    if config.validation == "time":
        return _Parts(valid_begin, _targets(valid_begin, test_begin, config, 0), test)
    before_cut = np.maximum(test_begin - 1, starts)
    if config.validation == "last-item":
        # A user's only interaction before the cut trains: it could not be predicted from anything.
        single = test_begin - starts < 2
        return _Parts(
            np.where(single, test_begin, before_cut),
            _Candidates(users, before_cut, before_cut, np.where(single, before_cut, test_begin)),
            test,
        )
    draws = np.random.default_rng([config.seed, 2]).random(len(users))
    in_valid = draws < config.valid_share
    return _Parts(
        np.where(in_valid, starts, test_begin),
        _Candidates(users, before_cut, before_cut, np.where(in_valid, test_begin, before_cut)),
        test,
    )


def _targets(begin: np.ndarray, end: np.ndarray, config: SplitConfig, stream: int) -> _Candidates:
    """Targets of each user in the period ``[begin, end)`` of the log; ``stream`` separates the random draws."""
    users = np.arange(len(begin))
    if config.target == "first":
        return _Candidates(users, begin, begin, np.minimum(begin + 1, end))
    if config.target == "all":
        return _Candidates(users, begin, begin, end)
    if config.target == "successive":
        numbers = end - begin
        owner = np.repeat(users, numbers)
        place = ranges(begin, numbers)
        return _Candidates(owner, place, place, place + 1)
    if config.target == "random":
        draws = np.random.default_rng([config.seed, stream]).random(len(begin))
        place = begin + np.floor(draws * (end - begin)).astype(np.int64)
        return _Candidates(users, place, place, np.minimum(place + 1, end))
    last = np.maximum(end - 1, begin)
    return _Candidates(users, last, last, end)


def _inside(n_interactions: int, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """bool[N], whether each place of the log is inside one of the stretches, which do not overlap."""
    edges = np.zeros(n_interactions + 1, np.int8)
    nonempty = stops > starts
    # Neighbouring stretches may share an edge, and there +1 and -1 cancel.
    edges[starts[nonempty]] += 1
    edges[stops[nonempty]] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(bool)


def _count_items(dataset: SequenceDataset, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """int64[V + 1], interactions of each item inside the stretches, which do not overlap."""
    inside = _inside(dataset.n_interactions, starts, stops)
    counts = np.zeros(dataset.n_items + 1, np.int64)
    # Some million at a time, since counting takes 8 bytes for each.
    for first in range(0, len(inside), BLOCK):
        part = slice(first, first + BLOCK)
        counts += np.bincount(dataset.items[part][inside[part]], minlength=len(counts))
    return counts


def _cases(
    dataset: SequenceDataset,
    starts: np.ndarray,
    candidates: _Candidates,
    too_short: np.ndarray,
    item_counts: np.ndarray,
    drop_unseen: bool,
) -> tuple[EvaluationCases, dict[str, int]]:
    used = (candidates.target_stops > candidates.target_starts) & ~too_short[candidates.users]
    no_history = used & (candidates.history_stops <= starts[candidates.users])
    users, history_stops, target_starts, target_stops = (field[used & ~no_history] for field in candidates)
    numbers = target_stops - target_starts
    owner = np.repeat(np.arange(len(users)), numbers)
    targets = np.asarray(dataset.items)[ranges(target_starts, numbers)]
    unseen = item_counts[targets] == 0
    counts = {
        "without_history": int(no_history.sum()),
        "targets_unseen": int(unseen.sum()),
        "targets_dropped": int(unseen.sum()) if drop_unseen else 0,
    }
    if drop_unseen:
        owner, targets = owner[~unseen], targets[~unseen]
        numbers = np.bincount(owner, minlength=len(users))
        users, history_stops, numbers = users[numbers > 0], history_stops[numbers > 0], numbers[numbers > 0]
    offsets = np.zeros(len(users) + 1, np.int64)
    np.cumsum(numbers, out=offsets[1:])
    cases = EvaluationCases(
        users.astype(np.int32), starts[users], history_stops, targets.astype(np.int32), offsets
    )
    return cases, {"cases": len(users), "targets": len(targets), **counts}
