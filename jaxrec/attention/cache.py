"""Caches of a row that grows by one position at a time.

An encoder is first applied to the known columns: it computes them all and stores what later positions need in Flax's
collection "cache". It is then applied to one new column after another, each computed from the stored arrays of those before
it. What it stores of new columns goes into another collection, "grown", which alone changes: a compiled loop would copy
whatever it carries. Every array of both has the row axis first, so that rows can be repeated and exchanged; several rows may
grow out of the same known one.

Names tell what the second axis is: "cached_*" has every column (`remember`), "last_*" the end of each sequence alone
(`remember_ends`). The known columns may be those of packed rows, several sequences in each: `rows_of_sequences` gives every
sequence a row of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from jaxrec.nn.layers import take_positions

KNOWN, GROWN = "cache", "grown"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheStep:
    """Columns of a growing row that are computed now.

    Attributes:
      column: int32 scalar, the only column to compute, from the known and the grown ones before it; None = all that the
        batch has, which become the known ones.
    """

    column: Array | None = None

    def current(self, values: Array) -> Array:
        """The part of ``values`` [B, T, ...] that is computed now: [B, 1, ...], or all of it."""
        return values if self.column is None else lax.dynamic_slice_in_dim(values, self.column, 1, axis=1)


class Grown(NamedTuple):
    """An array of all columns of rows under way, in two parts.

    Attributes:
      known: [B, P, ...], of the columns that were known, which R / B adjacent rows have in common.
      new: [R, T - P, ...], of the columns since; those to come are zero.
    """

    known: Array
    new: Array


def whole(array: Array | Grown) -> Array:
    """All columns as one array [R, T, ...]; a copy, where it has two parts."""
    if not isinstance(array, Grown):
        return array
    known = jnp.repeat(array.known, array.new.shape[0] // array.known.shape[0], axis=0)
    return jnp.concatenate([known, array.new], axis=1)


def new_positions(cache: CacheStep | None, rows: int) -> Array | None:
    """The one new column as ``query_positions`` int32[B, 1]; None where all columns are computed."""
    if cache is None or cache.column is None:
        return None
    return jnp.broadcast_to(cache.column, (rows, 1)).astype(jnp.int32)


def remember(module: nn.Module, cache: CacheStep | None, **arrays: Array) -> tuple[Any, ...]:
    """Store arrays of the columns computed now, and return those of all columns so far.

    Args:
      module: that owns them.
      cache: None stores nothing.
      arrays: [B, columns, ...] each, by the names under which they are stored, after "cached_".

    Returns:
      The arrays as they came, or with one new column `Grown` ones.
    """
    if cache is None:
        return tuple(arrays.values())
    out: list[Any] = []
    for name, array in arrays.items():
        name = f"cached_{name}"
        if cache.column is None:
            module.variable(KNOWN, name, lambda array=array: array).value = array
            out.append(array)
            continue
        known: Any = module.get_variable(KNOWN, name)
        new: Any = module.get_variable(GROWN, name)
        new = lax.dynamic_update_slice_in_dim(new, array, cache.column - known.shape[1], axis=1)
        module.put_variable(GROWN, name, new)
        out.append(Grown(known, new))
    return tuple(out)


def remember_ends(module: nn.Module, cache: CacheStep, name: str, states: Array, ends: Array | None) -> None:
    """Store what later positions need of the newest column alone, under ``name`` after "last_".

    Args:
      module: that owns it.
      cache: which columns are computed now.
      name: of the array.
      states: [B, columns, D] of the columns computed now.
      ends: int32[B, S], last column of each known sequence; None = the last of the columns.
    """
    name = f"last_{name}"
    if cache.column is not None:
        module.put_variable(GROWN, name, states)
        return
    last = states[:, -1:] if ends is None else take_positions(states, ends)
    module.variable(KNOWN, name, lambda: last).value = last


def with_room(known: Any, columns: int) -> tuple[Any, Any]:
    """Collections with which rows begin to grow.

    Args:
      known: what an encoder stored of rows that end at the last known column.
      columns: that will be new.

    Returns:
      The known arrays, and those that grow, [B, columns, ...] each.
    """
    flat = flatten_dict(known[KNOWN])
    stays = {path: array for path, array in flat.items() if path[-1].startswith("cached_")}
    grows = {
        path: jnp.zeros((array.shape[0], columns, *array.shape[2:]), array.dtype) if path in stays else array
        for path, array in flat.items()
    }
    return {KNOWN: unflatten_dict(stays)}, {GROWN: unflatten_dict(grows)}


def rows_of_sequences(known: Any, ends: Array, index: Array, width: int) -> Any:
    """Give each sequence of packed rows [N, L] a row of its own in what an encoder stored.

    Args:
      known: the collection, stored with the query positions ``ends``.
      ends: int32[N, S], last column of each sequence.
      index: int32[B], place of each sequence in the flattened [N, S].
      width: P, columns of a row, at the last of which the sequence ends.

    Returns:
      The same tree, [B, P, ...] each, or [B, 1, ...]; columns before a sequence hold what happens to be there.
    """

    def moved(path: tuple[str, ...], stored: Array) -> Array:
        rows, columns = stored.shape[:2]
        flat = stored.reshape(rows * columns, *stored.shape[2:])
        if not path[-1].startswith("cached_"):
            return flat[index][:, None]
        first = jnp.arange(rows, dtype=jnp.int32)[:, None] * columns
        end = (first + ends).reshape(-1)[index]
        place = end[:, None] + jnp.arange(1 - width, 1, dtype=jnp.int32)[None]
        return flat[jnp.maximum(place, 0)]

    return {KNOWN: unflatten_dict({path: moved(path, x) for path, x in flatten_dict(known[KNOWN]).items()})}
