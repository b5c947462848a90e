"""The kernel of the exact cross-entropy: a pass over chunks of positions that leaves the gradient behind.

For a chunk of c positions, with E the items and P = exp(H Eᵀ - m) for any shift m that keeps P in range::

    Z = Σ_i P_i + exp(s_target - m)        loss = log(Z) + m - s_target
    dH = P E w/Z - (1 - p_target) w E[target]        dE = Pᵀ (H w/Z); dE[target] -= (1 - p_target) w H

The target is left out of P and added in float32, so a confident position (p_target near 1) keeps its small
gradient even where P is rounded to bfloat16. Neither softmax nor one-hot matrix is formed: three matrix
products and one exponential a score, the least that the exact gradient takes. Catalogues too large for [c, V]
take two passes (the normalisers, then the gradient tile by tile), so memory beyond inputs and gradients stays
bounded for any V.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrec.models.base import ItemTable
from jaxrec.objectives.catalogue_pass import CataloguePass, Settings, equally_varying

ITEM_TILE = 8192  # items scored at a time; half of it for chunks of SMALL_CHUNK positions on a CPU
WORK_BYTES = (
    58 * 2**20
)  # for the exponentials of one chunk, the gradient of the items and their copy, on a CPU
CACHED_BYTES = 22 * 2**20  # exponentials of a chunk, where that leaves SMALL_CHUNK positions or more
SMALL_CHUNK, LARGE_CHUNK = 128, 320
MOST_TILES = 32  # of one pass, which is unrolled over them
DEVICE_CHUNK_BYTES = 512 * 2**20  # on accelerators


def catalogue_cross_entropy(
    hidden: Array,
    table: ItemTable,
    targets: Array,
    weights: Array,
    *,
    dtype: str = "float32",
    token_chunk: int = 0,
    item_tile: int = 0,
    axis_name: str | None = None,
    n_items: int | None = None,
) -> Array:
    """The weighted sum of the cross-entropy of N positions over V items, float32.

    Args:
      hidden: float32[N, D].
      table: vectors float32[V+1, D], bias float32[V+1] or None; row 0 is never a candidate.
      targets: int32[N] in 1..V where the weight is positive.
      weights: float32[N], not negative; positions of weight 0 cost nothing and may hold any target.
      dtype: operands of the products; sums are float32.
      token_chunk: positions at a time; 0 = chosen from the shapes.
      item_tile: items at a time; 0 = chosen.
      axis_name: inside `jax.shard_map` (with its default ``check_vma=True``): the mesh axis over which the
        rows of the table are sharded, in order. Each device then gives its block of rows, the same positions
        along this axis, and gets the loss over all items. Positions sharded over other axes are summed by the
        caller.
      n_items: V, needed with ``axis_name``: rows above it are padding.

    Raises:
      ValueError: ``axis_name`` without ``n_items``.
    """
    rows = table.vectors.shape[0]
    if axis_name is not None and n_items is None:
        raise ValueError(
            "n_items: expected the number of items over all shards with axis_name, got None; give V"
        )
    if hidden.shape[0] == 0:
        return jnp.zeros((), jnp.float32)
    settings = choose_settings(
        hidden.shape[0],
        rows,
        hidden.shape[1],
        dtype,
        token_chunk,
        item_tile,
        axis_name,
        rows - 1 if n_items is None else n_items,
    )
    hidden, vectors = _with_bias(hidden, table, dtype)
    hidden, vectors, targets, weights = equally_varying(hidden, vectors, targets, weights)
    total = _loss(hidden, vectors, targets, weights, settings)
    return total if axis_name is None else lax.psum(total, axis_name)


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
    """Chunk sizes for N positions and ``rows`` items: those given, or what the memory of the device asks
    for.
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


def _with_bias(hidden: Array, table: ItemTable, dtype: str) -> tuple[Array, Array]:
    """The bias as further columns of the vectors, against ones. Three bfloat16 parts sum to the float32
    bias.
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
