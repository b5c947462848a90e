"""The item table: candidates as vectors and biases, and sums over positions on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from jaxrec.sharding import DATA, ITEM, ItemShards


class ItemTable(NamedTuple):
    """The candidates: the score of item i for a hidden state is ``hidden · vectors[i] + bias[i]``.

    Attributes:
      vectors: float32[V+1, D]; row 0 is padding and never a candidate. With ``shards``, [rows, D].
      bias: float32[V+1], or None for no bias.
      shards: how both lie on a mesh, or None where they are whole.
    """

    vectors: Array
    bias: Array | None = None
    shards: ItemShards | None = None

    @property
    def n_items(self) -> int:
        """V."""
        return self.vectors.shape[0] - 1 if self.shards is None else self.shards.n_items

    def take(self, items: Array) -> ItemTable:
        """Vectors [..., D] and biases [...] of ``items`` int32[...]: float32 gathers, so that their gradients are
        summed in float32.
        """

        def rows(of: Array) -> Array:
            return of[items] if self.shards is None else self.shards.take(of, items)

        return ItemTable(rows(self.vectors), None if self.bias is None else rows(self.bias))

    def everywhere(self, x: Any) -> Any:
        """``x`` on every device of the mesh (see `ItemShards.everywhere`), or as it is where there is none."""
        return x if self.shards is None else self.shards.everywhere(x)


def sum_over_positions(
    function: Callable[[ItemTable, Any, Any], tuple[Array, ...]],
    table: ItemTable,
    positions: Any,
    shared: Any = None,
) -> tuple[Array, ...]:
    """``function(table, positions, shared)``, whose scalars are sums over N positions.

    On a mesh each device does it for its positions and its rows of the table (``table.take`` reads the others'
    rows, too), and the sums are added up.

    Args:
      function: gives scalars, the same for every device along ``item``.
      table: of the candidates.
      positions: arrays [N, ...]; N is a multiple of the data axis.
      shared: arrays that every device needs whole.
    """
    shards = table.shards
    if shards is None:
        return function(table, positions, shared)

    def local(table: ItemTable, positions: Any, shared: Any) -> tuple[Array, ...]:
        sums = function(table._replace(shards=shards.local()), positions, shared)
        return tuple(lax.psum(x, DATA) for x in sums)

    whole = table._replace(shards=None)
    return jax.shard_map(local, mesh=shards.mesh, in_specs=(P(ITEM), P(DATA), P()), out_specs=P())(
        whole, positions, shared
    )
