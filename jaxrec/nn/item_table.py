"""The item table: candidates as vectors and biases, and sums over positions on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from jaxrec.errors import ConfigError
from jaxrec.sharding import DATA, ITEM, ItemShards


class ItemTable(NamedTuple):
    """Candidate items; the score of item i for a hidden state is ``hidden · vectors[i] + bias[i]``.

    Attributes:
      vectors: float32[V+1, D]; row 0 is padding and never a candidate. With ``shards``, [rows, D].
      bias: float32[V+1], or None for no bias.
      shards: how both are sharded over a mesh, or None where they are whole.
    """

    vectors: Float[Array, "... D"]
    bias: Float[Array, " V1"] | None = None
    shards: ItemShards | None = None

    @property
    def n_items(self) -> int:
        """V."""
        return self.vectors.shape[0] - 1 if self.shards is None else self.shards.n_items

    def take(self, items: Int[Array, ...]) -> ItemTable:
        """Return the rows of some items, vectors [..., D] and biases [...].

        They are gathered in float32, so that their gradients are summed in float32.
        """

        def rows(array: Array) -> Array:
            return array[items] if self.shards is None else self.shards.take(array, items)

        bias = None if self.bias is None else rows(self.bias)
        return self._replace(vectors=rows(self.vectors), bias=bias, shards=None)

    def replicate(self, x: Any) -> Any:
        """Return ``x`` on every device of the mesh (see `ItemShards.replicate`), or as it is without a mesh."""
        return x if self.shards is None else self.shards.replicate(x)

    def item_states(self) -> Float[Array, "... D"]:
        """Return the items as hidden states, where the table places both in one space.

        Raises:
          ConfigError: scores are dot products, which place states and items in spaces of their own.
        """
        raise ConfigError(_no_distances)

    def squared_distances(
        self, states: Float[Array, "c D"], scores: Float[Array, " c"] | Float[Array, "c n"]
    ) -> Float[Array, " c"] | Float[Array, "c n"]:
        """Return squared distances from states to items, read off the items' scores for these states.

        Args:
          states: [c, D], hidden states or `item_states`.
          scores: [c] or [c, n], scores of one or of n items for each state.

        Raises:
          ConfigError: scores are dot products, which order no distances.
        """
        raise ConfigError(_no_distances)


_no_distances = (
    "--objective compares distances between items and needs an encoder whose scores are distances: expected "
    "--encoder stosa, got an encoder that scores by dot products; choose that encoder, or --objective bpr"
)


class EuclideanItemTable(ItemTable):
    """Items as points e in the space of the states: vectors ``2 e`` and biases ``-|e|^2``.

    The score ``2 h · e - |e|^2 = |h|^2 - |h - e|^2`` then orders items by their distance from h.
    """

    __slots__ = ()

    @classmethod
    def of_points(cls, points: Float[Array, "V1 D"], shards: ItemShards | None = None) -> EuclideanItemTable:
        """Return the table of the items at ``points``."""
        return cls(2.0 * points, -jnp.sum(points**2, axis=-1), shards)

    def item_states(self) -> Float[Array, "... D"]:
        """Return the points e."""
        return self.vectors / 2.0

    def squared_distances(
        self, states: Float[Array, "c D"], scores: Float[Array, " c"] | Float[Array, "c n"]
    ) -> Float[Array, " c"] | Float[Array, "c n"]:
        """Return ``|h|^2 - score``; see `ItemTable.squared_distances`."""
        squares = jnp.sum(jnp.square(states), axis=-1)
        return squares.reshape(squares.shape + (1,) * (scores.ndim - 1)) - scores


def sum_over_positions(
    function: Callable[[ItemTable, Any, Any], tuple[Array, ...]],
    table: ItemTable,
    positions: Any,
    shared: Any = None,
) -> tuple[Array, ...]:
    """Return ``function(table, positions, shared)``, whose scalars are sums over N positions.

    On a mesh each device computes it for its own positions and rows of the table (``table.take`` reads the others' rows,
    too), and the sums are added up.

    Args:
      function: returns scalars, the same for every device along ``item``.
      table: candidates.
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
