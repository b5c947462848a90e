"""Exact ranks and exact top-k over the whole catalogue, in float32, streamed in chunks of items.

One batch of rows meets one chunk of items at a time, so memory is ``row_chunk * item_chunk`` scores whatever
the size of the catalogue, and the chunk is still in the cache when it is counted. Equal scores are ordered by
`jaxrec.evaluation.tie_order`. A rank and a list come from the same product of the same shape, so a target has
rank r if and only if it has place r in the list; a target that is excluded is in no list, and its rank is
`MISSED`.

On a mesh with axes ``data`` and ``item`` every device does this for its rows and its items; ranks are then
summed over ``item``, and k candidates per device are gathered and merged.
"""

from __future__ import annotations

import dataclasses
import functools
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from jaxrec.errors import ConfigError, DataError, NonFiniteError
from jaxrec.evaluation import parallel, ranking_tiles
from jaxrec.evaluation.encode import rounded_up
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.seen import SeenItems, as_seen
from jaxrec.nn.item_table import ItemTable
from jaxrec.sharding import DATA, ITEM

#: Rows of one tile of scores.
ROW_CHUNK = 512
#: Items of one tile that are chosen by themselves: at most 8 MiB of float32 with its rows, which stays in the cache of a CPU
#: core complex. A catalogue that fits is one tile; in a larger one a CPU is faster with half of it.
ITEM_CHUNK = 4096
#: Least number of removed scores per tile that a program is compiled for.
LEAST_EXCLUDED = 64


class TopK(NamedTuple):
    """Lists of items, best first.

    Attributes:
      scores: float32[E, K], -inf where no candidate is left.
      items: int32[E, K], 0 where no candidate is left.
    """

    scores: Float[np.ndarray, "E K"]
    items: Int[np.ndarray, "E K"]


@dataclasses.dataclass(frozen=True)
class CandidateTable:
    """An item table that was checked and placed for scoring, built once by `candidate_table` for many calls.

    Attributes:
      vectors: float32[padded rows, D], split over ``item`` on a mesh; None = the states are the scores.
      bias: float32[padded rows].
      n_items: V.
      item_chunk: items of one tile on one device.
      tie_seed: order of items with equal scores.
      mesh: axes ``data`` and ``item``, or None for one device.
      largest: bound on the length of ``vectors`` rows (for the overflow check) and on ``bias``.
      size_step: numbers of removed scores are rounded up to `LEAST_EXCLUDED` times a power of it; a larger one makes
        calls of many sizes share fewer programs.
    """

    vectors: Array | None
    bias: Array
    n_items: int
    item_chunk: int
    tie_seed: int
    mesh: Mesh | None
    largest: tuple[float, float]
    size_step: int = 2

    @property
    def data_shards(self) -> int:
        """Devices that share the rows of a batch."""
        return self.mesh.shape[DATA] if self.mesh is not None else 1

    @property
    def item_shards(self) -> int:
        """Devices that share the items."""
        return self.mesh.shape[ITEM] if self.mesh is not None else 1

    @functools.cached_property
    def turned(self) -> Array | None:
        """``vectors`` as float32[D, padded rows], made once: a CPU would turn them round for each of many small products."""
        return None if self.vectors is None else jnp.asarray(self.vectors.T)

    @property
    def local_items(self) -> int:
        """Table rows on one device."""
        return self.bias.shape[0] // self.item_shards


def candidate_table(
    table: ItemTable | CandidateTable,
    *,
    item_chunk: int = 0,
    mesh: Mesh | None = None,
    tie_seed: int = 0,
) -> CandidateTable:
    """Check a table and place it for scoring.

    Args:
      table: vectors [V+1, D], bias [V+1] or None; row 0 is padding and never a candidate. A `CandidateTable`
        passes through.
      item_chunk: items of one tile, more memory with fewer and larger products; 0 = automatic.
      mesh: axes ``data`` and ``item`` (both are needed; either may have size 1), or None: that on which the
        table lies, if any.
      tie_seed: see `jaxrec.evaluation.tie_order`.

    Raises:
      NonFiniteError: the table holds NaN or infinity.
      ConfigError: ``item_chunk`` is below 0, or the mesh lacks an axis.
    """
    if isinstance(table, CandidateTable):
        return table
    if item_chunk < 0:
        raise ConfigError(f"item_chunk must be at least 1, or 0 for automatic, got {item_chunk}")
    if mesh is not None and set(mesh.axis_names) != {DATA, ITEM}:
        raise ConfigError(f"mesh must have the axes 'data' and 'item', got {mesh.axis_names}")
    if table.shards is not None:
        mesh = table.shards.mesh
    vectors = jnp.asarray(table.vectors, jnp.float32)
    bias = (
        np.zeros((vectors.shape[0],), np.float32)
        if table.bias is None
        else jnp.asarray(table.bias, jnp.float32)
    )
    largest = _largest(vectors, "the item table's vectors"), _largest(bias, "the item table's bias")
    n_items = table.n_items
    vectors, bias = (vectors, jnp.asarray(bias)) if mesh is None else _shard(vectors, bias, mesh)
    local = vectors.shape[0] // (1 if mesh is None else mesh.shape[ITEM])
    return CandidateTable(vectors, bias, n_items, tile_items(local, item_chunk), tie_seed, mesh, largest)


