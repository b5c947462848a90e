"""The compiled parts of scoring: what one device does with its rows and its items.

A device has a batch of rows R and a local part of the table, which it walks in tiles of ``item_chunk``
columns. The last tile is shifted back to stay inside the table, and the columns that it repeats are masked.
A score is always read from the same product, never computed again another way: two ways differ in the last
bit, and a target would rank ahead of itself.
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
from jaxtyping import Float, Int

from jaxrec.evaluation.tie_order import tie_keys
from jaxrec.sharding import DATA, ITEM

#: top-k looks for new entrants in blocks of this many columns.
BLOCK = 32
#: What a tile's entrants may fit into, the least work first: (a part of the rows, blocks of each). Past the first tiles few
#: rows have an entrant, and few blocks hold them.
MERGES = ((8, 2), (4, 4), (2, 4), (1, 8))
_MINUS_INFINITY = -float("inf")


@dataclasses.dataclass(frozen=True)
class ScoringSpec:
    """Static settings of a compiled scoring program.

    Attributes:
      first_item: lowest candidate: 1, or 0 where padding is rankable (a quirk of older code).
      last_item: highest candidate, V.
      item_chunk: columns of a tile.
      tie_seed: order of items with equal scores (`jaxrec.evaluation.tie_order`).
      zero_seen: seen items score 0 instead of being removed (a quirk of older code).
      mesh: axes ``data`` and ``item``, or None for one device.
    """

    first_item: int
    last_item: int
    item_chunk: int
    tie_seed: int = 0
    zero_seen: bool = False
    mesh: Mesh | None = None

    @property
    def axis(self) -> str | None:
        """Mesh axis that splits the items, or None."""
        return None if self.mesh is None else ITEM


class _Tiles:
    """Tiles of the local table against the rows of a batch.

    ``hidden`` [R, D] meets ``vectors`` [local items, D]; with ``vectors`` None, ``hidden`` [R, local items]
    is the scores.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        hidden: Array,
        vectors: Array | None,
        bias: Array,
        excluded: tuple[Array, Array],
    ):
        self.spec = spec
        self.hidden, self.vectors, self.bias = hidden, vectors, bias
        self.excluded_rows, self.excluded_columns = (part[0, 0] for part in excluded)
        self.n_local = bias.shape[0]
        self.count = -(-self.n_local // spec.item_chunk)
        device = jnp.int32(0) if spec.axis is None else lax.axis_index(spec.axis).astype(jnp.int32)
        self.offset = device * self.n_local  # id of the first local row

    def start(self, tile: Array) -> Array:
        return jnp.minimum(tile * self.spec.item_chunk, self.n_local - self.spec.item_chunk)

    def ids(self, tile: Array) -> Array:
        """int32[C], the item of each column."""
        return self.offset + self.start(tile) + jnp.arange(self.spec.item_chunk, dtype=jnp.int32)

    def product(self, tile: Array) -> Array:
        """float32[R, C]: hidden · vectors without the bias, seen items excluded."""
        start, width = self.start(tile), self.spec.item_chunk
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
        rows, columns = self.excluded_rows[tile], self.excluded_columns[tile]
        excluded = -self.bias[start + columns] if self.spec.zero_seen else jnp.float32(_MINUS_INFINITY)
        return scores.at[rows, columns].set(excluded, mode="drop")

    def bias_of(self, tile: Array) -> Array:
        """float32[C], -inf where the column is no candidate or was in the tile before."""
        ids = self.ids(tile)
        fresh = ids >= self.offset + tile * self.spec.item_chunk
        candidate = (ids >= self.spec.first_item) & (ids <= self.spec.last_item)
        bias = lax.dynamic_slice_in_dim(self.bias, self.start(tile), self.spec.item_chunk)
        return jnp.where(fresh & candidate, bias, _MINUS_INFINITY)

    def target_scores(self, product: Array, tile: Array, targets: Array) -> Array:
        """float32[R]: the target's score where it is a candidate of this tile, else -inf."""
        column = targets - self.offset - self.start(tile)
        inside = (column >= 0) & (column < self.spec.item_chunk)
        column = jnp.clip(column, 0, self.spec.item_chunk - 1)
        score = jnp.take_along_axis(product, column[:, None], axis=1)[:, 0] + self.bias_of(tile)[column]
        return jnp.where(inside, score, _MINUS_INFINITY)

    def ahead(self, product: Array, tile: Array, targets: Array, score: Array) -> Array:
        """int32[R], number of items of this tile that rank ahead of the target with the given score."""
        scores = product + self.bias_of(tile)[None, :]
        lower = self._signed_keys(self.ids(tile))[None, :] < self._signed_keys(targets)[:, None]
        better = (scores > score[:, None]) | ((scores == score[:, None]) & lower)
        # Summed as float32, which the CPU does in vectors; exact because a tile has fewer than 2**24 columns.
        return better.astype(jnp.float32).sum(axis=1).astype(jnp.int32)

    def _signed_keys(self, items: Array) -> Array:
        """Tie keys as int32 in the same order: comparing them costs a CPU no more than comparing ids, uint32 a half more."""
        keys = tie_keys(items, self.spec.tie_seed, jnp) ^ jnp.uint32(1 << 31)
        return lax.optimization_barrier(lax.bitcast_convert_type(keys, jnp.int32))


def _local_rank(tiles: _Tiles, targets: Array) -> Array:
    axis = tiles.spec.axis
    numbers = jnp.arange(tiles.count, dtype=jnp.int32)
    lowest = jnp.full((tiles.hidden.shape[0],), _MINUS_INFINITY, jnp.float32)
    none_ahead = jnp.zeros((tiles.hidden.shape[0],), jnp.int32)
    if axis is not None:
        lowest, none_ahead = lax.pcast((lowest, none_ahead), (axis, DATA), to="varying")

    def find(score: Array, tile: Array) -> tuple[Array, None]:
        ids = tiles.ids(tile)
        here = ((targets >= ids[0]) & (targets <= ids[-1])).any()
        target_score = lax.cond(
            here, lambda: tiles.target_scores(tiles.product(tile), tile, targets), lambda: lowest
        )
        return jnp.maximum(score, target_score), None

    def across_devices(score: Array) -> Array:
        return score if axis is None else lax.pmax(score, axis)

    if tiles.count == 1:  # one product serves both steps
        product = tiles.product(numbers[0])
        score = across_devices(tiles.target_scores(product, numbers[0], targets))
        ahead = tiles.ahead(product, numbers[0], targets, score)
    else:
        score = across_devices(lax.scan(find, lowest, numbers)[0])
        ahead, _ = lax.scan(
            lambda ahead, tile: (ahead + tiles.ahead(tiles.product(tile), tile, targets, score), None),
            none_ahead,
            numbers,
        )
    return (ahead if axis is None else lax.psum(ahead, axis)) + 1


def _local_top_k(tiles: _Tiles, k: int) -> tuple[Array, Array]:
    n_rows, spec = tiles.hidden.shape[0], tiles.spec
    blocked = spec.item_chunk % BLOCK == 0 and spec.item_chunk // BLOCK > max(count for _, count in MERGES)

    def merge(best: tuple[Array, Array], tile: Array) -> tuple[tuple[Array, Array], None]:
        scores = tiles.product(tile) + tiles.bias_of(tile)[None, :]
        ids = tiles.ids(tile)
        if not blocked:
            return _merge_tile(best, scores, ids, spec.tie_seed), None
        # An item enters the list only with a score at least as great as its last one, so only blocks whose
        # maximum is are examined, of rows that have one: the full top-k of a tile costs more than its product.
        peaks = scores.reshape(n_rows, -1, BLOCK).max(axis=2)
        enters = (peaks >= best[0][:, -1:]) & (peaks > _MINUS_INFINITY)
        entrants = enters.sum(axis=1, dtype=jnp.int32)
        rows, most = (entrants > 0).sum(dtype=jnp.int32), entrants.max()
        sizes = [(max(1, n_rows // part), count) for part, count in MERGES]
        fits = jnp.stack([(rows <= size) & (most <= count) for size, count in sizes] + [jnp.bool_(True)])
        some = [partial(_merge_blocks, size=size, count=count, seed=spec.tie_seed) for size, count in sizes]
        many = partial(_merge_peaks, seed=spec.tie_seed)
        return lax.switch(jnp.argmax(fits), [*some, many], best, scores, peaks, entrants, ids), None

    best = (jnp.full((n_rows, k), _MINUS_INFINITY, jnp.float32), jnp.zeros((n_rows, k), jnp.int32))
    if spec.axis is not None:
        best = lax.pcast(best, (spec.axis, DATA), to="varying")
    best, _ = lax.scan(merge, best, jnp.arange(tiles.count, dtype=jnp.int32))
    if spec.axis is not None:
        scores, ids = (lax.all_gather(part, spec.axis, axis=1, tiled=True) for part in best)
        best = _first(scores, ids, k, spec.tie_seed)
    return best


_Lists = tuple[Array, Array]


def _merge_tile(best: _Lists, scores: Array, ids: Array, seed: int) -> _Lists:
    """The list after a tile: scores [R, C] of items ids [C]."""
    return _appended(best, scores, jnp.broadcast_to(ids, scores.shape), seed)


def _merge_peaks(best: _Lists, scores: Array, peaks: Array, entrants: Array, ids: Array, seed: int) -> _Lists:
    """The list after a tile, from as many blocks as the list has items: those with the highest peaks.

    Before an item of any other block come their peaks, as many as the list has places. Where a peak ties with that of a
    block left out, this need not hold, and the whole tile is merged.
    """
    n_rows, k = best[0].shape
    whole = partial(_merge_tile, best, scores, ids, seed)
    if 2 * k * BLOCK > scores.shape[1]:
        return whole()
    highest = _top_k(peaks, k + 1)[0]
    tied = ((highest[:, -2] == highest[:, -1]) & (highest[:, -1] > _MINUS_INFINITY)).any()
    blocks = partial(_merge_blocks, best, scores, peaks, entrants, ids, n_rows, k, seed)
    return lax.cond(tied, whole, blocks)


def _merge_blocks(
    best: _Lists, scores: Array, peaks: Array, entrants: Array, ids: Array, size: int, count: int, seed: int
) -> _Lists:
    """The list after a tile, from the ``count`` blocks with the highest peaks [R, C / BLOCK] of rows with entrants.

    Args:
      best: the list before.
      scores: [R, C], of the items ``ids`` [C].
      peaks: [R, C / BLOCK].
      entrants: int32[R], blocks that may change the list of each row.
      ids: int32[C].
      size: rows that are merged: R, or as many as have entrants at most.
      count: blocks of a row.
      seed: order of equal scores.
    """
    n_rows = scores.shape[0]
    blocks = scores.reshape(n_rows, -1, BLOCK)
    if size == n_rows:
        block = lax.top_k(peaks, count)[1]
        entering = jnp.take_along_axis(blocks, block[:, :, None], axis=1)
        return _appended(best, entering.reshape(n_rows, -1), _columns(block) + ids[0], seed)
    # Where fewer rows have entrants, rows that do not exist follow: read anywhere, and written nowhere.
    rows = jnp.nonzero(entrants > 0, size=size, fill_value=n_rows)[0].astype(jnp.int32)
    values, items, row_peaks = (jnp.take(x, rows, axis=0, mode="clip") for x in (*best, peaks))
    block = lax.top_k(row_peaks, count)[1]
    entering = blocks.at[rows[:, None], block].get(mode="clip")
    merged = _appended((values, items), entering.reshape(size, -1), _columns(block) + ids[0], seed)
    return best[0].at[rows].set(merged[0], mode="drop"), best[1].at[rows].set(merged[1], mode="drop")


def _columns(block: Array) -> Array:
    """The columns int32[R, count * BLOCK] of blocks int32[R, count]."""
    inside = jnp.arange(BLOCK, dtype=jnp.int32)
    return (block[:, :, None] * BLOCK + inside[None, None, :]).reshape(block.shape[0], -1)


def _appended(best: _Lists, scores: Array, ids: Array, seed: int) -> _Lists:
    scores, ids = jnp.concatenate([best[0], scores], axis=1), jnp.concatenate([best[1], ids], axis=1)
    return _first(scores, ids, best[0].shape[1], seed)


def _first(scores: Array, ids: Array, k: int, seed: int) -> _Lists:
    """The k best of candidates [R, M]: greater score first, then lower tie key; ids are 0 beside -inf."""
    # One more than the list: a tie between its last item and the next decides who is in it.
    top, place = _top_k(scores, min(k + 1, scores.shape[1]))
    equal = (top[:, :-1] == top[:, 1:]) & (top[:, :-1] > _MINUS_INFINITY)
    items = jnp.take_along_axis(ids, place[:, :k], axis=1)

    def without_last() -> _Lists:
        return lax.cond(equal.any(), lambda: _by_key(top[:, :k], items, seed), lambda: (top[:, :k], items))

    best, items = lax.cond(
        equal[:, k - 1 :].any(), lambda: _first_of_ties(scores, ids, top[:, k - 1 : k], k, seed), without_last
    )
    return best, jnp.where(best > _MINUS_INFINITY, items, 0)


def best_items(scores: Array, k: int, tie_seed: int) -> tuple[Array, Array]:
    """Scores [R, K] and items int32[R, K] of the k best columns of ``scores`` [R, V+1], in the order of lists.

    Columns of -inf are no candidates; where no candidate is left, the item is 0.
    """
    ids = jnp.arange(scores.shape[1], dtype=jnp.int32)[None]
    return _first(scores, jnp.broadcast_to(ids, scores.shape), k, tie_seed)


def _top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` behind barriers, one for each result.

    Without them XLA's CPU compiler does not recognise the top-k where its results are sliced further, and sorts the whole
    rows, 25 times slower; with one barrier around both it aborts (a failed check in its TopkDecomposer).
    """
    top, place = lax.top_k(scores, k)
    return lax.optimization_barrier(top), lax.optimization_barrier(place)


def _by_key(scores: Array, items: Array, seed: int) -> _Lists:
    """Short lists in order: greater score first, then lower tie key."""
    negated, _, items = lax.sort((-scores, tie_keys(items, seed, jnp), items), dimension=1, num_keys=2)
    return -negated, items


def _first_of_ties(scores: Array, ids: Array, last: Array, k: int, seed: int) -> _Lists:
    """The k best where the last score [R, 1] of a list ties with others: all above it, and the lowest keys of those."""
    keys = tie_keys(ids, seed, jnp)
    above = scores > last
    tied = (scores == last) & (scores > _MINUS_INFINITY)
    missing = k - above.sum(axis=1, keepdims=True, dtype=jnp.int32)

    def halve(index: Array, bound: Array) -> Array:
        """Fix one bit of the least key that has as many tied keys at or below it as are missing."""
        bit = jnp.uint32(1) << (jnp.uint32(31) - index.astype(jnp.uint32))
        count = (tied & (keys <= bound + (bit - jnp.uint32(1)))).sum(axis=1, keepdims=True, dtype=jnp.int32)
        return jnp.where(count < missing, bound + bit, bound)

    bound = lax.fori_loop(0, 32, halve, jnp.zeros(last.shape, jnp.uint32))
    masked = jnp.where(above | (tied & (keys <= bound)), scores, _MINUS_INFINITY)
    best, place = _top_k(masked, k)
    return _by_key(best, jnp.take_along_axis(ids, place, axis=1), seed)


@partial(jax.jit, static_argnames="spec")
def rank(
    spec: ScoringSpec,
    hidden: Array,
    vectors: Array | None,
    bias: Array,
    targets: Array,
    excluded_rows: Array,
    excluded_columns: Array,
) -> Int[Array, " R"]:
    """int32[R], the rank of each row's target; see `jaxrec.evaluation.ranking`."""

    def local(hidden: Any, vectors: Any, bias: Any, targets: Any, *excluded: Any) -> Array:
        return _local_rank(_Tiles(spec, hidden, vectors, bias, excluded), targets)

    arguments = (hidden, vectors, bias, targets, excluded_rows, excluded_columns)
    if spec.mesh is None:
        return local(*arguments)
    mapped = jax.shard_map(local, mesh=spec.mesh, in_specs=(*_SPECS, P(DATA), *_EXCLUDED), out_specs=P(DATA))
    return _replicate(mapped(*arguments), spec.mesh)


@partial(jax.jit, static_argnames=("spec", "k"))
def top_k(
    spec: ScoringSpec,
    hidden: Array,
    vectors: Array | None,
    bias: Array,
    excluded_rows: Array,
    excluded_columns: Array,
    *,
    k: int,
) -> tuple[Float[Array, "R K"], Int[Array, "R K"]]:
    """Scores float32[R, K] and items int32[R, K], best first; see `jaxrec.evaluation.ranking`."""

    def local(hidden: Any, vectors: Any, bias: Any, *excluded: Any) -> tuple[Array, Array]:
        return _local_top_k(_Tiles(spec, hidden, vectors, bias, excluded), k)

    arguments = (hidden, vectors, bias, excluded_rows, excluded_columns)
    if spec.mesh is None:
        return local(*arguments)
    # The merged lists are equal on every item shard, which the checker of varying axes cannot see.
    mapped = jax.shard_map(
        local,
        mesh=spec.mesh,
        in_specs=(*_SPECS, *_EXCLUDED),
        out_specs=(P(DATA, None), P(DATA, None)),
        check_vma=False,
    )
    return _replicate(mapped(*arguments), spec.mesh)


def _replicate(values: Any, mesh: Mesh) -> Any:
    """A copy of a small result on every device, so that every process can read all of it."""
    return lax.with_sharding_constraint(values, NamedSharding(mesh, P()))


_SPECS = (P(DATA, None), P(ITEM, None), P(ITEM))
_EXCLUDED = (P(DATA, ITEM, None, None), P(DATA, ITEM, None, None))
