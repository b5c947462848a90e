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


def pack(sequences: Sequences, max_length: int, max_segments: int = 32) -> Rows:
    """Several sequences a row by best fit: each goes, in the given order, into the fullest open row that has room.

    Sequences stay whole; every one appears exactly once. ``max_segments`` bounds S, the width of the plan.
    """
    order_rows, order_slots = _best_fit(sequences.lengths, max_length, max_segments)
    n_rows = int(order_rows.max(initial=-1)) + 1
    width = max_segments
    starts = np.zeros((n_rows, width), np.int64)
    lengths = np.zeros((n_rows, width), np.int32)
    users = np.zeros((n_rows, width), np.int32)
    starts[order_rows, order_slots] = sequences.starts
    lengths[order_rows, order_slots] = sequences.lengths
    users[order_rows, order_slots] = sequences.users
    return Rows(starts, lengths, users)


def _best_fit(lengths: np.ndarray, max_length: int, max_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and slot of each sequence. ``room[c]`` stacks the open rows with c free positions; the bits of ``nonempty``
    say which stacks hold any, so the tightest one that fits is the lowest set bit at or above the length."""
    room: list[list[int]] = [[] for _ in range(max_length + 1)]
    nonempty = 0
    used: list[int] = []
    out_rows = np.empty(len(lengths), np.int64)
    out_slots = np.empty(len(lengths), np.int64)
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
        out_rows[i], out_slots[i] = row, used[row]
        used[row] += 1
        left = free - n
        if left and used[row] < max_segments:
            room[left].append(row)
            nonempty |= 1 << left
    return out_rows, out_slots


def fill_rate(rows: Rows, max_length: int) -> float:
    """Real interactions divided by positions of the batch, between 0 and 1."""
    return float(rows.lengths.sum()) / (len(rows.lengths) * max_length) if len(rows.lengths) else 0.0