def tile_items(rows: int, item_chunk: int) -> int:
    """Items of a tile of a table of ``rows``: ``item_chunk`` at most, or with 0 what is fast here."""
    if not item_chunk:
        item_chunk = ITEM_CHUNK if rows <= ITEM_CHUNK or jax.default_backend() != "cpu" else ITEM_CHUNK // 2
    return min(item_chunk, rows)


def score_table(n_items: int, *, item_chunk: int = 0, tie_seed: int = 0) -> CandidateTable:
    """For scores that are no product: the "hidden states" are the scores float32[E, V+1] themselves."""
    bias = jnp.zeros((n_items + 1,), jnp.float32)
    return CandidateTable(
        None, bias, n_items, tile_items(n_items + 1, item_chunk), tie_seed, None, (0.0, 0.0)
    )


@partial(jax.jit, static_argnames="mesh")
def _shard(vectors: Array, bias: Array, mesh: Mesh) -> tuple[Array, Array]:
    """Pad the table to a multiple of the item shards and place each part; rows above V are masked by their id."""
    extra = -vectors.shape[0] % mesh.shape[ITEM]
    padded = jnp.pad(vectors, ((0, extra), (0, 0))), jnp.pad(bias, (0, extra))
    place = (NamedSharding(mesh, P(ITEM, None)), NamedSharding(mesh, P(ITEM)))
    result: tuple[Array, Array] = lax.with_sharding_constraint(padded, place)
    return result


@jax.jit
def _largest_magnitude(x: Array) -> Array:
    return jnp.max(jnp.abs(x), initial=jnp.float32(0))


def _largest(x: Any, name: str) -> float:
    """The largest magnitude in an array on the device, or on the host, where no program is compiled for its shape."""
    if isinstance(x, np.ndarray):
        largest = float(np.maximum(x.max(initial=0), -x.min(initial=0)))
    else:
        largest = float(_largest_magnitude(x))
    if not np.isfinite(largest):
        raise NonFiniteError(
            f"{name} must be finite to be ranked, got {largest}: the model diverged, or its parameters are "
            "damaged; restore an earlier checkpoint"
        )
    return largest


def _check_scores_finite(hidden: Any, items: CandidateTable) -> None:
    """Scores of finite operands are finite unless they overflow: |h·v + b| <= D max|h| max|v| + max|b|."""
    on_host = isinstance(hidden, np.ndarray)
    states = hidden.astype(np.float32, copy=False) if on_host else jnp.asarray(hidden, jnp.float32)
    largest = _largest(states, "hidden states")
    if not hidden.shape[-1] * largest * items.largest[0] + items.largest[1] < float(np.finfo(np.float32).max):
        raise NonFiniteError(
            f"scores must fit in float32, got hidden states up to {largest:.3g} and item vectors up to "
            f"{items.largest[0]:.3g}: the model diverged; restore an earlier checkpoint"
        )


