"""The compiled parts of scoring: what one device does with its rows and its items.

Every function here sees one batch of rows R and a local part of the table, walked in tiles of ``item_chunk`` rows. The last
tile is shifted back to stay inside the table, and the columns that it repeats are masked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

#: Seen items are struck from a tile in blocks of this many.
STRIKE_BLOCK = 1024

_MINUS_INFINITY = -float("inf")


def struck_width(count: int) -> int:
    """Length of the padded lists of struck items: whole blocks, a power of two of them, so that few programs are built.

    One spare block lets a block start anywhere before the end."""
    blocks = -(-count // STRIKE_BLOCK)
    return STRIKE_BLOCK * (1 + (1 << (blocks - 1).bit_length() if blocks > 0 else 0))


class _Tiles:
    """Tiles of the local table against the rows of a batch; ``offset`` is the id of the first local row."""

    def __init__(
        self,
        hidden: Array,
        vectors: Array,
        bias: Array,
        offset: Array,
        n_items: int,
        item_chunk: int,
        struck: Any,
    ):
        self.hidden, self.vectors, self.bias = hidden, vectors, bias
        self.offset, self.n_items, self.item_chunk = offset, n_items, item_chunk
        self.struck_rows, self.struck_columns, self.struck_offsets = struck
        self.n_local = vectors.shape[0]
        self.count = -(-self.n_local // item_chunk)

    def start(self, tile: Array) -> Array:
        return jnp.minimum(tile * self.item_chunk, self.n_local - self.item_chunk)

    def ids(self, tile: Array) -> Array:
        """int32[C], the item of each column."""
        return self.offset + self.start(tile) + jnp.arange(self.item_chunk, dtype=jnp.int32)

    def product(self, tile: Array) -> Array:
        """float32[R, C]: hidden · vectors, without the bias."""
        block = lax.dynamic_slice_in_dim(self.vectors, self.start(tile), self.item_chunk)
        return lax.dot_general(
            self.hidden,
            block,
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    def bias_of(self, tile: Array) -> Array:
        """float32[C], -inf where the column is no candidate or was in the tile before."""
        ids = self.ids(tile)
        fresh = (ids >= 1) & (ids <= self.n_items) & (ids >= self.offset + tile * self.item_chunk)
        bias = lax.dynamic_slice_in_dim(self.bias, self.start(tile), self.item_chunk)
        return jnp.where(fresh, bias, _MINUS_INFINITY)

    def strike(self, scores: Array, tile: Array) -> Array:
        """-inf on the seen items of this tile."""
        first, last = self.struck_offsets[tile], self.struck_offsets[tile + 1]

        def strike_block(block: Array, scores: Array) -> Array:
            at = first + block * STRIKE_BLOCK
            rows = lax.dynamic_slice_in_dim(self.struck_rows, at, STRIKE_BLOCK)
            columns = lax.dynamic_slice_in_dim(self.struck_columns, at, STRIKE_BLOCK)
            here = at + jnp.arange(STRIKE_BLOCK, dtype=jnp.int32) < last
            rows = jnp.where(here, rows, scores.shape[0])
            return scores.at[rows, columns].set(_MINUS_INFINITY, mode="drop")

        n_blocks = (last - first + STRIKE_BLOCK - 1) // STRIKE_BLOCK
        return lax.fori_loop(jnp.int32(0), n_blocks, strike_block, scores)

    def target_scores(self, product: Array, tile: Array, targets: Array) -> Array:
        """float32[R]: the target's score where it is a candidate of this tile, else -inf."""
        column = targets - self.offset - self.start(tile)
        inside = (column >= 0) & (column < self.item_chunk)
        column = jnp.clip(column, 0, self.item_chunk - 1)
        score = jnp.take_along_axis(product, column[:, None], axis=1)[:, 0] + self.bias_of(tile)[column]
        return jnp.where(inside, score, _MINUS_INFINITY)

    def ahead(self, product: Array, tile: Array, targets: Array, score: Array) -> Array:
        """int32[R]: how many items of this tile stand ahead of the target. ``product`` is struck already."""
        scores = product + self.bias_of(tile)[None, :]
        lower = self.ids(tile)[None, :] < targets[:, None]
        better = (scores > score[:, None]) | ((scores == score[:, None]) & lower)
        # Summed as float32, which the CPU does in vectors; exact because a tile has far fewer than 2**24 columns.
        return better.astype(jnp.float32).sum(axis=1).astype(jnp.int32)


