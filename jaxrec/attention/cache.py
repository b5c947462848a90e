"""Caches of a row that grows by one position at a time.

An encoder is first applied to the columns that are known (``column`` None: it computes them all and stores what later
positions need), then to one new column after another, each from the stored arrays of those before it. Modules keep the
arrays in Flax's collection "cache", whose every array has the row axis first, so that rows can be repeated and exchanged.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheStep:
    """Columns of a growing row that are computed now.

    Attributes:
      length: T, columns of the row once it is complete. Static: not a leaf of the pytree.
      column: int32 scalar, the only column to compute; None = all that the batch has, the first ones of the row.
    """

    length: int = dataclasses.field(metadata={"static": True})
    column: Array | None = None

    def current(self, values: Array) -> Array:
        """The part of ``values`` [B, T, ...] that is computed now: [B, 1, ...], or all of it."""
        return values if self.column is None else lax.dynamic_slice_in_dim(values, self.column, 1, axis=1)


def new_positions(cache: CacheStep | None, rows: int) -> Array | None:
    """The one new column as ``query_positions`` int32[B, 1]; None where all columns are computed."""
    if cache is None or cache.column is None:
        return None
    return jnp.broadcast_to(cache.column, (rows, 1)).astype(jnp.int32)


def remember(module: nn.Module, cache: CacheStep | None, **arrays: Array) -> tuple[Array, ...]:
    """Store arrays of the columns computed now, and return those of all columns so far.

    Args:
      module: that owns them.
      cache: None stores nothing.
      arrays: [B, columns, ...] each, by the names under which they are stored, after "cached_".

    Returns:
      The arrays as they came, or with one new column the stored ones [B, T, ...], zero in columns to come.
    """
    if cache is None:
        return tuple(arrays.values())
    out = []
    for name, array in arrays.items():
        size = (array.shape[0], cache.length, *array.shape[2:])
        stored = module.variable("cache", f"cached_{name}", jnp.zeros, size, array.dtype)
        start = jnp.int32(0) if cache.column is None else cache.column
        stored.value = lax.dynamic_update_slice_in_dim(stored.value, array, start, axis=1)
        out.append(array if cache.column is None else stored.value)
    return tuple(out)
