"""Exact softmax cross-entropy over the whole catalogue without holding the logits, forward and backward fused.

With P = exp(s - m) for a shift m per position and Z = Σ P, the loss is log Z + m - s_target and its gradient by the scores
is P / Z less one at the target. Real positions are moved to the front and processed in chunks; a chunk scores the items
tile by tile. Two forms compute the same:

* one pass holds the [chunk, V] exponentials of a chunk, and forms the gradients from them at once;
* two passes, where those would not fit: the losses with Z and m first, then the exponentials again, for the gradients.

The target is left out of P and added in float32, so that a confident position keeps its small loss and gradient, and so that
the gradient of a popular item is summed in float32 whatever the precision of the products. On a mesh each device has some of
the rows, and sums over shards complete Z.

In order: the loss; chunk sizes; the custom derivative; the passes; the exponential function.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jaxtyping import Float

from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives.base import LossInputs
from jaxrec.sharding import equally_varying, vary_over, varying_axes

ITEM_TILE = 8192  # items scored at a time; half of it for chunks of SMALL_CHUNK positions on a CPU
WORK_BYTES = 58 * 2**20  # on a CPU: exponentials of one chunk, gradient of the items and their copy
CACHED_BYTES = 22 * 2**20  # exponentials of a chunk, where that leaves SMALL_CHUNK positions or more
SMALL_CHUNK, LARGE_CHUNK = 128, 320  # positions
MOST_TILES = 32  # of one pass, which is unrolled over them
DEVICE_CHUNK_BYTES = 512 * 2**20  # on accelerators
SAFE_SHIFT = 50.0  # exp(50) times any catalogue and any sum of its vectors stays finite in float32


def catalogue_cross_entropy(
    inputs: LossInputs,
    *,
    dtype: str = "float32",
    token_chunk: int = 0,
    item_tile: int = 0,
    axis_name: str | None = None,
    n_items: int | None = None,
) -> Float[Array, ""]:
    """Return the weighted sum of the cross-entropy of N positions over V items, float32.

    Args:
      inputs: targets are in 1..V where the weight is positive; positions of weight 0 cost nothing and may have any target.
      dtype: operands of the products; sums are float32.
      token_chunk: positions at a time; 0 = chosen from the shapes.
      item_tile: items at a time; 0 = chosen.
      axis_name: inside `jax.shard_map` (with its default ``check_vma=True``): the mesh axis over which the rows of the table
        are sharded, in order. Each device then passes its block of rows, the same positions along this axis, and gets the
        loss over all items. Positions sharded over other axes are summed by the caller.
      n_items: V, needed with ``axis_name``: rows above it are padding.

    Raises:
      ValueError: ``axis_name`` without ``n_items``.
    """
    hidden, table, targets, weights, *_ = inputs
    rows = table.vectors.shape[0]
    if axis_name is not None and n_items is None:
        raise ValueError(
            "n_items: expected the number of items over all shards with axis_name, got None; pass V"
        )
    if hidden.shape[0] == 0:
        return jnp.zeros((), jnp.float32)
    v = rows - 1 if n_items is None else n_items
    settings = choose_settings(
        hidden.shape[0], rows, hidden.shape[1], dtype, token_chunk, item_tile, axis_name, v
    )
    hidden, vectors = _with_bias(hidden, table, dtype)
    hidden, vectors, targets, weights = equally_varying(hidden, vectors, targets, weights)
    # The passes divide weights by Z, as small as exp(-SAFE_SHIFT): weights of 1 at most leave the quotient finite.
    largest = lax.stop_gradient(jnp.max(weights))
    largest = jnp.where(largest > 0, largest, 1.0)
    total = largest * _loss(hidden, vectors, targets, weights / largest, settings)
    return total if axis_name is None else lax.psum(total, axis_name)


def _with_bias(hidden: Array, table: ItemTable, dtype: str) -> tuple[Array, Array]:
    """Append the bias to the vectors as further columns, and ones to the states.

    Three bfloat16 columns sum to the float32 bias.
    """
    if table.bias is None:
        return hidden, table.vectors
    columns, rest = [], table.bias
    for _ in range(1 if dtype == "float32" else 3):
        part = rest.astype(dtype).astype(jnp.float32)
        columns.append(lax.stop_gradient(part))
        rest = rest - part
    columns[0] = table.bias + lax.stop_gradient(columns[0] - table.bias)
    ones = jnp.ones((hidden.shape[0], len(columns)), hidden.dtype)
    return jnp.concatenate([hidden, ones], axis=1), jnp.concatenate(
        [table.vectors, jnp.stack(columns, 1)], axis=1
    )


class Settings(NamedTuple):
    """Static settings that the kernel is compiled for.

    Attributes:
      dtype: operands of the products.
      token_chunk: positions at a time.
      item_tile: items at a time.
      single_pass: whether the exponentials of a chunk are held.
      axis_name: mesh axis of the rows, or None.
      n_items: V, over all shards.
    """

    dtype: str
    token_chunk: int
    item_tile: int
    single_pass: bool
    axis_name: str | None
    n_items: int


def choose_settings(
    n: int,
    rows: int,
    width: int,
    dtype: str = "float32",
    token_chunk: int = 0,
    item_tile: int = 0,
    axis_name: str | None = None,
    n_items: int = 0,
) -> Settings:
    """Return chunk sizes for N positions: the requested ones, or such as suit the memory of the device.

    Args:
      n: N.
      rows: rows of the table at hand.
      width: D.
      dtype: operands of the products.
      token_chunk: requested positions at a time, 0 = any.
      item_tile: requested items at a time, 0 = any.
      axis_name: mesh axis of the rows, or None.
      n_items: V.
    """
    size = jnp.dtype(dtype).itemsize
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        tables = rows * width * (4 + size) + 4 * ITEM_TILE * SMALL_CHUNK
        most = max(0, WORK_BYTES - tables) // (size * rows)
        chunk = token_chunk or min(most, max(SMALL_CHUNK, min(LARGE_CHUNK, CACHED_BYTES // (size * rows))))
    else:
        chunk = token_chunk or min(8192, DEVICE_CHUNK_BYTES // (size * rows))
    single_pass = bool(token_chunk) or chunk >= SMALL_CHUNK // 2
    if not single_pass:
        chunk = 2 * LARGE_CHUNK if on_cpu else 8192
    automatic = ITEM_TILE if single_pass or not on_cpu else 2048
    if on_cpu and single_pass and chunk <= SMALL_CHUNK:
        automatic = ITEM_TILE // 2
    tile = min(item_tile or automatic, rows)
    single_pass = single_pass and -(-rows // tile) <= MOST_TILES
    return Settings(dtype, max(1, min(_rounded(chunk), n)), tile, single_pass, axis_name, n_items)


def _rounded(chunk: int) -> int:
    return chunk // 32 * 32 if chunk > 32 else chunk


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(hidden: Array, vectors: Array, targets: Array, weights: Array, settings: Settings) -> Array:
    return CataloguePass(hidden, vectors, targets, weights, settings).losses()[0]


def _forward(
    hidden: Array, vectors: Array, targets: Array, weights: Array, settings: Settings
) -> tuple[Array, tuple[Array, Array, Array]]:
    work = CataloguePass(hidden, vectors, targets, weights, settings)
    total, *gradients = work.single_pass() if settings.single_pass else work.two_passes()
    return total, (gradients[0], gradients[1], gradients[2])


def _backward(
    settings: Settings, gradients: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, None, Array]:
    hidden_bar, vectors_bar, losses = gradients
    return cotangent * hidden_bar, cotangent * vectors_bar, None, cotangent * losses


_loss.defvjp(_forward, _backward)


class _Chunk(NamedTuple):
    """A chunk of c positions.

    Attributes:
      hidden: float32[c, D].
      operand: ``hidden`` in the precision of the products.
      weights: float32[c].
      target: int32[c], row of the target in this shard; -1 = in another shard, or none.
      target_score: float32[c].
    """

    hidden: Array
    operand: Array
    weights: Array
    target: Array
    target_score: Array


@custom_vmap
def _same_for_all(x: Array) -> Array:
    """Return x; under `vmap` the maximum over the batch, so that loops and branches stay scalar."""
    return x


@_same_for_all.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return (jnp.max(x, axis=0), False) if in_batched[0] else (x, False)


class CataloguePass:
    """Loss and gradients of one set of positions: real ones moved to the front, then chunk by chunk."""

    def __init__(self, hidden: Array, vectors: Array, targets: Array, weights: Array, settings: Settings):
        self.hidden, self.vectors, self.targets, self.weights = hidden, vectors, targets, weights
        self.settings = settings
        self.dtype = jnp.dtype(settings.dtype)
        self.chunk, self.rows = settings.token_chunk, vectors.shape[0]
        n = hidden.shape[0]
        self.padded = -(-n // self.chunk) * self.chunk
        self.axes = varying_axes(hidden)
        real = weights > 0
        counts = jnp.cumsum(real, dtype=jnp.int32)
        # A position's place among the real ones; out of range for others, which gathers fill and scatters drop.
        self.place = jnp.where(real, counts - 1, self.padded)
        order = jnp.full((self.padded,), n, jnp.int32)
        self.order = order.at[self.place].set(
            jnp.arange(n, dtype=jnp.int32), mode="drop", unique_indices=False
        )
        n_real = counts[-1]
        self.n_chunks = _same_for_all((n_real + self.chunk - 1) // self.chunk)
        norms = jnp.sqrt(jnp.max(jnp.sum(jnp.square(vectors.astype(self.dtype).astype(jnp.float32)), axis=1)))
        self.largest_norm = norms
        self.first_row = jnp.int32(0)
        if settings.axis_name is not None:
            self.largest_norm = vary_over(lax.pmax(norms, settings.axis_name), self.axes)
            self.first_row = lax.axis_index(settings.axis_name).astype(jnp.int32) * self.rows

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return zeros that a loop may add to, marked inside `shard_map` as varying like the summands."""
        return vary_over(jnp.zeros(shape, jnp.float32), self.axes)

    def at(self, i: Array) -> _Chunk:
        """Return chunk i of the real positions; those beyond the last have weight 0 and a zero hidden state."""
        index = lax.dynamic_slice(self.order, (i * self.chunk,), (self.chunk,))
        hidden = jnp.take(self.hidden, index, axis=0, mode="fill", fill_value=0)
        weights = jnp.take(self.weights, index, mode="fill", fill_value=0)
        row = jnp.take(self.targets, index, mode="fill", fill_value=-1) - self.first_row
        target = jnp.where((weights > 0) & (row >= 0) & (row < self.rows), row, -1)
        operand = hidden.astype(self.dtype)
        target_rows = jnp.take(self.vectors, jnp.maximum(target, 0), axis=0, mode="clip")
        rounded = target_rows.astype(self.dtype).astype(jnp.float32)
        score = jnp.sum(operand.astype(jnp.float32) * rounded, axis=1)
        score = self.over_shards(jnp.where(target >= 0, score, 0.0))
        return _Chunk(hidden, operand, weights, target, score)

    def over_shards(self, x: Array) -> Array:
        """Return the sum over the shards of the catalogue, still marked as varying."""
        if self.settings.axis_name is None:
            return x
        return vary_over(lax.psum(x, self.settings.axis_name), self.axes)

    def tiles(self) -> tuple[int, int, int]:
        """Return (first candidate row, rows of a tile, number of tiles); row 0 is no candidate."""
        first = 0 if self.settings.axis_name is not None else 1
        size = max(1, min(self.settings.item_tile, self.rows - first))
        return first, size, -(-(self.rows - first) // size)

    def scores(self, chunk: _Chunk, items: Array) -> Array:
        """Return the scores [c, size] of a tile of items."""
        return lax.dot_general(
            chunk.operand, items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

    def dropped(self, chunk: _Chunk, start: Any, size: int, from_row: Any = None) -> Array:
        """Return which scores [c, size] are left out of P: the target, padding, and rows before ``from_row``."""
        row = start + jnp.arange(size, dtype=jnp.int32)[None, :]
        drop = row == chunk.target[:, None]
        if from_row is not None:
            drop = drop | (row < from_row)
        if self.settings.axis_name is not None:
            item = row + self.first_row
            drop = drop | (item == 0) | (item > self.settings.n_items)
        return drop

    def tile(self, j: Array) -> tuple[Array, Array, Array]:
        """Return tile j for loops: (its first row, its first row that no earlier tile had, its vectors)."""
        first, size, _ = self.tiles()
        fresh = first + j * size
        start = jnp.minimum(fresh, self.rows - size)
        items = lax.dynamic_slice(self.vectors, (start, jnp.int32(0)), (size, self.vectors.shape[1]))
        return start, fresh, items.astype(self.dtype)

    def shift(self, chunk: _Chunk) -> Array:
        """Return m, which keeps exp(s - m) finite and Z clear of underflow.

        |h| max|e| bounds every score. Where it is within 2 SAFE_SHIFT of the target's score, m follows without computing
        the scores; otherwise the largest score is searched for, at the price of one more matrix product.
        """
        norm = jnp.sqrt(jnp.sum(jnp.square(chunk.operand.astype(jnp.float32)), axis=1))
        bound = norm * self.largest_norm
        _, size, n_tiles = self.tiles()

        def largest(_: None) -> Array:
            def body(j: Array, best: Array) -> Array:
                start, fresh, items = self.tile(j)
                scores = self.scores(chunk, items)
                drop = self.dropped(chunk, start, size, fresh)
                return jnp.maximum(best, jnp.max(jnp.where(drop, -jnp.inf, scores), axis=1))

            return lax.fori_loop(jnp.int32(0), jnp.int32(n_tiles), body, chunk.target_score)

        loose = _same_for_all(jnp.any(bound - chunk.target_score > 2 * SAFE_SHIFT))
        shift = lax.cond(loose, largest, lambda _: jnp.maximum(chunk.target_score, bound - SAFE_SHIFT), None)
        if self.settings.axis_name is not None:
            shift = vary_over(lax.pmax(shift, self.settings.axis_name), self.axes)
        return shift

    def exponentials(self, scores: Array, shift: Array, drop: Array) -> tuple[Array, Array]:
        """Return P in the precision of the products, and its row sums in float32."""
        p = exponential(scores - shift[:, None], drop, self.settings.dtype)
        return p, jnp.sum(p.astype(jnp.float32), axis=1)

    def others(self, chunk: _Chunk, shift: Array) -> Array:
        """Return Σ P over all items but the target, tile by tile."""
        _, size, n_tiles = self.tiles()

        def body(j: Array, total: Array) -> Array:
            start, fresh, items = self.tile(j)
            drop = self.dropped(chunk, start, size, fresh)
            return total + self.exponentials(self.scores(chunk, items), shift, drop)[1]

        return self.over_shards(
            lax.fori_loop(jnp.int32(0), jnp.int32(n_tiles), body, self.empty((self.chunk,)))
        )

    def finish(self, chunk: _Chunk, shift: Array, others: Array) -> tuple[Array, Array, Array]:
        """Return (loss of each position whose target this shard owns, w / Z, (1 - p_target) w of those)."""
        own = chunk.target >= 0
        at_target = jnp.exp(chunk.target_score - shift)
        z = others + at_target
        sharp = jnp.log1p(others / jnp.where(at_target > 0.5, at_target, 1.0))
        loss = jnp.where(at_target > 0.5, sharp, jnp.log(z) + (shift - chunk.target_score))
        rest = jnp.where(own, chunk.weights * (others / z), 0.0)
        return jnp.where(own, loss, 0.0), chunk.weights / z, rest

    def losses(self) -> tuple[Array, ...]:
        """Return (weighted sum; loss, w / Z, shift and (1 - p_target) w of each real position), without gradients."""

        def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            total, *parts = carry
            chunk = self.at(i)
            shift = self.shift(chunk)
            loss, share, rest = self.finish(chunk, shift, self.others(chunk, shift))
            parts = [self.put(x, i, new) for x, new in zip(parts, (loss, share, shift, rest), strict=True)]
            return (total + jnp.sum(chunk.weights * loss), *parts)

        blank = self.empty((self.padded,))
        return lax.fori_loop(jnp.int32(0), self.n_chunks, body, (self.empty(()), blank, blank, blank, blank))

    def put(self, into: Array, i: Array, values: Array) -> Array:
        """Return ``into`` with the values of chunk i written."""
        start = (i * self.chunk,) + (jnp.int32(0),) * (into.ndim - 1)
        return lax.dynamic_update_slice(into, values, start)

    def single_pass(self) -> tuple[Array, Array, Array, Array]:
        """Return (weighted sum, d hidden, d vectors, loss of each position), holding the [c, V] exponentials of a chunk."""
        width = self.vectors.shape[1]
        first, size, n_tiles = self.tiles()
        starts = [first + j * size for j in range(n_tiles)]
        items = [self.vectors[s : s + size].astype(self.dtype) for s in starts]

        def body(i: Array, carry: Any) -> Any:
            total, losses, rests, hidden_bar, items_bar = carry
            chunk = self.at(i)
            shift = self.shift(chunk)
            products, others, pull = [], self.empty((self.chunk,)), self.empty((self.chunk, width))
            for start, tile in zip(starts, items, strict=True):
                drop = self.dropped(chunk, start, tile.shape[0])
                # Never true, but it makes a tile wait for the one before, so that their scores share memory.
                waiting = jnp.where(others[:, None] < 0, jnp.zeros((), self.dtype), chunk.operand)
                scores = self.scores(chunk._replace(operand=waiting), tile)
                p, row_sums = self.exponentials(scores, shift, drop)
                others = others + row_sums
                pull = pull + _product(p, tile)
                products.append(p)
            loss, share, rest = self.finish(chunk, shift, self.over_shards(others))
            push = (chunk.hidden * share[:, None]).astype(self.dtype).T
            items_bar = tuple(bar + _product(push, p) for bar, p in zip(items_bar, products, strict=True))
            return (
                total + jnp.sum(chunk.weights * loss),
                self.put(losses, i, loss),
                self.put(rests, i, rest),
                self.put(hidden_bar, i, pull * share[:, None]),
                items_bar,
            )

        blank = self.empty((self.padded,))
        start = (
            self.empty(()),
            blank,
            blank,
            self.empty((self.padded, width)),
            tuple(self.empty((width, tile.shape[0])) for tile in items),
        )
        total, losses, rests, hidden_bar, items_bar = lax.fori_loop(jnp.int32(0), self.n_chunks, body, start)
        before = [self.empty((width, first))] if first else []
        vectors_bar = jnp.concatenate([*before, *items_bar], axis=1).T
        return self.gather(total, hidden_bar, vectors_bar, losses, rests)

    def two_passes(self) -> tuple[Array, Array, Array, Array]:
        """Return the same as `single_pass`, computing the exponentials twice instead of holding them."""
        width = self.vectors.shape[1]
        _, size, n_tiles = self.tiles()
        total, losses, shares, shifts, rests = self.losses()

        def over_items(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            start, fresh, items = self.tile(j)

            def over_positions(i: Array, inner: tuple[Array, Array]) -> tuple[Array, Array]:
                hidden_bar, items_bar = inner
                chunk = self.at(i)
                share = lax.dynamic_slice(shares, (i * self.chunk,), (self.chunk,))
                shift = lax.dynamic_slice(shifts, (i * self.chunk,), (self.chunk,))
                drop = self.dropped(chunk, start, size, fresh)
                p, _ = self.exponentials(self.scores(chunk, items), shift, drop)
                push = (chunk.hidden * share[:, None]).astype(self.dtype).T
                now = lax.dynamic_slice(hidden_bar, (i * self.chunk, jnp.int32(0)), (self.chunk, width))
                bar = now + _product(p, items) * share[:, None]
                return self.put(hidden_bar, i, bar), items_bar + _product(push, p)

            hidden_bar, vectors_bar = carry
            inner = (hidden_bar, self.empty((width, size)))
            hidden_bar, items_bar = lax.fori_loop(jnp.int32(0), self.n_chunks, over_positions, inner)
            now = lax.dynamic_slice(vectors_bar, (start, jnp.int32(0)), (size, width))
            vectors_bar = lax.dynamic_update_slice(vectors_bar, now + items_bar.T, (start, jnp.int32(0)))
            return hidden_bar, vectors_bar

        start = (self.empty((self.padded, width)), self.empty((self.rows, width)))
        hidden_bar, vectors_bar = lax.fori_loop(jnp.int32(0), jnp.int32(n_tiles), over_items, start)

        return self.gather(total, hidden_bar, vectors_bar, losses, rests)

    def gather(
        self, total: Array, hidden_bar: Array, vectors_bar: Array, losses: Array, rests: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Add the contribution of the targets, in float32, and return positions to their places."""
        row = jnp.take(self.targets, self.order, mode="fill", fill_value=-1) - self.first_row
        target = jnp.where((row >= 0) & (row < self.rows), row, self.rows)
        vectors = jnp.take(self.vectors, target, axis=0, mode="fill", fill_value=0)
        hidden = jnp.take(self.hidden, self.order, axis=0, mode="fill", fill_value=0)
        hidden_bar = hidden_bar - vectors.astype(self.dtype).astype(jnp.float32) * rests[:, None]
        vectors_bar = vectors_bar.at[target].add(-hidden * rests[:, None], mode="drop")
        hidden_bar = jnp.take(hidden_bar, self.place, axis=0, mode="fill", fill_value=0)
        return total, hidden_bar, vectors_bar, jnp.take(losses, self.place, mode="fill", fill_value=0)


def _product(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


# Constants of `_exponential_by_bits`.
# 2**f = 1 + f (c1 + c2 f + ...) on [-1/2, 1/2], fitted for the least largest relative error: 2e-7 in float32.
_COEFFICIENTS = (0.693147, 0.24022242, 0.055507336, 0.009671513, 0.0013264727)
_ROUNDS_TO_INTEGER = 1.5 * 2**23  # added to a small whole number, leaves it in the low bits of the float
_LOWEST = -87.0  # exp of less is not a normal float32
_LOG2_E = 1.4426950408889634


def exponential(x: Array, drop: Array, dtype: str) -> Array:
    """Return ``exp(x)``, 0 where ``drop`` is set, in ``dtype`` ("float32" or "bfloat16"); for x at most 80.

    On a CPU the library's exponential is the most costly part of the loss, so a polynomial replaces it there. Its relative
    error is at most 2e-7 + 1e-7 |x| before rounding to ``dtype`` (no more than rounding x itself costs); below exp(-87) the
    result stays at that, 1e-38.
    """
    return lax.platform_dependent(
        x,
        drop,
        cpu=lambda x, drop: _exponential_by_bits(x, drop, dtype),
        default=lambda x, drop: jnp.where(drop, 0.0, jnp.exp(x)).astype(dtype),
    )


def _exponential_by_bits(x: Array, drop: Array, dtype: str) -> Array:
    """Return exp(x) as 2**k 2**f with k whole and f in [-1/2, 1/2].

    2**f is a polynomial; 2**k is added to the exponent's bits. Both are whole-number and fused multiply-add operations that
    the compiler vectorises. bfloat16 is rounded half up by adding half of its last place to the bits.
    """
    binary = jnp.maximum(x, _LOWEST) * np.float32(_LOG2_E)
    whole = jnp.round(binary)
    fraction = binary - whole
    value = jnp.full_like(x, np.float32(_COEFFICIENTS[-1]))
    for coefficient in _COEFFICIENTS[-2::-1]:
        value = value * fraction + np.float32(coefficient)
    value = value * fraction + np.float32(1.0)
    power = lax.bitcast_convert_type(whole + np.float32(_ROUNDS_TO_INTEGER), jnp.int32) << 23
    bits = jnp.where(drop, 0, lax.bitcast_convert_type(value, jnp.int32) + power)
    if dtype == "float32":
        return lax.bitcast_convert_type(bits, jnp.float32)
    halves = lax.bitcast_convert_type(bits + 0x8000, jnp.uint32) >> 16
    return lax.bitcast_convert_type(halves.astype(jnp.uint16), jnp.bfloat16)
