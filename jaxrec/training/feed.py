"""Input of a run: a log resident on the device, or batches streamed to it, prefetched one chunk ahead.

A background thread plans the steps of the next chunk while the device runs the present one. Resident, it sends the plan,
a few integers per row, and the compiled step gathers from the log. Streamed, it also fills the batches from the log, which
stays in its (memory-mapped) file: 28 bytes per position are sent, and two chunks are on the device at a time. What the step
computes is the same to the bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import TrainingConfig
from jaxrec.data.batches import Batch, BatchConfig, gather_batch
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.packing import PackedRows
from jaxrec.data.sampler import Position, RowStream
from jaxrec.errors import ConfigError, DataError
from jaxrec.objectives import ObjectiveConfig
from jaxrec.tasks import Resources

MOST_ADDRESSED = 2**31 - 1  # interactions: indices on the device are int32
_MOST_SECONDS = 2**31 - 1  # 68 years: times on the device are int32
BLOCK = 1 << 17  # positions that the host fills at a time: its scratch arrays stay in the processor's cache


class RelativeSeconds:
    """Seconds since the first event, read from the timestamps where asked: ``seconds[index] -> int32``.

    Of a log of more than 68 years they count from the first event of each user: models read intervals within a history
    alone, and one wrong date, such as 1900-01-01, must not make all others equal.

    Args:
      timestamps: int64[N], seconds.
      offsets: int64[U+1]; the events of user u are those from ``offsets[u]`` to ``offsets[u + 1] - 1``.
    """

    def __init__(self, timestamps: np.ndarray, offsets: np.ndarray):
        self._timestamps = np.asarray(timestamps)  # a view of a memory-mapped file
        self._offsets = np.asarray(offsets)
        self._first = self._timestamps.min()
        self._fits = int(self._timestamps.max()) - int(self._first) <= _MOST_SECONDS

    def __getitem__(self, index: Any) -> np.ndarray:
        first: Any = self._first
        if not self._fits:
            place = np.arange(*index.indices(len(self._timestamps))) if isinstance(index, slice) else index
            users = np.searchsorted(self._offsets, place, side="right") - 1
            first = self._timestamps[self._offsets[users]]
        since = self._timestamps[index] - first
        # Clipped at 68 years.
        return np.minimum(since, _MOST_SECONDS).astype(np.int32)


class HostLog(NamedTuple):
    """The log of a streamed run.

    Attributes:
      items: int32[N], in memory or memory-mapped.
      timestamps: int32[N] or what is indexed like it, or None.
    """

    items: np.ndarray
    timestamps: Any = None


def device_memory() -> int:
    """Bytes of memory of one device; on a CPU those of the machine."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return int(limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def resident_bytes(dataset: SequenceDataset, objective: ObjectiveConfig) -> int:
    """Bytes of a resident log on the device: items, timestamps, and a second copy where seen items are looked up."""
    return _log_bytes(len(dataset.items), dataset.timestamps is not None, objective)


def _log_bytes(interactions: int, timed: bool, objective: ObjectiveConfig) -> int:
    return 4 * interactions * (1 + timed + objective.needs_seen)


def is_resident(training: TrainingConfig, objective: ObjectiveConfig, dataset: SequenceDataset) -> bool:
    """Whether the log of a run stays on the device; see `stays_resident`."""
    return stays_resident(training, objective, len(dataset.items), dataset.timestamps is not None)


def stays_resident(
    training: TrainingConfig, objective: ObjectiveConfig, interactions: int, timed: bool
) -> bool:
    """Whether a log of so many interactions, with times or without, stays on the device.

    Item counts (4 bytes per item) are on the device in both cases.

    Raises:
      DataError: it should, but is too long for it.
      ConfigError: it should not, but the sampler looks up every user's items, which are as long as the log.
    """
    size, share = _log_bytes(interactions, timed, objective), training.resident_share
    few = interactions <= MOST_ADDRESSED
    resident = training.feed == "resident" or (
        training.feed == "auto" and few and size <= share * device_memory()
    )
    if resident and not few:
        raise DataError(
            f"the log has {interactions} interactions, but indices on the device end at 2^31 - 1: "
            "--training.feed resident cannot hold it; choose streamed"
        )
    if not resident and objective.needs_seen:
        why, cure = (
            f"the log takes {size / 2**20:,.1f} MiB on the device, over --training.resident-share {share:g} of it",
            ", or --training.feed resident",
        )
        if not few:
            why, cure = f"its {interactions} interactions are more than indices on the device reach", ""
        elif training.feed == "streamed":
            why = "--training.feed is streamed"
        raise ConfigError(
            f"--objective.exclude-seen keeps the training items of every user on the device, which are as long as the log, "
            f"so it cannot be streamed, but {why}: give --objective.no-exclude-seen{cure}"
        )
    return resident