def rank_targets(
    hidden: Any,
    table: ItemTable | CandidateTable,
    targets: Any,
    seen: Any = None,
    *,
    item_chunk: int = 0,
    row_chunk: int = ROW_CHUNK,
    mesh: Mesh | None = None,
    seen_rule: Literal["remove", "zero"] = "remove",
    rank_padding: bool = False,
) -> Int[np.ndarray, " E"]:
    """Rank of one target per row among all items: 1 + #(greater score) + #(equal score and lower tie key).

    Args:
      hidden: float[E, D].
      table: the items; see `candidate_table`.
      targets: int[E], ids 1..V.
      seen: `SeenItems`, padded int[E, S] with 0 = none, or None. A row's target among them is `MISSED`.
      item_chunk: items of one tile, 0 = automatic (ignored for a `CandidateTable`).
      row_chunk: rows of one tile and device; a tile takes ``4 * row_chunk * item_chunk`` bytes.
      mesh: see `candidate_table` (ignored for a `CandidateTable`).
      seen_rule: "remove", or "zero": seen items, a seen target too, score 0 and stay (see `protocols`).
      rank_padding: item 0 is a candidate (see `protocols`).

    Returns:
      int32[E], 1 = best; `MISSED` for a target that is excluded.

    Raises:
      NonFiniteError: hidden states or the table hold NaN or infinity, or a score may overflow.
      DataError: targets or seen items outside 1..V, or lengths that differ.
    """
    items = candidate_table(table, item_chunk=item_chunk, mesh=mesh)
    targets = np.asarray(targets, np.int32)
    n_rows = len(hidden)
    _check_rows(hidden, items, row_chunk)
    if targets.shape != (n_rows,):
        raise DataError(
            f"targets must hold one item for each of the {n_rows} hidden states, got shape {targets.shape}"
        )
    check_targets(targets, items.n_items)
    seen = as_seen(seen, n_rows, items.n_items)
    _check_scores_finite(hidden, items)
    # Rows sorted by target: the tile that holds the target is computed twice, and then a batch has few such
    # tiles.
    order = np.argsort(targets, kind="stable")
    ranks = np.empty(n_rows, np.int32)
    spec = _scoring_spec(items, zero_seen=seen_rule == "zero", first_item=0 if rank_padding else 1)
    batches = _row_batches(order, items, row_chunk)

    def rank(batch: np.ndarray) -> Array:
        excluded = _excluded(seen, batch, items)
        batch_targets = np.where(batch >= 0, targets[batch], 1).astype(np.int32)
        states = _take_rows(hidden, batch)
        return ranking_tiles.rank(spec, states, items.vectors, items.bias, batch_targets, *excluded)

    results = parallel.map_batches(rank, [batch for _, batch in batches], parallel.workers())
    for (rows, _), out in zip(batches, results, strict=True):
        ranks[rows] = np.asarray(out)[: len(rows)]
    if seen_rule == "remove":
        ranks[seen.holds(targets)] = MISSED
    return ranks


def check_targets(targets: Int[np.ndarray, " E"], n_items: int) -> None:
    """Reject targets that are no items.

    Raises:
      DataError: targets outside 1..V.
    """
    if len(targets) and (targets.min() < 1 or targets.max() > n_items):
        raise DataError(
            f"targets must be item ids from 1 to {n_items}, got {targets.min()} to {targets.max()}: "
            "leave out cases without a target, and use the table of the dataset that the cases come from"
        )


def check_list_length(k: int, n_items: int, option: str = "k") -> None:
    """Refuse a length ``k`` of lists, given as ``option``, that a catalogue of ``n_items`` cannot have.

    Raises:
      ConfigError: it is below 1 or above the number of items.
    """
    if not 1 <= k <= n_items:
        raise ConfigError(f"{option} must be from 1 to the catalogue's {n_items} items, got {k}")


def top_k(
    hidden: Any,
    table: ItemTable | CandidateTable,
    k: int,
    seen: Any = None,
    *,
    item_chunk: int = 0,
    row_chunk: int = ROW_CHUNK,
    mesh: Mesh | None = None,
) -> TopK:
    """Find the k best items of each row, best first.

    Args:
      hidden: float[E, D].
      table: the items; see `candidate_table`.
      k: length of the lists, from 1 to V.
      seen: items that are no candidates; see `rank_targets`.
      item_chunk: see `rank_targets`.
      row_chunk: see `rank_targets`.
      mesh: see `rank_targets`.

    Returns:
      Scores and items; a row with fewer than K candidates left ends with score -inf, item 0.

    Raises:
      ConfigError: ``k`` is below 1 or above what the catalogue holds.
      NonFiniteError, DataError: as in `rank_targets`.
    """
    items = candidate_table(table, item_chunk=item_chunk, mesh=mesh)
    n_rows = len(hidden)
    _check_rows(hidden, items, row_chunk)
    check_list_length(k, items.n_items)
    seen = as_seen(seen, n_rows, items.n_items)
    _check_scores_finite(hidden, items)
    scores = np.empty((n_rows, k), np.float32)
    ids = np.empty((n_rows, k), np.int32)
    spec, batches = _scoring_spec(items), _row_batches(np.arange(n_rows), items, row_chunk)

    def lists(batch: np.ndarray) -> tuple[Array, Array]:
        excluded = _excluded(seen, batch, items)
        return ranking_tiles.top_k(spec, _take_rows(hidden, batch), items.vectors, items.bias, *excluded, k=k)

    results = parallel.map_batches(lists, [batch for _, batch in batches], parallel.workers())
    for (rows, _), out in zip(batches, results, strict=True):
        scores[rows], ids[rows] = (np.asarray(part)[: len(rows)] for part in out)
    return TopK(scores, ids)


