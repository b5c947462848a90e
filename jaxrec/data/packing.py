"""Packing: the assignment of sequences to the rows of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class PackedRows(NamedTuple):
    """Plan of R rows with up to S sequences each.

    Attributes:
      starts: int64[R, S], index into the log of a sequence's first input.
      lengths: int32[R, S], its number of inputs; 0 = unused, and unused slots come last.
      users: int32[R, S], index of its user.
    """

    starts: np.ndarray
    lengths: np.ndarray
    users: np.ndarray

    def select(self, index: Any) -> PackedRows:
        """Return the rows of a slice, or of an array of row numbers."""
        return PackedRows(self.starts[index], self.lengths[index], self.users[index])


class Sequences(NamedTuple):
    """Sequences to train on: ``lengths`` inputs from ``starts`` on; the item after each input is its target.

    Attributes:
      starts: int64[N], lengths: int32[N], users: int32[N].
    """

    starts: np.ndarray
    lengths: np.ndarray
    users: np.ndarray


def pad(sequences: Sequences) -> PackedRows:
    """Plan one sequence per row, in the given order."""
    return PackedRows(sequences.starts[:, None], sequences.lengths[:, None], sequences.users[:, None])


class Packing(NamedTuple):
    """Assignment of sequences to rows: row r holds ``members[offsets[r]:offsets[r+1]]``, in that order.

    Attributes:
      members: int[N], numbers of sequences.
      offsets: int64[R+1].
    """

    members: np.ndarray
    offsets: np.ndarray

    def select(self, index: np.ndarray) -> Packing:
        """Return the rows of an array of row numbers."""
        sizes = np.diff(self.offsets)[index]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        shift = np.repeat(self.offsets[index] - offsets[:-1], sizes)
        return Packing(self.members[np.arange(offsets[-1]) + shift], offsets)

    def rows(self, sequences: Sequences, first: int, stop: int, width: int) -> PackedRows:
        """Return the plan ``[stop - first, width]`` of consecutive rows."""
        offsets = self.offsets[first : stop + 1]
        members = self.members[offsets[0] : offsets[-1]]
        sizes = np.diff(offsets)
        row = np.repeat(np.arange(len(sizes)), sizes)
        slot = np.arange(len(members)) - np.repeat(offsets[:-1] - offsets[0], sizes)
        plan = PackedRows(*(np.zeros((len(sizes), width), dtype) for dtype in (np.int64, np.int32, np.int32)))
        for into, values in zip(plan, sequences, strict=True):
            into[row, slot] = values[members]
        return plan


#: Default of the most sequences in a row.
MAX_SEGMENTS = 32


def pack(sequences: Sequences, max_length: int, max_segments: int = MAX_SEGMENTS) -> PackedRows:
    """Plan several sequences per row by best fit: each goes, in the given order, into the fullest open row with room.

    Sequences stay whole; every one appears exactly once. ``max_segments`` bounds S, the width of the plan.
    """
    packing = best_fit(sequences.lengths, max_length, max_segments)
    return packing.rows(sequences, 0, len(packing.offsets) - 1, max_segments)


def best_fit(lengths: np.ndarray, max_length: int, max_segments: int) -> Packing:
    """Assign sequences to rows by best fit, without the plan that `pack` makes of it.

    ``room[c]`` stacks the open rows with c free positions; the bits of ``nonempty`` say which stacks hold any, so the
    tightest one that fits is the lowest set bit at or above the length.
    """
    room: list[list[int]] = [[] for _ in range(max_length + 1)]
    nonempty = 0
    used: list[int] = []
    row_of = np.empty(len(lengths), np.int32 if len(lengths) < 2**31 else np.int64)
    for i, n in enumerate(lengths.tolist()):
        candidates = nonempty >> n
        if candidates:
            free = n + (candidates & -candidates).bit_length() - 1
            stack = room[free]
            row = stack.pop()
            if not stack:
                nonempty ^= 1 << free
        else:
            row, free = len(used), max_length
            used.append(0)
        row_of[i] = row
        used[row] += 1
        left = free - n
        if left and used[row] < max_segments:
            room[left].append(row)
            nonempty |= 1 << left
    members = np.argsort(row_of, kind="stable").astype(row_of.dtype)
    return Packing(members, np.concatenate([np.zeros(1, np.int64), np.cumsum(used, dtype=np.int64)]))


def fill_rate(rows: PackedRows, max_length: int) -> float:
    """Return real interactions divided by positions of the batch, between 0 and 1."""
    return float(rows.lengths.sum()) / (len(rows.lengths) * max_length) if len(rows.lengths) else 0.0
