"""Seen items: the items that are no candidates of a case."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from jaxrec.data.stretches import blocks, held, ranges
from jaxrec.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class SeenItems:
    """Items to remove from each row's candidates, as CSR: row e removes ``items[offsets[e]:offsets[e + 1]]``.

    Attributes:
      offsets: int64[E+1].
      items: int32[...], ids 1..V; repeats are harmless.
    """

    offsets: Int[np.ndarray, " E1"]
    items: Int[np.ndarray, " S"]

    def __len__(self) -> int:
        """E."""
        return len(self.offsets) - 1

    def select(self, rows: Int[np.ndarray, " R"]) -> SeenItems:
        """The same for some rows, in the given order."""
        counts = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        return SeenItems(offsets, self.items[ranges(self.offsets[:-1][rows], counts)])

    def row_numbers(self) -> Int[np.ndarray, " S"]:
        """int64: the row of each entry of ``items``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def distinct(self, n_items: int) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
        """Rows and items, int64 each, that name every excluded item of a row at least once, in the order of rows.

        Histories that are longer than the catalogue are not laid out: no more than E * (V + 1) pairs come back.
        """
        if int(self.offsets[-1]) <= len(self) * (n_items + 1):
            return self.row_numbers(), self.items.astype(np.int64)
        marks = np.zeros((len(self), n_items + 1), bool)
        for row in range(len(self)):
            marks[row, self._row(row)] = True
        rows, items = np.nonzero(marks)
        return rows, items

    def _row(self, row: int) -> Int[np.ndarray, " S"]:
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def holds(self, items: Integer[np.ndarray, " E"]) -> Bool[np.ndarray, " E"]:
        """bool[E], whether one item for each row is among those of the row."""
        owners, found = self.row_numbers(), np.zeros(len(items), bool)
        found[owners[self.items == np.asarray(items)[owners]]] = True
        return found

    def bounds(self) -> tuple[int, int] | None:
        """The lowest and the highest item, or None where there is none."""
        return (int(self.items.min()), int(self.items.max())) if len(self.items) else None


class SeenHistories(SeenItems):
    """Whole histories to remove, read from the log where they are needed.

    Cases with successive targets of a user repeat the history of that user: laid out, they would take the square of it.

    Args:
      log: int32[N].
      starts: int64[E]; row e removes ``log[starts[e]:stops[e]]``.
      stops: int64[E].
    """

    _log: np.ndarray
    _starts: np.ndarray
    _stops: np.ndarray

    def __init__(
        self,
        log: Int[np.ndarray, " N"],
        starts: Integer[np.ndarray, " E"],
        stops: Integer[np.ndarray, " E"],
    ):
        # The base class is frozen.
        object.__setattr__(self, "_log", log)
        object.__setattr__(self, "_starts", np.asarray(starts, np.int64))
        object.__setattr__(self, "_stops", np.asarray(stops, np.int64))

    def __len__(self) -> int:
        """E."""
        return len(self._starts)

    @functools.cached_property
    def offsets(self) -> Int[np.ndarray, " E1"]:  # type: ignore[override]
        """int64[E+1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self._stops - self._starts)])

    @functools.cached_property
    def items(self) -> Int[np.ndarray, " S"]:  # type: ignore[override]
        """int32[...], all histories, laid out."""
        return np.asarray(self._log[ranges(self._starts, self._stops - self._starts)], np.int32)

    def select(self, rows: Int[np.ndarray, " R"]) -> SeenHistories:
        """The same for some rows, in the given order."""
        return SeenHistories(self._log, self._starts[rows], self._stops[rows])

    def _row(self, row: int) -> Int[np.ndarray, " S"]:
        return np.asarray(self._log[self._starts[row] : self._stops[row]])

    def holds(self, items: Integer[np.ndarray, " E"]) -> Bool[np.ndarray, " E"]:
        """See `SeenItems.holds`; some histories are laid out at a time, and long ones not at all."""
        return held(self._log, self._starts, self._stops, np.asarray(items))

    def bounds(self) -> tuple[int, int] | None:
        """See `SeenItems.bounds`; some histories are laid out at a time."""
        parts = (
            SeenHistories(self._log, self._starts[block], self._stops[block])
            for block in blocks(self._stops - self._starts)
        )
        found = [pair for part in parts if (pair := SeenItems.bounds(part)) is not None]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def seen_items(cases: Any, items: Int[np.ndarray, " N"]) -> SeenItems:
    """Everything in the history of each case, its targets too where they are in it.

    Args:
      cases: `jaxrec.data.splits.EvaluationCases` of E cases.
      items: int32[N], the log that the history bounds point into.
    """
    return SeenHistories(items, cases.history_starts, cases.history_stops)


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
    one_each = len(targets) == len(sizes) and (sizes == 1).all()
    return (seen if one_each else seen.select(rows)).holds(targets)


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
    if len(seen) != n_rows:
        raise DataError(f"seen must have one list for each of the {n_rows} rows, got {len(seen)} lists")
    found = seen.bounds()
    if found is not None and (found[0] < 1 or found[1] > n_items):
        raise DataError(f"seen must hold item ids from 1 to {n_items}, got {found[0]} to {found[1]}")
    return seen
