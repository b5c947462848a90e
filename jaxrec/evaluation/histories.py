"""Histories and ranking cases: the inputs of every ranker."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from jaxrec.data.splits import EvaluationCases
from jaxrec.data.stretches import ranges
from jaxrec.evaluation.seen import SeenItems, seen_items


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """E histories inside one log of interactions.

    Attributes:
      items: int32[N], the log; on the host or on the device.
      starts, stops: int64[E]; history e is ``items[starts[e]:stops[e]]``, oldest first.
      timestamps: int32[N], seconds since the first event, of the log or the user (or what is indexed like it), or None.
      users: int32[E], index of the user of each history, -1 = a new user; None = all are new.
    """

    items: Any
    starts: Integer[np.ndarray, " E"]
    stops: Integer[np.ndarray, " E"]
    timestamps: Any = None
    users: Integer[np.ndarray, " E"] | None = None

    def __len__(self) -> int:
        """E."""
        return len(self.starts)

    @property
    def lengths(self) -> Int[np.ndarray, " E"]:
        """int64[E], interactions of each history."""
        return np.asarray(self.stops, np.int64) - np.asarray(self.starts, np.int64)

    def select(self, rows: Int[np.ndarray, " R"]) -> Histories:
        """The histories of some rows, in the given order."""
        users = None if self.users is None else np.asarray(self.users)[rows]
        starts, stops = np.asarray(self.starts)[rows], np.asarray(self.stops)[rows]
        return dataclasses.replace(self, starts=starts, stops=stops, users=users)

    def last_items(self) -> Int[np.ndarray, " E"]:
        """int64[E], the newest item of each history, 0 where it is empty."""
        if not len(self.items):
            return np.zeros(len(self), np.int64)
        newest = np.asarray(self.items[np.maximum(self.stops - 1, 0)])
        return np.where(self.stops > self.starts, newest, 0).astype(np.int64)

    def compact(self, max_length: int) -> Histories:
        """The last ``max_length`` interactions of each history in a log of their own, one after the other."""
        lengths = np.minimum(self.lengths, max_length)
        index = ranges(np.asarray(self.stops) - lengths, lengths)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        times = None if self.timestamps is None else np.asarray(self.timestamps[index])
        return Histories(np.asarray(self.items)[index], offsets[:-1], offsets[1:], times, self.users)


@dataclasses.dataclass(frozen=True, eq=False)
class RankingCases:
    """Histories with the targets to rank after each.

    Attributes:
      histories: E histories.
      targets: int32[T]; case e has ``targets[target_offsets[e]:target_offsets[e + 1]]``.
      target_offsets: int64[E + 1].
      exclude: items that are no candidates of each case, or None.
    """

    histories: Histories
    targets: Int[np.ndarray, " T"]
    target_offsets: Int[np.ndarray, " E1"]
    exclude: SeenItems | None = None

    def __len__(self) -> int:
        """E."""
        return len(self.histories)

    @property
    def case_of_target(self) -> Int[np.ndarray, " T"]:
        """int64[T], the case of each target."""
        sizes = np.diff(self.target_offsets)
        return np.repeat(np.arange(len(sizes)), sizes)


def distinct_targets(cases: EvaluationCases) -> EvaluationCases:
    """The same cases, whose targets are sets: an item that a case holds out twice is one target, at its first place."""
    sizes = np.diff(cases.target_offsets)
    if not (sizes > 1).any():
        return cases
    owner, targets = np.repeat(np.arange(len(sizes)), sizes), np.asarray(cases.targets)
    first = np.sort(np.unique(np.stack([owner, targets]), axis=1, return_index=True)[1])
    if len(first) == len(targets):
        return cases
    counts = np.bincount(owner[first], minlength=len(sizes))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return dataclasses.replace(cases, targets=targets[first], target_offsets=offsets)


def histories_of(cases: EvaluationCases, items: Any, timestamps: Any = None) -> Histories:
    """Histories of the cases of a split; see `ranking_cases`."""
    return Histories(items, cases.history_starts, cases.history_stops, timestamps, cases.users)


def ranking_cases(
    cases: EvaluationCases, items: Any, timestamps: Any = None, remove_seen: bool = True
) -> RankingCases:
    """Ranking cases of a split, whose targets are sets (`distinct_targets`).

    Args:
      cases: of the split.
      items: int32[N], the log that the cases point into.
      timestamps: see `Histories`.
      remove_seen: exclude the items of the whole history of each case.
    """
    cases = distinct_targets(cases)
    histories = histories_of(cases, items, timestamps)
    targets = np.asarray(cases.targets, np.int32)
    offsets = np.asarray(cases.target_offsets, np.int64)
    exclude = seen_items(cases, np.asarray(items)) if remove_seen else None
    return RankingCases(histories, targets, offsets, exclude)