def fill(
    plans: list[PackedRows], steps: int, log: HostLog, batches: BatchConfig, rows: slice = slice(None)
) -> Batch:
    """The batches of a chunk, filled on the host: arrays [S, K, B, L] from plans of S seeds, each of K B rows.

    Args:
      plans: one for each seed.
      steps: K.
      log: to fill them from.
      batches: shapes.
      rows: of the B rows of every batch, those that this process needs; only their part of the log is read.
    """
    size, length = batches.batch_size, batches.max_length
    batch_rows = np.arange(size)[rows]
    index = (np.arange(steps)[:, None] * size + batch_rows).reshape(-1)
    shape = (len(plans), len(index), length)
    fields: dict[str, np.ndarray] = {name: np.empty(shape, np.int32) for name in Batch._fields}
    fields["weights"] = np.empty(shape, np.float32)
    if log.timestamps is None:
        del fields["timestamps"]
    block = max(1, BLOCK // length)
    for s, plan in enumerate(plans):
        for first in range(0, len(index), block):
            part = plan.select(index[first : first + block])
            width = max(1, int((part.lengths > 0).sum(axis=1).max()))
            batch = gather_batch(
                PackedRows(*(field[:, :width] for field in part)),
                log.items,
                max_length=length,
                position_origin=batches.position_origin,
                last_only=batches.last_only,
                timestamps=log.timestamps,
            )
            for name, into in fields.items():
                into[s, first : first + block] = getattr(batch, name)
    return Batch(**{name: values.reshape(len(plans), steps, -1, length) for name, values in fields.items()})


class Chunk(NamedTuple):
    """Inputs of one chunk of steps.

    Attributes:
      inputs: on the device, with leading axes [S, K, B]: a `PackedRows` (resident) or a `Batch` (streamed).
      positions: of each seed's stream after the chunk.
      waited_seconds: for how long it was not ready when asked for.
    """

    inputs: PackedRows | Batch
    positions: list[Position]
    waited_seconds: float


class ChunkFeed:
    """The chunks of a run in order, each made ready by a background thread while the one before is in use.

    Use it as a context manager: leaving it ends the thread.

    Args:
      streams: one per seed.
      positions: where each stream starts.
      batches: shapes.
      chunk_steps: K.
      chunks: how many there will be at most; none is made beyond.
      log: to stream from, or None for a resident log.
      put: moves a tree of host arrays [S, K, B, ...] to the devices.
      rows: of the B rows of a batch, those that ``put`` expects of this process.
    """

    def __init__(
        self,
        streams: list[RowStream],
        positions: list[Position],
        batches: BatchConfig,
        chunk_steps: int,
        chunks: int,
        log: HostLog | None = None,
        put: Callable[[Any], Any] = jax.device_put,
        rows: slice = slice(None),
    ):
        self._streams, self._positions, self._batches = streams, positions, batches
        self._steps, self._left, self._log, self._put, self._rows = chunk_steps, chunks, log, put, rows
        # The second thread plans the next epoch, which takes longer than a chunk where users are many.
        self._makers = ThreadPoolExecutor(1, "jaxrec-feed")
        self._planners = ThreadPoolExecutor(1, "jaxrec-plan")
        self._planned: dict[tuple[int, int], Future[None]] = {}
        self._next: Future[tuple[Any, list[Position]]] | None = None

    def __enter__(self) -> ChunkFeed:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._makers.shutdown(wait=True, cancel_futures=True)
        self._planners.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        self._next = None
        if self._left > 0:
            self._left -= 1
            self._next = self._makers.submit(self._make, self._positions)

    def take(self) -> Chunk:
        """The next chunk; the one after it is begun."""
        if self._next is None:
            raise ValueError("the feed was asked for more chunks than it was made for")
        started = time.perf_counter()
        inputs, self._positions = self._next.result()
        waited = time.perf_counter() - started
        self._begin()
        return Chunk(inputs, self._positions, waited)

    def _make(self, positions: list[Position]) -> tuple[Any, list[Position]]:
        pairs = [
            stream.take(position, self._steps * self._batches.batch_size)
            for stream, position in zip(self._streams, positions, strict=True)
        ]
        plans, after = [rows for rows, _ in pairs], [position for _, position in pairs]
        for number, (stream, position) in enumerate(zip(self._streams, after, strict=True)):
            if self._left > 0 and (number, position.epoch) not in self._planned:
                self._planned = {(n, e): f for (n, e), f in self._planned.items() if n != number}
                future = self._planners.submit(stream.plan_ahead, position.epoch + 1)
                self._planned[number, position.epoch] = future
        if self._log is None:
            inputs: Any = jax.tree.map(lambda x: x[:, :, self._rows], device_rows(plans, self._steps))
        else:
            inputs = fill(plans, self._steps, self._log, self._batches, self._rows)
        return jax.block_until_ready(self._put(inputs)), after


def fill_batches(inputs: PackedRows | Batch, resources: Resources, batches: BatchConfig) -> Batch:
    """The batches of K steps, [K, B, L]: gathered from the resident log by their plans, or those that were streamed.

    They are filled before the loop over steps, so that the loop is the same program in both cases: inside it, the compiler
    would merge the gathers into what follows, and round differently.
    """
    if isinstance(inputs, Batch):
        return inputs
    return jax.vmap(
        lambda rows: gather_batch(
            rows,
            resources.items,
            max_length=batches.max_length,
            position_origin=batches.position_origin,
            last_only=batches.last_only,
            timestamps=resources.timestamps,
            xp=jnp,
        )
    )(inputs)


def device_rows(parts: list[PackedRows], steps: int) -> PackedRows:
    """Plans of S seeds, each of ``steps * B`` rows, as arrays [S, K, B, segments] that fit the device (int32)."""

    def stack(field: str) -> np.ndarray:
        values = np.stack([getattr(part, field) for part in parts]).astype(np.int32)
        return values.reshape(len(parts), steps, -1, values.shape[-1])

    return PackedRows(stack("starts"), stack("lengths"), stack("users"))
