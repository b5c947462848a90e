"""The passes over positions and items that the exact cross-entropy of `jaxrec.objectives.catalogue` consists
of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jaxrec.objectives.exponential import SAFE_SHIFT, exponential


class Settings(NamedTuple):
    """What the kernel is compiled for."""

    dtype: str
    token_chunk: int
    item_tile: int
    single_pass: bool
    axis_name: str | None
    n_items: int  # over all shards


class _Chunk(NamedTuple):
    """A chunk of positions: hidden states in both precisions, weights, targets as rows of this shard, their
    scores.
    """

    hidden: Array
    operand: Array
    weights: Array
    target: Array  # -1: owned by another shard, or none
    target_score: Array


def _axes(*arrays: Array) -> frozenset[Any]:
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def equally_varying(*arrays: Array) -> tuple[Array, ...]:
    """Inside `shard_map`, arrays marked as varying over the union of their axes, so that JAX sums their
    gradients.
    """
    union = _axes(*arrays)
    return tuple(_varying(x, union) for x in arrays)


def _varying(x: Array, axes: frozenset[Any]) -> Array:
    missing = tuple(sorted(axes - _axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


@custom_vmap
def _same_for_all(x: Array) -> Array:
    """The identity; under `vmap` the maximum over the batch, so that loops and branches stay scalar."""
    return x


@_same_for_all.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return (jnp.max(x, axis=0), False) if in_batched[0] else (x, False)


class CataloguePass:
    """The work on one set of positions: real ones moved to the front, then chunk by chunk."""

    def __init__(self, hidden: Array, vectors: Array, targets: Array, weights: Array, settings: Settings):
        self.hidden, self.vectors, self.targets, self.weights = hidden, vectors, targets, weights
        self.settings = settings
        self.dtype = jnp.dtype(settings.dtype)
        self.chunk, self.rows = settings.token_chunk, vectors.shape[0]
        n = hidden.shape[0]
        self.padded = -(-n // self.chunk) * self.chunk
        self.axes = _axes(hidden)
        real = weights > 0
        counts = jnp.cumsum(real, dtype=jnp.int32)
        # A position's place among the real ones; out of range for others, which gathers fill and scatters
        # drop.
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
            self.largest_norm = _varying(lax.pmax(norms, settings.axis_name), self.axes)
            self.first_row = lax.axis_index(settings.axis_name).astype(jnp.int32) * self.rows

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Zeros that a loop may add to: marked, inside `shard_map`, as varying like what is added."""
        return _varying(jnp.zeros(shape, jnp.float32), self.axes)

    def at(self, i: Array) -> _Chunk:
        """Chunk i of the real positions; those beyond the last have weight 0 and a zero hidden state."""
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
        """The sum over the shards of the catalogue, still marked as varying."""
        if self.settings.axis_name is None:
            return x
        return _varying(lax.psum(x, self.settings.axis_name), self.axes)

    def tiles(self) -> tuple[int, int, int]:
        """(first candidate row, rows of a tile, number of tiles); row 0 is no candidate."""
        first = 0 if self.settings.axis_name is not None else 1
        size = max(1, min(self.settings.item_tile, self.rows - first))
        return first, size, -(-(self.rows - first) // size)

    def scores(self, chunk: _Chunk, items: Array) -> Array:
        return lax.dot_general(
            chunk.operand, items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

    def dropped(self, chunk: _Chunk, start: Any, size: int, from_row: Any = None) -> Array:
        """Which of the scores [c, size] are no other candidates: the target, padding, or rows before
        ``from_row``.
        """
        row = start + jnp.arange(size, dtype=jnp.int32)[None, :]
        drop = row == chunk.target[:, None]
        if from_row is not None:
            drop = drop | (row < from_row)
        if self.settings.axis_name is not None:
            item = row + self.first_row
            drop = drop | (item == 0) | (item > self.settings.n_items)
        return drop

    def tile(self, j: Array) -> tuple[Array, Array, Array]:
        """Tile j for loops: (its first row, the first row that no tile before it had, its vectors)."""
        first, size, _ = self.tiles()
        fresh = first + j * size
        start = jnp.minimum(fresh, self.rows - size)
        items = lax.dynamic_slice(self.vectors, (start, jnp.int32(0)), (size, self.vectors.shape[1]))
        return start, fresh, items.astype(self.dtype)

    def shift(self, chunk: _Chunk) -> Array:
        """m: a bound on the scores that keeps exp(s - m) finite, and Z clear of underflow.

        |h| max|e| bounds every score. Where it is within 2 SAFE_SHIFT of the target's score, m follows
        without a look at the scores; else the largest score is searched for, at the price of one more matrix
        product.
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
            shift = _varying(lax.pmax(shift, self.settings.axis_name), self.axes)
        return shift

    def exponentials(self, scores: Array, shift: Array, drop: Array) -> tuple[Array, Array]:
        """P in the precision of the products, and its row sums in float32."""
        p = exponential(scores - shift[:, None], drop, self.settings.dtype)
        return p, jnp.sum(p.astype(jnp.float32), axis=1)

    def others(self, chunk: _Chunk, shift: Array) -> Array:
        """Σ P over all items but the target, tile by tile."""
        _, size, n_tiles = self.tiles()

        def body(j: Array, total: Array) -> Array:
            start, fresh, items = self.tile(j)
            drop = self.dropped(chunk, start, size, fresh)
            return total + self.exponentials(self.scores(chunk, items), shift, drop)[1]

        return self.over_shards(
            lax.fori_loop(jnp.int32(0), jnp.int32(n_tiles), body, self.empty((self.chunk,)))
        )

    def finish(self, chunk: _Chunk, shift: Array, others: Array) -> tuple[Array, Array, Array]:
        """(loss of each position that this shard owns, w / Z, (1 - p_target) w of those owned)."""
        own = chunk.target >= 0
        at_target = jnp.exp(chunk.target_score - shift)
        z = others + at_target
        sharp = jnp.log1p(others / jnp.where(at_target > 0.5, at_target, 1.0))
        loss = jnp.where(at_target > 0.5, sharp, jnp.log(z) + (shift - chunk.target_score))
        rest = jnp.where(own, chunk.weights * (others / z), 0.0)
        return jnp.where(own, loss, 0.0), chunk.weights / z, rest

    def losses(self) -> tuple[Array, ...]:
        """(weighted sum; loss, w / Z, shift and (1 - p_target) w of each real position), without a
        gradient.
        """

        def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            total, *parts = carry
            chunk = self.at(i)
            shift = self.shift(chunk)
            loss, share, rest = self.finish(chunk, shift, self.others(chunk, shift))
            parts = [self.put(x, i, new) for x, new in zip(parts, (loss, share, shift, rest), strict=True)]
            return (total + jnp.sum(chunk.weights * loss), *parts)

        each = self.empty((self.padded,))
        return lax.fori_loop(jnp.int32(0), self.n_chunks, body, (self.empty(()), each, each, each, each))

    def put(self, into: Array, i: Array, values: Array) -> Array:
        start = (i * self.chunk,) + (jnp.int32(0),) * (into.ndim - 1)
        return lax.dynamic_update_slice(into, values, start)

    def single_pass(self) -> tuple[Array, Array, Array, Array]:
        """(weighted sum, d hidden, d vectors, loss of each position), with [c, V] exponentials held for a
        chunk.
        """
        width = self.vectors.shape[1]
        first, size, n_tiles = self.tiles()
        starts = [first + j * size for j in range(n_tiles)]
        items = [self.vectors[s : s + size].astype(self.dtype) for s in starts]

        def body(i: Array, carry: Any) -> Any:
            total, losses, rests, hidden_bar, items_bar = carry
            chunk = self.at(i)
            shift = self.shift(chunk)
            held, others, pull = [], self.empty((self.chunk,)), self.empty((self.chunk, width))
            for start, tile in zip(starts, items, strict=True):
                drop = self.dropped(chunk, start, tile.shape[0])
                # Never true, but it makes a tile wait for the one before, so that their scores share memory.
                waiting = jnp.where(others[:, None] < 0, jnp.zeros((), self.dtype), chunk.operand)
                scores = self.scores(chunk._replace(operand=waiting), tile)
                p, row_sums = self.exponentials(scores, shift, drop)
                others = others + row_sums
                pull = pull + _product(p, tile)
                held.append(p)
            loss, share, rest = self.finish(chunk, shift, self.over_shards(others))
            push = (chunk.hidden * share[:, None]).astype(self.dtype).T
            items_bar = tuple(bar + _product(push, p) for bar, p in zip(items_bar, held, strict=True))
            return (
                total + jnp.sum(chunk.weights * loss),
                self.put(losses, i, loss),
                self.put(rests, i, rest),
                self.put(hidden_bar, i, pull * share[:, None]),
                items_bar,
            )

        each = self.empty((self.padded,))
        start = (
            self.empty(()),
            each,
            each,
            self.empty((self.padded, width)),
            tuple(self.empty((width, tile.shape[0])) for tile in items),
        )
        total, losses, rests, hidden_bar, items_bar = lax.fori_loop(jnp.int32(0), self.n_chunks, body, start)
        before = [self.empty((width, first))] if first else []
        vectors_bar = jnp.concatenate([*before, *items_bar], axis=1).T
        return self.gather(total, hidden_bar, vectors_bar, losses, rests)

    def two_passes(self) -> tuple[Array, Array, Array, Array]:
        """As `single_pass`, for catalogues of which a chunk's exponentials cannot be held: they are computed
        again.
        """
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
        """Add what the targets contribute, in float32, and put the positions back where they came from."""
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
