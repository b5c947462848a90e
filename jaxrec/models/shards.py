"""Item tables split over the devices of a mesh: where the rows lie, how they are read, how arrays get there.

The mesh has the axes ``data`` (rows of a batch) and ``item`` (rows of item tables). A table's V + 1 rows are
followed by rows of zeros up to a multiple of the item axis; nothing reads them, so they stay zero, and no
number depends on how many there are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, ITEM = "data", "item"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ItemShards:
    """How the item tables of one model lie on a mesh.

    Attributes:
      mesh: axes ``data`` and ``item``.
      n_items: V.
      manual: whether the code at hand runs inside `jax.shard_map`, on one device's rows of the tables.
    """

    mesh: Mesh
    n_items: int
    manual: bool = False

    @property
    def rows(self) -> int:
        """Rows of a table: V + 1 and what makes it a multiple of the item axis."""
        return -(-(self.n_items + 1) // self.mesh.shape[ITEM]) * self.mesh.shape[ITEM]

    def pad(self, x: Array) -> Array:
        """``x [V+1, ...]`` with the rows of zeros."""
        return jnp.pad(x, [(0, self.rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    def take(self, table: Array, items: Array) -> Array:
        """Rows of ``table`` float32[rows, ...] of ``items`` int32[...]; NaN for an id outside 0..V.

        Each device gives the rows that it has and zeros for the others, and the sum over ``item`` is complete:
        what travels is the answer, never the table.
        """
        if self.manual:
            return self._local_rows(table, items)
        divides = items.ndim > 0 and items.shape[0] % self.mesh.shape[DATA] == 0
        spec = P(DATA) if divides else P()
        return jax.shard_map(self._local_rows, mesh=self.mesh, in_specs=(P(ITEM), spec), out_specs=spec)(
            table, items
        )

    def _local_rows(self, table: Array, items: Array) -> Array:
        row = items - lax.axis_index(ITEM).astype(jnp.int32) * table.shape[0]
        own = (row >= 0) & (row < table.shape[0])
        found = table[jnp.where(own, row, 0)]

        def wide(mask: Array) -> Array:
            return mask.reshape(mask.shape + (1,) * (found.ndim - mask.ndim))

        rows = lax.psum(jnp.where(wide(own), found, 0.0), ITEM)
        return jnp.where(wide((items >= 0) & (items <= self.n_items)), rows, jnp.nan)

    def everywhere(self, x: Any) -> Any:
        """Arrays that the compiler must hold on every device, outside `jax.shard_map`.

        For a top-k: on GPU meshes that of a split array has been wrong (jax issue 19271).
        """
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, P()))

    def local(self) -> ItemShards:
        """The same inside `jax.shard_map`."""
        return dataclasses.replace(self, manual=True)


def place(value: Any, mesh: Mesh, spec: P = P()) -> Array:  # noqa: B008
    """A host array on the devices of a mesh; each process hands over only what its own devices hold.

    Args:
      value: NumPy array, the same in every process (wherever this process reads it).
      mesh: of the program that it is for.
      spec: which axes are split; none by default.
    """
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, spec), lambda index: host[index])