def _local_rank(tiles: _Tiles, targets: Array, axis: str | None) -> Array:
    numbers = jnp.arange(tiles.count, dtype=jnp.int32)
    n_rows = tiles.hidden.shape[0]

    def find(score: Array, tile: Array) -> tuple[Array, None]:
        here = (targets >= tiles.ids(tile)[0]) & (targets <= tiles.ids(tile)[-1])
        found = lax.cond(
            here.any(),
            lambda: tiles.target_scores(tiles.product(tile), tile, targets),
            lambda: nothing,
        )
        return jnp.maximum(score, found), None

    def count(ahead: Array, tile: Array) -> tuple[Array, None]:
        product = tiles.strike(tiles.product(tile), tile)
        return ahead + tiles.ahead(product, tile, targets, score), None

    nothing = jnp.full((n_rows,), _MINUS_INFINITY, jnp.float32)
    zero = jnp.zeros((n_rows,), jnp.int32)
    if axis is not None:
        nothing, zero = lax.pcast((nothing, zero), (axis, "data"), to="varying")
    if tiles.count == 1:
        product = tiles.product(numbers[0])
        score = tiles.target_scores(product, numbers[0], targets)
        score = score if axis is None else lax.pmax(score, axis)
        ahead = tiles.ahead(tiles.strike(product, numbers[0]), numbers[0], targets, score)
    else:
        score, _ = lax.scan(find, nothing, numbers)
        score = score if axis is None else lax.pmax(score, axis)
        ahead, _ = lax.scan(count, zero, numbers)
    ahead = ahead if axis is None else lax.psum(ahead, axis)
    return ahead + 1


def _local_best(tiles: _Tiles, k: int, axis: str | None) -> tuple[Array, Array]:
    n_rows = tiles.hidden.shape[0]

    def merge(best: tuple[Array, Array], tile: Array) -> tuple[tuple[Array, Array], None]:
        scores = tiles.strike(tiles.product(tile), tile) + tiles.bias_of(tile)[None, :]
        width = min(k, tiles.item_chunk)
        top, column = lax.top_k(scores, width)
        ids = jnp.where(top > _MINUS_INFINITY, tiles.ids(tile)[column], 0)
        return _merge((jnp.concatenate([best[0], top], 1), jnp.concatenate([best[1], ids], 1)), k), None

    best = (jnp.full((n_rows, k), _MINUS_INFINITY, jnp.float32), jnp.zeros((n_rows, k), jnp.int32))
    if axis is not None:
        best = lax.pcast(best, (axis, "data"), to="varying")
    best, _ = lax.scan(merge, best, jnp.arange(tiles.count, dtype=jnp.int32))
    if axis is not None:
        gathered = tuple(lax.all_gather(part, axis, axis=1, tiled=True) for part in best)
        best = _merge((gathered[0], gathered[1]), k)
    return best


def _merge(candidates: tuple[Array, Array], k: int) -> tuple[Array, Array]:
    """The k best of candidates that are in the order of their ids where scores are equal."""
    top, place = lax.top_k(candidates[0], k)
    return top, jnp.take_along_axis(candidates[1], place, axis=1)


@partial(jax.jit, static_argnames=("n_items", "item_chunk", "mesh"))
def rank(
    hidden: Array,
    vectors: Array,
    bias: Array,
    targets: Array,
    struck_rows: Array,
    struck_columns: Array,
    struck_offsets: Array,
    *,
    n_items: int,
    item_chunk: int,
    mesh: Mesh | None,
) -> Array:
    """int32[R], the rank of each row's target; see `jaxrec.evaluation.scoring`."""

    def local(hidden: Any, vectors: Any, bias: Any, targets: Any, *struck: Any) -> Array:
        axis = None if mesh is None else "item"
        tiles = _tiles(hidden, vectors, bias, struck, n_items, item_chunk, axis)
        return _local_rank(tiles, targets, axis)

    arguments = (hidden, vectors, bias, targets, struck_rows, struck_columns, struck_offsets)
    if mesh is None:
        return local(*arguments)
    by_device = P("data", "item", None)
    in_specs = (P("data", None), P("item", None), P("item"), P("data"), by_device, by_device, by_device)
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=P("data"))(*arguments)


@partial(jax.jit, static_argnames=("k", "n_items", "item_chunk", "mesh"))
def best(
    hidden: Array,
    vectors: Array,
    bias: Array,
    struck_rows: Array,
    struck_columns: Array,
    struck_offsets: Array,
    *,
    k: int,
    n_items: int,
    item_chunk: int,
    mesh: Mesh | None,
) -> tuple[Array, Array]:
    """Scores float32[R, K] and items int32[R, K], best first; see `jaxrec.evaluation.scoring`."""

    def local(hidden: Any, vectors: Any, bias: Any, *struck: Any) -> tuple[Array, Array]:
        axis = None if mesh is None else "item"
        return _local_best(_tiles(hidden, vectors, bias, struck, n_items, item_chunk, axis), k, axis)

    arguments = (hidden, vectors, bias, struck_rows, struck_columns, struck_offsets)
    if mesh is None:
        return local(*arguments)
    by_device = P("data", "item", None)
    in_specs = (P("data", None), P("item", None), P("item"), by_device, by_device, by_device)
    out_specs = (P("data", None), P("data", None))
    # The gathered lists are equal on every item shard, which the checker of varying axes cannot see.
    mapped = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return mapped(*arguments)


def _tiles(
    hidden: Array, vectors: Array, bias: Array, struck: Any, n_items: int, item_chunk: int, axis: str | None
) -> _Tiles:
    offset = jnp.int32(0) if axis is None else lax.axis_index(axis).astype(jnp.int32) * vectors.shape[0]
    return _Tiles(hidden, vectors, bias, offset, n_items, item_chunk, [part[0, 0] for part in struck])
