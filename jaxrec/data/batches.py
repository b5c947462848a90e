"""From sequences to rows of a batch: padded, packed and prefix modes, each a pure function of (seed, epoch).

A *plan* says which stretch of the log goes where (`Rows`: a few integers a row); `expand` turns a plan into a `Batch` by
gathering from the log. The same `expand` runs in NumPy on the host and in JAX inside the compiled step, so a dataset
that is resident on the device and one that is streamed to it give the same numbers.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

Origin = Literal["start", "end"]


class Batch(NamedTuple):
    """One pytree for every encoder and every training mode. Arrays are [B, L]; int32 but for ``weights`` (float32).

    Attributes:
      items: interacted items, 0 = padding.
      positions: index inside the own sequence, counted from its start or from its end (``origin``).
      segments: 0 = padding, 1.. = which sequence of the row; the positions of a sequence are adjacent.
      targets: the item to predict, 0 = none here.
      weights: weight of the target in the loss, 0 where there is none.
      timestamps: seconds since the dataset's first event, or None.
      users: index of the user, -1 on padding.
    """

    items: Any
    positions: Any
    segments: Any
    targets: Any
    weights: Any
    timestamps: Any = None
    users: Any = None


class Rows(NamedTuple):
    """A plan of R rows with up to S sequences each.

    Attributes:
      starts: int64[R, S], index into the log of a sequence's first input.
      lengths: int32[R, S], its number of inputs; 0 = unused, and unused slots come last.
      users: int32[R, S], index of its user.
    """

    starts: np.ndarray
    lengths: np.ndarray
    users: np.ndarray

    def select(self, index: Any) -> Rows:
        """The rows of a slice, or of an array of row numbers."""
        return Rows(self.starts[index], self.lengths[index], self.users[index])


class Sequences(NamedTuple):
    """Sequences to train on: ``lengths`` inputs from ``starts`` on; the item after each input is its target.

    Attributes:
      starts: int64[N], lengths: int32[N], users: int32[N].
    """

    starts: np.ndarray
    lengths: np.ndarray
    users: np.ndarray


def expand(
    rows: Any,
    items: Any,
    *,
    max_length: int,
    origin: Origin = "start",
    last_only: Any = False,
    with_targets: bool = True,
    pad_left: bool = False,
    timestamps: Any = None,
    xp: Any = np,
) -> Batch:
    """Fill the rows of a plan from the log.

    Args:
      rows: `Rows` with arrays of ``xp``; the lengths of a row add up to at most ``max_length``.
      items: int32[N], the log's items, user after user and oldest first.
      max_length: L, the width of the batch.
      origin: what ``positions`` count from: "start" (0 = first of the sequence) or "end" (0 = newest of the sequence).
      last_only: weight only the last target of each sequence (prefix mode, or the last-position loss).
      with_targets: False for histories to be scored: targets and weights are zero.
      pad_left: padding before the sequences rather than after them.
      timestamps: int32[N] aligned with ``items``, or None.
      xp: ``numpy`` or ``jax.numpy``.

    Returns:
      A `Batch` of [R, L] arrays.
    """
    lengths = rows.lengths.astype(np.int32)
    stops = xp.cumsum(lengths, axis=1, dtype=np.int32)
    total = stops[:, -1:]
    column = xp.arange(max_length, dtype=np.int32)[None, :] + xp.zeros_like(total)
    if pad_left:
        column = column - (max_length - total)
    real = (column >= 0) & (column < total)
    slot = (column[:, :, None] >= stops[:, None, :]).sum(axis=2, dtype=np.int32)
    slot = xp.clip(slot, 0, lengths.shape[1] - 1)

    def of_sequence(values: Any) -> Any:
        return xp.take_along_axis(values, slot, axis=1)

    offset = column - of_sequence(stops - lengths)
    place = xp.where(real, of_sequence(rows.starts) + offset, 0)
    remaining = of_sequence(lengths) - 1 - offset
    zero = np.int32(0)
    last_index = items.shape[0] - 1
    if with_targets:
        targets = xp.where(real, items[xp.clip(place + 1, 0, last_index)], zero).astype(np.int32)
        counts = real & ((remaining == 0) | xp.logical_not(last_only))
        targets = xp.where(counts, targets, zero)
        weights = counts.astype(np.float32)
    else:
        targets = xp.zeros_like(column)
        weights = xp.zeros(column.shape, np.float32)
    return Batch(
        items=xp.where(real, items[place], zero).astype(np.int32),
        positions=xp.where(real, offset if origin == "start" else remaining, zero).astype(np.int32),
        segments=xp.where(real, slot + 1, zero).astype(np.int32),
        targets=targets,
        weights=weights,
        timestamps=None if timestamps is None else xp.where(real, timestamps[place], zero).astype(np.int32),
        users=xp.where(real, of_sequence(rows.users), np.int32(-1)).astype(np.int32),
    )


def pad(sequences: Sequences) -> Rows:
    """One sequence a row, in the given order."""
    return Rows(sequences.starts[:, None], sequences.lengths[:, None], sequences.users[:, None])


class Packing(NamedTuple):
    """Which sequences share a row: row r holds ``members[offsets[r]:offsets[r+1]]``, in that order.

    Attributes:
      members: int[N], numbers of sequences.
      offsets: int64[R+1].
    """

    members: np.ndarray
    offsets: np.ndarray

    def select(self, index: np.ndarray) -> Packing:
        """The rows of an array of row numbers."""
        sizes = np.diff(self.offsets)[index]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        shift = np.repeat(self.offsets[index] - offsets[:-1], sizes)
        return Packing(self.members[np.arange(offsets[-1]) + shift], offsets)

    def rows(self, sequences: Sequences, first: int, stop: int, width: int) -> Rows:
        """The plan ``[stop - first, width]`` of some consecutive rows."""
        offsets = self.offsets[first : stop + 1]
        members = self.members[offsets[0] : offsets[-1]]
        sizes = np.diff(offsets)
        row = np.repeat(np.arange(len(sizes)), sizes)
        slot = np.arange(len(members)) - np.repeat(offsets[:-1] - offsets[0], sizes)
        plan = Rows(*(np.zeros((len(sizes), width), dtype) for dtype in (np.int64, np.int32, np.int32)))
        for into, values in zip(plan, sequences, strict=True):
            into[row, slot] = values[members]
        return plan


def pack(sequences: Sequences, max_length: int, max_segments: int = 32) -> Rows:
    """Several sequences a row by best fit: each goes, in the given order, into the fullest open row that has room.

    Sequences stay whole; every one appears exactly once. ``max_segments`` bounds S, the width of the plan.
    """
    packing = best_fit(sequences.lengths, max_length, max_segments)
    return packing.rows(sequences, 0, len(packing.offsets) - 1, max_segments)


def best_fit(lengths: np.ndarray, max_length: int, max_segments: int) -> Packing:
    """`pack`, without the plan: the numbers of the sequences in each row.

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


def fill_rate(rows: Rows, max_length: int) -> float:
    """Real interactions divided by positions of the batch, between 0 and 1."""
    return float(rows.lengths.sum()) / (len(rows.lengths) * max_length) if len(rows.lengths) else 0.0
