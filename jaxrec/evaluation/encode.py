"""Hidden states of the last positions of histories, packed into rows so that no work goes into padding."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from jaxrec.attention.base import Mask
from jaxrec.data.batches import Batch, PositionOrigin, gather_batch
from jaxrec.data.packing import PackedRows, Sequences, pack
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation import parallel
from jaxrec.evaluation.histories import Histories
from jaxrec.sharding import DATA, place

#: ``(params, batch, query_positions int32[B, S]) -> hidden [B, S, D]`` at those positions, without dropout.
ApplyFn = Callable[[Any, Batch, Array], Array]

#: Positions encoded at a time: 32 rows of 200 or 128 rows of 50. Twice as many leave the cache of a CPU.
TOKENS_PER_BATCH = 6_400

#: Logs of fewer interactions are padded to a power of two.
LONG_LOG = 1 << 18


@dataclasses.dataclass(frozen=True)
class Forward:
    """``(params, batch, query_positions) -> hidden [B, S, D]`` of an encoder, without dropout.

    Equal for equal encoders, so that programs compiled for one serve the other.

    Attributes:
      encoder: `jaxrec.models.base.Encoder`.
      mask: under which it reads histories.
      query_token: number among the special tokens (0, 1, ...) of the one that is appended to a history to ask for its next
        item, or None.
    """

    encoder: nn.Module
    mask: Mask = "causal"
    query_token: int | None = None

    def __call__(
        self, params: Any, batch: Batch, query_positions: Int[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """Hidden states at ``query_positions`` int32[B, S]."""
        return self.encoder.apply({"params": params}, batch, False, query_positions, self.mask)


@dataclasses.dataclass(frozen=True)
class EncodingOptions:
    """Options for turning histories into batches.

    Attributes:
      max_length: L; the last L interactions of a history are used.
      position_origin: what positions count from, as in training.
      tokens_per_batch: positions encoded at a time, which set the memory of the forward pass: B * L, or on a
        CPU the sum over the batches under way.
      resident: put the log on the device; False fills each batch on the host, for a log that does not fit.
      query_token: id of a token that is appended to each history, whose last L - 1 interactions are then used, and whose
        state scores the next item; None = the state of the last interaction does.
      size_step: the number of rows is rounded up to a power of it; a larger one makes calls of many sizes share fewer
        programs.
      least_slots: a row has places for that many histories at least, for the same reason.
    """

    max_length: int
    position_origin: PositionOrigin = "start"
    tokens_per_batch: int = TOKENS_PER_BATCH
    resident: bool = True
    query_token: int | None = None
    size_step: int = 2
    least_slots: int = 1

    @property
    def longest_history(self) -> int:
        """Interactions of a history that are used at most."""
        return self.max_length - (self.query_token is not None)

    def __post_init__(self) -> None:
        if self.tokens_per_batch < self.max_length or self.max_length < 1:
            raise ConfigError(
                f"tokens_per_batch must be at least max_length (one row), got {self.tokens_per_batch} for "
                f"max_length {self.max_length}"
            )


def encode_histories(
    apply_fn: ApplyFn, params: Any, histories: Histories, options: EncodingOptions, mesh: Mesh | None = None
) -> Float[Array, "E D"]:
    """The state that scores the next item of each history.

    Every batch has the same shape, so one program is compiled for all calls with an equal ``apply_fn``.

    Args:
      apply_fn: hidden states at the query positions of a batch (see `jaxrec.models.base.Encoder`).
      params: its parameters.
      histories: E histories.
      options: shapes of the batches.
      mesh: the one on which ``params`` lie; rows are split over its ``data`` axis, the log is on every device.

    Returns:
      float32[E, D] on the device (on a mesh, on each), in the order of the histories. An empty history has the
      zero state: its scores are the item biases alone, whatever the encoder would make of padding.

    Raises:
      DataError: histories outside the log.
    """
    items, timestamps = histories.items, histories.timestamps
    max_length, resident = options.max_length, options.resident
    starts, stops = np.asarray(histories.starts, np.int64), np.asarray(histories.stops, np.int64)
    if len(starts) and (starts.min() < 0 or stops.max() > len(items) or (stops < starts).any()):
        raise DataError(
            f"histories must lie inside the log of {len(items)} interactions with start <= stop, "
            f"got starts from {starts.min()} and stops to {stops.max()}"
        )
    lengths = np.minimum(stops - starts, options.longest_history)
    full = np.flatnonzero(lengths > 0)
    first = stops - lengths
    if options.query_token is not None:
        lengths = np.where(lengths > 0, lengths + 1, 0)
    owners = (
        np.full(len(starts), -1, np.int32)
        if histories.users is None
        else np.asarray(histories.users, np.int32)
    )
    packed = _pack_histories(first, lengths, owners, full, max_length, options.least_slots)
    # Few histories make a smaller batch and a short log, each a power of two: few programs for calls of many
    # sizes.
    at_once = parallel.workers(waiting=1)
    most = max(1, options.tokens_per_batch // at_once // max_length)
    n_rows = min(most, rounded_up(len(packed.rows.lengths), options.size_step))
    if mesh is not None:
        n_rows = -(-n_rows // mesh.shape[DATA]) * mesh.shape[DATA]
    if not len(full):
        return _no_states(apply_fn, params, packed.rows, timestamps, options, n_rows, len(starts))
    log: Any = np.asarray(items)
    times = timestamps
    if resident:
        log, times = _on_device(items, mesh), None if timestamps is None else _on_device(timestamps, mesh)
    n_slots = packed.rows.lengths.shape[1]
    firsts = range(0, len(packed.rows.lengths), n_rows)
    # Slot s of row r has entry r * S + s; unused slots belong to the history after the last, which there is not.
    owner = np.full(len(firsts) * n_rows * n_slots, len(starts), np.int32)
    owner[packed.place] = full
    batches = [
        (
            _padded(packed.rows.select(slice(first, first + n_rows)), n_rows),
            owner[first * n_slots : (first + n_rows) * n_slots],
        )
        for first in firsts
    ]

    def split(tree: Any) -> Any:
        return tree if mesh is None else jax.tree.map(lambda x: place(x, mesh, P(DATA)), tree)

    def states(rows: PackedRows) -> Array:
        if resident:
            rows = rows._replace(starts=rows.starts.astype(np.int32))
            batch = _filled(split(rows), log, times, options)
        else:
            batch = split(_fill(rows, log, times, options, xp=np))
        return _last_states(apply_fn, params, batch, split(rows.lengths))

    all_states: list[Array] = []
    alone = threading.Lock()

    def encode(batch: tuple[PackedRows, np.ndarray]) -> None:
        """Put the states of a batch in their places at once: together, unused slots would be many times as many."""
        piece = parallel.waited(states(batch[0]), at_once)
        with alone:
            if not all_states:
                all_states.append(_zeros(len(starts), piece.shape[1], mesh))
            all_states.append(_placed(all_states.pop(), piece, batch[1], mesh))

    parallel.map_batches(encode, batches, at_once)
    return all_states[0]


def rounded_up(n: int, step: int = 2) -> int:
    """The least power of ``step`` that is at least ``n``.

    >>> rounded_up(5), rounded_up(5, 8), rounded_up(0)
    (8, 8, 1)
    """
    size = 1
    while size < n:
        size *= step
    return size


def _on_device(values: Any, mesh: Mesh | None) -> Array:
    """int32 on the device, or on each of a mesh; short logs are padded to a power of two."""
    if isinstance(values, Array):
        return values.astype(jnp.int32)
    values = np.asarray(values, np.int32)
    if len(values) < LONG_LOG:
        values = np.pad(values, (0, rounded_up(len(values)) - len(values)))
    return jnp.asarray(values) if mesh is None else place(values, mesh)


class _PackedHistories(NamedTuple):
    """Rows of packed histories; ``place[i]`` = row * S + slot of the i-th."""

    rows: PackedRows
    place: np.ndarray


def _pack_histories(
    starts: np.ndarray,
    lengths: np.ndarray,
    users: np.ndarray,
    full: np.ndarray,
    max_length: int,
    least_width: int,
) -> _PackedHistories:
    """Pack the histories ``full``, longest first, which fills rows best; a row has ``least_width`` slots or more."""
    order = full[np.argsort(-lengths[full], kind="stable")]
    # The packed "user" is the number of the history, which gives its place; the real one is put back after.
    rows = pack(Sequences(starts[order], lengths[order].astype(np.int32), order.astype(np.int32)), max_length)
    width = max(1, int((rows.lengths > 0).sum(axis=1).max(initial=1)))
    width = max(least_width, rounded_up(width))
    extra = max(0, width - rows.lengths.shape[1])
    rows = PackedRows(*(np.pad(part, ((0, 0), (0, extra)))[:, :width] for part in rows))
    used = rows.lengths > 0
    place = np.empty(len(starts), np.int64)
    place[rows.users[used]] = np.flatnonzero(used.reshape(-1))
    owners = np.where(used, users[rows.users], 0).astype(np.int32)
    return _PackedHistories(rows._replace(users=owners), place[full])


def _padded(rows: PackedRows, n_rows: int) -> PackedRows:
    extra = n_rows - len(rows.lengths)
    return PackedRows(*(np.pad(part, ((0, extra), (0, 0))) for part in rows)) if extra else rows


def _fill(rows: PackedRows, items: Any, timestamps: Any, options: EncodingOptions, xp: Any) -> Batch:
    batch = gather_batch(
        rows,
        items,
        max_length=options.max_length,
        position_origin=options.position_origin,
        with_targets=False,
        timestamps=timestamps,
        xp=xp,
    )
    return batch if options.query_token is None else _with_token(batch, options.query_token, xp)


def _with_token(batch: Batch, token: int, xp: Any) -> Batch:
    """Put the query token at the last position of each sequence; what was read there is not part of the history.

    Its time is that of the newest interaction: the time of the next one is not known when it is asked for.
    """
    segments = batch.segments
    last = (segments > 0) & (segments != xp.pad(segments[:, 1:], ((0, 0), (0, 1))))
    times = batch.timestamps
    if times is not None:
        times = xp.where(last, xp.pad(times[:, :-1], ((0, 0), (1, 0))), times)
    return batch._replace(items=xp.where(last, np.int32(token), batch.items), timestamps=times)


#: A program of its own: what follows is then the same to the bit, whether the log is on the device or not.
_filled = jax.jit(partial(_fill, xp=jnp), static_argnames="options")


@partial(jax.jit, static_argnames=("apply_fn",))
def _last_states(apply_fn: ApplyFn, params: Any, batch: Batch, lengths: Array) -> Array:
    """float32[B * S, D], the state at the last position of each slot (position 0 of unused slots)."""
    last = jnp.maximum(jnp.cumsum(lengths, axis=1, dtype=jnp.int32) - 1, 0)
    states = apply_fn(params, batch, last)
    return states.reshape(-1, states.shape[-1]).astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(n_rows: int, width: int, mesh: Mesh | None) -> Array:
    """The states of histories of which none is encoded yet."""
    return _on_each(jnp.zeros((n_rows, width), jnp.float32), mesh)


@partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _placed(states: Array, piece: Array, owner: Array, mesh: Mesh | None) -> Array:
    """``states`` [E, D] with those of a batch [B * S, D], each at its history int32[B * S]; history E is none."""
    return _on_each(states.at[owner].set(piece, mode="drop"), mesh)


def _on_each(states: Array, mesh: Mesh | None) -> Array:
    return states if mesh is None else lax.with_sharding_constraint(states, NamedSharding(mesh, P()))


def _no_states(
    apply_fn: ApplyFn,
    params: Any,
    rows: PackedRows,
    times: Any,
    options: EncodingOptions,
    n: int,
    e: int,
) -> Array:
    """Zero states of the encoder's width, without running it."""
    empty = PackedRows(*(np.zeros((n, 1), np.int32) for _ in rows))
    nothing = np.zeros(1, np.int32)
    batch = _fill(empty, nothing, None if times is None else nothing, options, xp=np)
    shape = jax.eval_shape(lambda p: _last_states(apply_fn, p, batch, empty.lengths), params)
    return jnp.zeros((e, shape.shape[-1]), jnp.float32)
