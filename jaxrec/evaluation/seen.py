"""Seen items: the items that are no candidates of a case."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from jaxrec.errors import DataError


class SeenItems(NamedTuple):
    """Items to remove from each row's candidates, as CSR: row e removes ``items[offsets[e]:offsets[e + 1]]``.

    Attributes:
      offsets: int64[E+1].
      items: int32[...], ids 1..V; repeats are harmless.
    """

    offsets: Int[np.ndarray, " E1"]
    items: Int[np.ndarray, " S"]

    def select(self, rows: Int[np.ndarray, " R"]) -> SeenItems:
        """The same for some rows, in the given order."""
        counts = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        return SeenItems(offsets, self.items[ranges(self.offsets[:-1][rows], counts)])

    def row_numbers(self) -> Int[np.ndarray, " S"]:
        """int64: the row of each entry of ``items``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def ranges(starts: Integer[np.ndarray, " E"], counts: Integer[np.ndarray, " E"]) -> Int[np.ndarray, " N"]:
    """``concatenate([arange(s, s + n) for s, n in zip(starts, counts)])`` without a Python loop: int64."""
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.repeat(np.asarray(starts, np.int64) - before, counts) + np.arange(total, dtype=np.int64)


def seen_items(cases: Any, items: Int[np.ndarray, " N"]) -> SeenItems:
    """Everything in the history of each case, its targets too where they are in it.

    Args:
      cases: `jaxrec.data.splits.EvaluationCases` of E cases.
      items: int32[N], the log that the history bounds point into.
    """
    counts = np.asarray(cases.history_stops) - np.asarray(cases.history_starts)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    return SeenItems(offsets, np.asarray(items[ranges(cases.history_starts, counts)], np.int32))


def repeated_targets(
    seen: SeenItems, targets: Int[np.ndarray, " T"], target_offsets: Int[np.ndarray, " E1"]
) -> Bool[np.ndarray, " T"]:
    """bool[T], which targets are among the seen items of their case.

    Args:
      seen: items of E cases.
      targets: int32[T]; case e has ``targets[target_offsets[e]:target_offsets[e + 1]]``.
      target_offsets: int64[E + 1].
    """
    sizes = np.diff(target_offsets)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    per_target = seen if len(targets) == len(sizes) and (sizes == 1).all() else seen.select(rows)
    owners = per_target.row_numbers()
    repeated = np.zeros(len(targets), bool)
    repeated[owners[per_target.items == np.asarray(targets)[owners]]] = True
    return repeated


def as_seen(seen: Any, n_rows: int, n_items: int) -> SeenItems:
    """Check ``seen`` and give it as CSR: from `SeenItems`, padded int[E, S] with 0 = none, or None = nothing seen."""
    if seen is None:
        return SeenItems(np.zeros(n_rows + 1, np.int64), np.zeros(0, np.int32))
    if not isinstance(seen, SeenItems):
        padded = np.asarray(seen)
        if padded.ndim != 2:
            raise DataError(
                f"seen must be SeenItems or a padded integer array [rows, S] with 0 = none, got shape "
                f"{padded.shape}"
            )
        counts = (padded != 0).sum(1)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        seen = SeenItems(offsets, padded[padded != 0].astype(np.int32))
    if len(seen.offsets) != n_rows + 1:
        raise DataError(
            f"seen must have one list for each of the {n_rows} rows, got {len(seen.offsets) - 1} lists"
        )
    if len(seen.items) and (seen.items.min() < 1 or seen.items.max() > n_items):
        raise DataError(
            f"seen must hold item ids from 1 to {n_items}, got {int(seen.items.min())} to "
            f"{int(seen.items.max())}"
        )
    return seen
