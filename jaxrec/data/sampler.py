"""Training sequences of a log, and the endless stream of rows that a run consumes."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

import numpy as np

from jaxrec.data.batches import BatchConfig
from jaxrec.data.packing import PackedRows, Packing, Sequences, best_fit
from jaxrec.errors import DataError


def training_sequences(
    starts: np.ndarray,
    stops: np.ndarray,
    max_length: int,
    long_histories: Literal["last", "windows"] = "last",
) -> Sequences:
    """Cut each user's training part ``[starts, stops)`` of the log into inputs of at most ``max_length``.

    A part of n interactions has n - 1 inputs with a target; users with fewer than two interactions give none. With
    "windows" the whole part is used: consecutive stretches that end at the newest interaction.

    Args:
      starts: int64[U], first interaction of each training part.
      stops: int64[U], end of each training part.
      max_length: L.
      long_histories: use the last L inputs, or consecutive windows over all of them.
    """
    inputs = np.maximum(stops - starts - 1, 0)
    if long_histories == "last":
        users = np.flatnonzero(inputs > 0)
        lengths = np.minimum(inputs[users], max_length)
        return Sequences(
            (stops[users] - 1 - lengths).astype(np.int64), lengths.astype(np.int32), users.astype(np.int32)
        )
    windows = -(-inputs // max_length)
    users = np.repeat(np.arange(len(starts)), windows)
    # Windows are numbered from the newest: the k-th ends k * max_length inputs before the end.
    number = np.arange(len(users)) - np.repeat(np.cumsum(windows) - windows, windows)
    window_stops = stops[users] - 1 - number * max_length
    window_starts = np.maximum(window_stops - max_length, starts[users])
    return Sequences(
        window_starts.astype(np.int64),
        (window_stops - window_starts).astype(np.int32),
        users.astype(np.int32),
    )


def share_of(places: np.ndarray, stop: int, shares: int) -> np.ndarray:
    """int64, the equal part of the log, 0.. ``shares`` - 1, in which a user lies whose first interaction is at each place.

    Args:
      places: int64, places in the log.
      stop: end of the training part of the last user.
      shares: number of parts.
    """
    return np.minimum(places * shares // max(1, stop), shares - 1)


def prefixes(starts: np.ndarray, stops: np.ndarray, max_length: int) -> Sequences:
    """List every prefix of each training part that has a target: one sequence per target, at most ``max_length`` long."""
    targets = np.maximum(stops - starts - 1, 0)
    users = np.repeat(np.arange(len(starts)), targets)
    number = np.arange(len(users)) - np.repeat(np.cumsum(targets) - targets, targets)
    prefix_stops = starts[users] + 1 + number
    prefix_starts = np.maximum(prefix_stops - max_length, starts[users])
    return Sequences(
        prefix_starts.astype(np.int64),
        (prefix_stops - prefix_starts).astype(np.int32),
        users.astype(np.int32),
    )


class Position(NamedTuple):
    """Position in a row stream: the next row is number ``row`` of epoch ``epoch``."""

    epoch: int = 0
    row: int = 0


class RowStream:
    """Endless rows: each epoch holds every sequence once, in an order that (seed, epoch) alone determine.

    A batch may straddle two epochs, so that every batch is full and every chunk of steps has the same shape. With several
    shares (`BatchConfig`) an epoch is whole batches, and shares that end early repeat rows.

    Args:
      starts: int64[U], start of each user's training part of the log.
      stops: int64[U], its end.
      config: mode and shapes.
      seed: of the order.

    Raises:
      DataError: no user has two training interactions.
    """

    def __init__(self, starts: np.ndarray, stops: np.ndarray, config: BatchConfig, seed: int):
        self.config = config
        self.seed = seed
        self._lock = threading.Lock()
        if config.mode == "prefix":
            self._sequences = prefixes(starts, stops, config.max_length)
        else:
            self._sequences = training_sequences(starts, stops, config.max_length, config.long_histories)
        if not len(self._sequences.starts):
            raise DataError(
                "no training sequence: expected at least one user with two training interactions, got none; "
                "lower the filters or hold out fewer interactions"
            )
        self._members = self._of_shares(starts, stops)
        self._plans: dict[int, Packing] = {}
        lengths = self._sequences.lengths
        first = self._plan(0)
        self.rows_per_epoch = len(first.offsets) - 1
        in_epoch = int(lengths[first.members].sum())
        self.fill_rate = in_epoch / (self.rows_per_epoch * config.max_length)
        self.targets_per_epoch = len(first.members) if config.last_only else in_epoch

    def plan_ahead(self, epoch: int) -> None:
        """Plan an epoch ahead of its use; a thread may do so while another takes rows."""
        self._plan(epoch)

    def epoch_rows(self, epoch: int) -> PackedRows:
        """Return all rows of an epoch (their number differs a little from epoch to epoch when packed)."""
        plan = self._plan(epoch)
        return plan.rows(self._sequences, 0, len(plan.offsets) - 1, self._width)

    @property
    def _width(self) -> int:
        return 1 if self.config.mode == "padded" else self.config.max_segments

    def _plan(self, epoch: int) -> Packing:
        """The packing of an epoch: 4 bytes per sequence and 8 per row; the plans of two epochs stay in memory."""
        if (plan := self._plans.get(epoch)) is not None:
            return plan
        with self._lock:
            if epoch in self._plans:
                return self._plans[epoch]
            if self._members is None:
                generator = np.random.default_rng([self.seed, epoch])
                plan = self._pack(generator.permutation(len(self._sequences.starts)), generator)
            else:
                plan = self._pack_shares(self._members, epoch)
            self._plans = {e: planned for e, planned in self._plans.items() if abs(e - epoch) == 1}
            self._plans[epoch] = plan
            return plan

    def _pack(self, order: np.ndarray, generator: np.random.Generator) -> Packing:
        """Put sequences, in a random order, into rows in a random order."""
        config = self.config
        if config.mode == "prefix" and config.prefixes_per_sequence:
            order = self._draw_prefixes(order)
        if config.mode == "padded":
            return Packing(order, np.arange(len(order) + 1))
        packed = best_fit(self._sequences.lengths[order], config.max_length, config.max_segments)
        packed = packed.select(generator.permutation(len(packed.offsets) - 1))
        return packed._replace(members=order[packed.members].astype(packed.members.dtype))

    def _of_shares(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray] | None:
        """Sequences of each share of the log, or None where there is one share."""
        shares = self.config.shares
        if shares == 1:
            return None
        share = share_of(starts[self._sequences.users], int(stops[-1]), shares)
        members = [np.flatnonzero(share == number) for number in range(shares)]
        empty = [number for number, mine in enumerate(members) if not len(mine)]
        if empty:
            raise DataError(
                f"--batches.shares {shares} leaves share {empty[0]} without a training sequence: choose fewer shares"
            )
        return members

    def _pack_shares(self, members: list[np.ndarray], epoch: int) -> Packing:
        """Pack each share by itself, and lay out whole batches with as many rows of every share."""
        part = self.config.batch_size // len(members)
        packings = []
        for number, mine in enumerate(members):
            generator = np.random.default_rng([self.seed, epoch, number])
            packings.append(self._pack(generator.permutation(mine), generator))
        counts = [len(packing.offsets) - 1 for packing in packings]
        batches = -(-max(counts) // part)
        before = np.cumsum([0, *counts[:-1]])
        rows = [
            first + np.arange(batches * part).reshape(batches, part) % count
            for first, count in zip(before, counts, strict=True)
        ]
        sizes = np.concatenate([np.diff(packing.offsets) for packing in packings])
        whole = Packing(
            np.concatenate([packing.members for packing in packings]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        )
        return whole.select(np.stack(rows, axis=1).reshape(-1))

    def _draw_prefixes(self, order: np.ndarray) -> np.ndarray:
        """The first few prefixes of each user in a random order: a draw without replacement."""
        by_user = order[np.argsort(self._sequences.users[order], kind="stable")]
        users = self._sequences.users[by_user]
        first = np.searchsorted(users, users)
        sample = by_user[np.arange(len(users)) - first < self.config.prefixes_per_sequence]
        rank = np.empty(len(self._sequences.starts), np.int64)
        rank[order] = np.arange(len(order))
        return sample[np.argsort(rank[sample])]

    def take(self, position: Position, count: int) -> tuple[PackedRows, Position]:
        """Return the next ``count`` rows from ``position`` on, and the position after them."""
        parts: list[PackedRows] = []
        epoch, row = position
        while count > 0:
            plan = self._plan(epoch)
            n_rows = len(plan.offsets) - 1
            stop = min(row + count, n_rows)
            parts.append(plan.rows(self._sequences, row, stop, self._width))
            count -= stop - row
            row = stop
            if row >= n_rows:
                epoch, row = epoch + 1, 0
        return PackedRows(*(np.concatenate(field) for field in zip(*parts, strict=True))), Position(
            epoch, row
        )