def _scoring_spec(
    items: CandidateTable, zero_seen: bool = False, first_item: int = 1
) -> ranking_tiles.ScoringSpec:
    return ranking_tiles.ScoringSpec(
        first_item, items.n_items, items.item_chunk, items.tie_seed, zero_seen, items.mesh
    )


def _check_rows(hidden: Any, items: CandidateTable, row_chunk: int) -> None:
    width = items.n_items + 1 if items.vectors is None else items.vectors.shape[1]
    if np.ndim(hidden) != 2 or hidden.shape[1] != width:
        raise DataError(
            f"hidden must be [rows, {width}] to match the item table, got shape {np.shape(hidden)}"
        )
    if row_chunk < 1:
        raise ConfigError(f"row_chunk must be at least 1, got {row_chunk}")


def _row_batches(
    order: np.ndarray, items: CandidateTable, row_chunk: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut rows into batches of one size: the rows of each, and the same padded with -1.

    Few rows make a smaller batch, a power of two so that calls of many sizes share few compilations. Batches computed
    concurrently share ``row_chunk``; ranks and lists have the same batches, on which rounding depends.
    """
    if not len(order):
        return []
    per_device = -(-len(order) // items.data_shards)
    most = max(1, row_chunk // parallel.workers())
    size = min(most, 1 << (per_device - 1).bit_length()) * items.data_shards
    batches = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batches.append((rows, np.pad(rows, (0, size - len(rows)), constant_values=-1)))
    return batches


def _take_rows(hidden: Any, batch: np.ndarray) -> Any:
    rows = np.maximum(batch, 0)
    if isinstance(hidden, np.ndarray):
        return hidden[rows].astype(np.float32, copy=False)
    return jnp.take(hidden, rows, axis=0, mode="clip").astype(jnp.float32)


def _excluded(seen: SeenItems, batch: np.ndarray, items: CandidateTable) -> tuple[np.ndarray, np.ndarray]:
    """Places of the excluded items: rows and columns inside each tile of each device.

    Returns:
      rows int32[data, item, tiles, P] and columns of the same shape; padding has a row that does not exist. P
      is `LEAST_EXCLUDED` times a power of ``items.size_step``, so that few programs are compiled.
    """
    data, shards, local = items.data_shards, items.item_shards, items.local_items
    tiles = -(-local // items.item_chunk)
    size = len(batch) // data
    real = batch[batch >= 0]
    rows, ids = seen.select(real).distinct(items.n_items)
    shard, place = np.divmod(ids, local)
    tile = place // items.item_chunk
    column = place - np.minimum(tile * items.item_chunk, local - items.item_chunk)
    group = ((rows // size) * shards + shard) * tiles + tile
    n_groups = data * shards * tiles
    small = group.astype(np.uint16) if n_groups <= 65536 else group  # 16 bits are sorted by radix
    by_group = np.argsort(small, kind="stable") if n_groups > 1 else slice(None)
    counts = np.bincount(group, minlength=n_groups)
    width = LEAST_EXCLUDED * rounded_up(-(-int(counts.max()) // LEAST_EXCLUDED), items.size_step)
    fill = np.arange(width)[None, :] < counts[:, None]
    out_rows = np.full((n_groups, width), size, np.int32)
    out_columns = np.zeros((n_groups, width), np.int32)
    out_rows[fill] = (rows % size)[by_group]
    out_columns[fill] = column[by_group]
    shape = (data, shards, tiles, width)
    return out_rows.reshape(shape), out_columns.reshape(shape)
