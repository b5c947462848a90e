"""Stretches of a log, such as histories: their places, blocks of them, and the items that they hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

#: Interactions that are laid out at a time.
BLOCK = 1 << 22
#: Length from which a stretch is searched where it lies.
LONG = 1 << 12


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``concatenate([arange(s, s + n) for s, n in zip(starts, counts)])`` without a Python loop: int64."""
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.repeat(np.asarray(starts, np.int64) - before, counts) + np.arange(total, dtype=np.int64)


def blocks(lengths: np.ndarray) -> Iterator[slice]:
    """Adjacent stretches with about `BLOCK` interactions, or a single one with more, given int64[E] lengths."""
    edges = np.flatnonzero(np.diff(np.cumsum(lengths) // BLOCK, prepend=-1)).tolist()
    for first, stop in itertools.pairwise([*edges, len(lengths)]):
        yield slice(first, stop)


def held(
    log: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    items: np.ndarray,
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """bool[T], whether each item occurs in its stretch of the log.

    Cases with successive targets of a user repeat a history: short ones are laid out some at a time, long ones never.

    Args:
      log: integers [N].
      starts: int64[E]; stretch e is ``log[starts[e]:stops[e]]``.
      stops: int64[E].
      items: integers [T], of stretch e ``items[offsets[e]:offsets[e + 1]]``.
      offsets: int64[E + 1]; None = one item for each stretch.
    """
    if offsets is None:
        offsets = np.arange(len(items) + 1)
    firsts, sizes = offsets[:-1], np.diff(offsets)
    lengths = stops - starts
    found = np.zeros(len(items), bool)
    long = (lengths > LONG) & (sizes > 0)
    for start, stop, first, size in zip(
        *(x[long].tolist() for x in (starts, stops, firsts, sizes)), strict=True
    ):
        stretch = np.asarray(log[start:stop])
        found[first : first + size] = [(stretch == item).any() for item in items[first : first + size]]
    short = np.flatnonzero((lengths <= LONG) & (sizes > 0))
    for block in blocks(lengths[short]):
        rows = short[block]
        owners = np.repeat(np.arange(len(rows)), lengths[rows])
        laid = np.asarray(log[ranges(starts[rows], lengths[rows])])
        if (sizes[rows] == 1).all():
            places = firsts[rows]
            found[places[owners[laid == items[places][owners]]]] = True
        else:
            places = ranges(firsts[rows], sizes[rows])
            asked, of = items[places].astype(np.int64), np.repeat(np.arange(len(rows)), sizes[rows])
            width = max(int(laid.max(initial=0)), int(asked.max())) + 1
            found[places] = np.isin(of * width + asked, owners * width + laid)
    return found
