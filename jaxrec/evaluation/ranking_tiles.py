"""The compiled parts of scoring: what one device does with its rows and its items.

A device has a batch of rows R and a local part of the table, which it walks in tiles of ``item_chunk``
columns. The last tile is shifted back to stay inside the table, and the columns that it repeats are masked.
A score is always read
from the same product, never computed again another way: two ways differ in the last bit, and a target would
stand ahead of itself.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

#: top-k looks for new entrants in blocks of this many columns; `BLOCK_LEVELS` of them are examined before
#: all are.
BLOCK = 64
BLOCK_LEVELS = (4, 16)
_MINUS_INFINITY = -float("inf")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is fixed when a scoring program is compiled.

    Attributes:
      first_item: lowest candidate: 1, or 0 where padding is rankable (a quirk of older code).
      last_item: highest candidate, V.
      item_chunk: columns of a tile.
      zero_seen: seen items score 0 instead of being removed (a quirk of older code).
      mesh: axes ``data`` and ``item``, or None for one device.
    """

    first_item: int
    last_item: int
    item_chunk: int
    zero_seen: bool = False
    mesh: Mesh | None = None

    @property
    def axis(self) -> str | None:
        return None if self.mesh is None else "item"


class _Tiles:
    """Tiles of the local table against the rows of a batch.

    ``hidden`` [R, D] meets ``vectors`` [local items, D]; with ``vectors`` None, ``hidden`` [R, local items]
    is the scores.
    """

    def __init__(
        self, layout: Layout, hidden: Array, vectors: Array | None, bias: Array, struck: tuple[Array, Array]
    ):
        self.layout = layout
        self.hidden, self.vectors, self.bias = hidden, vectors, bias
        self.struck_rows, self.struck_columns = (part[0, 0] for part in struck)
        self.n_local = bias.shape[0]
        self.count = -(-self.n_local // layout.item_chunk)
        device = jnp.int32(0) if layout.axis is None else lax.axis_index(layout.axis).astype(jnp.int32)
        self.offset = device * self.n_local  # id of the first local row

    def start(self, tile: Array) -> Array:
        return jnp.minimum(tile * self.layout.item_chunk, self.n_local - self.layout.item_chunk)

    def ids(self, tile: Array) -> Array:
        """int32[C], the item of each column."""
        return self.offset + self.start(tile) + jnp.arange(self.layout.item_chunk, dtype=jnp.int32)

    def product(self, tile: Array) -> Array:
        """float32[R, C]: hidden · vectors without the bias, seen items struck."""
        start, width = self.start(tile), self.layout.item_chunk
        if self.vectors is None:
            scores = lax.dynamic_slice_in_dim(self.hidden, start, width, axis=1)
        else:
            scores = lax.dot_general(
                self.hidden,
                lax.dynamic_slice_in_dim(self.vectors, start, width),
                (((1,), (1,)), ((), ())),
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
        # Padding entries name a row that does not exist. Zero seen means zero after the bias is added.
        rows, columns = self.struck_rows[tile], self.struck_columns[tile]
        struck = -self.bias[start + columns] if self.layout.zero_seen else jnp.float32(_MINUS_INFINITY)
        return scores.at[rows, columns].set(struck, mode="drop")

    def bias_of(self, tile: Array) -> Array:
        """float32[C], -inf where the column is no candidate or was in the tile before."""
        ids = self.ids(tile)
        fresh = ids >= self.offset + tile * self.layout.item_chunk
        candidate = (ids >= self.layout.first_item) & (ids <= self.layout.last_item)
        bias = lax.dynamic_slice_in_dim(self.bias, self.start(tile), self.layout.item_chunk)
        return jnp.where(fresh & candidate, bias, _MINUS_INFINITY)

    def target_scores(self, product: Array, tile: Array, targets: Array) -> Array:
        """float32[R]: the target's score where it is a candidate of this tile, else -inf."""
        column = targets - self.offset - self.start(tile)
        inside = (column >= 0) & (column < self.layout.item_chunk)
        column = jnp.clip(column, 0, self.layout.item_chunk - 1)
        score = jnp.take_along_axis(product, column[:, None], axis=1)[:, 0] + self.bias_of(tile)[column]
        return jnp.where(inside, score, _MINUS_INFINITY)

    def ahead(self, product: Array, tile: Array, targets: Array, score: Array) -> Array:
        """int32[R]: how many items of this tile stand ahead of the target, whose score is given."""
        scores = product + self.bias_of(tile)[None, :]
        lower = self.ids(tile)[None, :] < targets[:, None]
        better = (scores > score[:, None]) | ((scores == score[:, None]) & lower)
        # Summed as float32, which the CPU does in vectors; exact because a tile has fewer than 2**24 columns.
        return better.astype(jnp.float32).sum(axis=1).astype(jnp.int32)


def _local_rank(tiles: _Tiles, targets: Array) -> Array:
    axis = tiles.layout.axis
    numbers = jnp.arange(tiles.count, dtype=jnp.int32)
    nowhere = jnp.full((tiles.hidden.shape[0],), _MINUS_INFINITY, jnp.float32)
    nobody = jnp.zeros((tiles.hidden.shape[0],), jnp.int32)
    if axis is not None:
        nowhere, nobody = lax.pcast((nowhere, nobody), (axis, "data"), to="varying")

    def find(score: Array, tile: Array) -> tuple[Array, None]:
        ids = tiles.ids(tile)
        here = ((targets >= ids[0]) & (targets <= ids[-1])).any()
        found = lax.cond(
            here, lambda: tiles.target_scores(tiles.product(tile), tile, targets), lambda: nowhere
        )
        return jnp.maximum(score, found), None

    def across_devices(score: Array) -> Array:
        return score if axis is None else lax.pmax(score, axis)

    if tiles.count == 1:  # one product serves both steps
        product = tiles.product(numbers[0])
        score = across_devices(tiles.target_scores(product, numbers[0], targets))
        ahead = tiles.ahead(product, numbers[0], targets, score)
    else:
        score = across_devices(lax.scan(find, nowhere, numbers)[0])
        ahead, _ = lax.scan(
            lambda ahead, tile: (ahead + tiles.ahead(tiles.product(tile), tile, targets, score), None),
            nobody,
            numbers,
        )
    return (ahead if axis is None else lax.psum(ahead, axis)) + 1


def _local_best(tiles: _Tiles, k: int) -> tuple[Array, Array]:
    n_rows, layout = tiles.hidden.shape[0], tiles.layout
    blocked = layout.item_chunk % BLOCK == 0 and layout.item_chunk // BLOCK > max(BLOCK_LEVELS)

    def merge(best: tuple[Array, Array], tile: Array) -> tuple[tuple[Array, Array], None]:
        scores = tiles.product(tile) + tiles.bias_of(tile)[None, :]
        ids = tiles.ids(tile)
        if not blocked:
            return _merge_tile(best, scores, ids), None
        # An item enters the list only by beating its last score, so only blocks whose maximum does are
        # examined: past the first tiles that is a few of them, and the full top-k of a tile costs more than
        # its product.
        peaks = scores.reshape(n_rows, -1, BLOCK).max(axis=2)
        entrants = (peaks > best[0][:, -1:]).sum(axis=1, dtype=jnp.int32).max()
        level = sum((entrants > m).astype(jnp.int32) for m in BLOCK_LEVELS)
        some = [partial(_merge_blocks, count=m) for m in BLOCK_LEVELS]
        return lax.switch(level, [*some, _merge_whole], best, scores, peaks, ids), None

    best = (jnp.full((n_rows, k), _MINUS_INFINITY, jnp.float32), jnp.zeros((n_rows, k), jnp.int32))
    if layout.axis is not None:
        best = lax.pcast(best, (layout.axis, "data"), to="varying")
    best, _ = lax.scan(merge, best, jnp.arange(tiles.count, dtype=jnp.int32))
    if layout.axis is not None:
        scores, ids = (lax.all_gather(part, layout.axis, axis=1, tiled=True) for part in best)
        best = _first(scores, ids, k)
    return best


def _merge_tile(best: tuple[Array, Array], scores: Array, ids: Array) -> tuple[Array, Array]:
    """The list after a tile: scores [R, C] of items ids [C]."""
    top, column = lax.top_k(scores, min(best[0].shape[1], scores.shape[1]))
    return _appended(best, top, ids[column])


def _merge_whole(best: tuple[Array, Array], scores: Array, peaks: Array, ids: Array) -> tuple[Array, Array]:
    return _merge_tile(best, scores, ids)


def _merge_blocks(
    best: tuple[Array, Array], scores: Array, peaks: Array, ids: Array, count: int
) -> tuple[Array, Array]:
    """The same from the ``count`` blocks with the highest peaks [R, C / BLOCK], which hold all that can
    enter.
    """
    n_rows = scores.shape[0]
    _, block = lax.top_k(peaks, count)
    block = jnp.sort(block, axis=1)  # back to the order of ids, on which ties are decided
    column = block[:, :, None] * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)[None, None, :]
    chosen = jnp.take_along_axis(scores.reshape(n_rows, -1, BLOCK), block[:, :, None], axis=1)
    return _appended(best, chosen.reshape(n_rows, -1), ids[column.reshape(n_rows, -1)])


def _appended(best: tuple[Array, Array], scores: Array, ids: Array) -> tuple[Array, Array]:
    ids = jnp.where(scores > _MINUS_INFINITY, ids, 0)
    scores, ids = jnp.concatenate([best[0], scores], axis=1), jnp.concatenate([best[1], ids], axis=1)
    return _first(scores, ids, best[0].shape[1])


def _first(scores: Array, ids: Array, k: int) -> tuple[Array, Array]:
    """The k best of candidates that stand in the order of their ids where scores are equal."""
    top, place = lax.top_k(scores, k)
    return top, jnp.take_along_axis(ids, place, axis=1)


@partial(jax.jit, static_argnames="layout")
def rank(
    layout: Layout,
    hidden: Array,
    vectors: Array | None,
    bias: Array,
    targets: Array,
    struck_rows: Array,
    struck_columns: Array,
) -> Array:
    """int32[R], the rank of each row's target; see `jaxrec.evaluation.ranking`."""

    def local(hidden: Any, vectors: Any, bias: Any, targets: Any, *struck: Any) -> Array:
        return _local_rank(_Tiles(layout, hidden, vectors, bias, struck), targets)

    arguments = (hidden, vectors, bias, targets, struck_rows, struck_columns)
    if layout.mesh is None:
        return local(*arguments)
    mapped = jax.shard_map(
        local, mesh=layout.mesh, in_specs=(*_SPECS, P("data"), *_STRUCK), out_specs=P("data")
    )
    return _everywhere(mapped(*arguments), layout.mesh)


@partial(jax.jit, static_argnames=("layout", "k"))
def best(
    layout: Layout,
    hidden: Array,
    vectors: Array | None,
    bias: Array,
    struck_rows: Array,
    struck_columns: Array,
    *,
    k: int,
) -> tuple[Array, Array]:
    """Scores float32[R, K] and items int32[R, K], best first; see `jaxrec.evaluation.ranking`."""

    def local(hidden: Any, vectors: Any, bias: Any, *struck: Any) -> tuple[Array, Array]:
        return _local_best(_Tiles(layout, hidden, vectors, bias, struck), k)

    arguments = (hidden, vectors, bias, struck_rows, struck_columns)
    if layout.mesh is None:
        return local(*arguments)
    # The merged lists are equal on every item shard, which the checker of varying axes cannot see.
    mapped = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(*_SPECS, *_STRUCK),
        out_specs=(P("data", None), P("data", None)),
        check_vma=False,
    )
    return _everywhere(mapped(*arguments), layout.mesh)


def _everywhere(values: Any, mesh: Mesh) -> Any:
    """A copy of a small result on every device, so that every process can read all of it."""
    return lax.with_sharding_constraint(values, NamedSharding(mesh, P()))


_SPECS = (P("data", None), P("item", None), P("item"))
_STRUCK = (P("data", "item", None, None), P("data", "item", None, None))
