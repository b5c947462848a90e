"""Device meshes, item tables sharded over them, and the placement of arrays.

The mesh has the axes ``data`` (rows of a batch) and ``item`` (rows of item tables). A table's V + 1 rows are followed by
rows of zeros up to a multiple of the item axis; nothing reads them, so they stay zero, and no number depends on how many
there are.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.errors import ConfigError
from jaxrec.options import Range, validate

DATA, ITEM = "data", "item"
Tree = TypeVar("Tree")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ItemShards:
    """Sharding of the item tables of one model.

    Attributes:
      mesh: axes ``data`` and ``item``.
      n_items: V.
      manual: whether the calling code runs inside `jax.shard_map`, on one device's rows of the tables.
    """

    mesh: Mesh
    n_items: int
    manual: bool = False

    @property
    def rows(self) -> int:
        """Rows of a table: V + 1, rounded up to a multiple of the item axis."""
        return -(-(self.n_items + 1) // self.mesh.shape[ITEM]) * self.mesh.shape[ITEM]

    def pad(self, x: Array) -> Array:
        """Return ``x [V+1, ...]`` followed by the rows of zeros."""
        return jnp.pad(x, [(0, self.rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    def take(self, table: Array, items: Array) -> Array:
        """Return the rows of ``items`` int32[...] in ``table`` float32[rows, ...]; NaN for an id outside 0..V.

        Each device contributes the rows that it holds and zeros for the others, and the sum over ``item`` is complete: the
        rows travel, never the table.
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
        local_rows = table[jnp.where(own, row, 0)]

        def wide(mask: Array) -> Array:
            return mask.reshape(mask.shape + (1,) * (local_rows.ndim - mask.ndim))

        rows = lax.psum(jnp.where(wide(own), local_rows, 0.0), ITEM)
        return jnp.where(wide((items >= 0) & (items <= self.n_items)), rows, jnp.nan)

    def replicate(self, x: Any) -> Any:
        """Return arrays that the compiler must hold on every device; for use outside `jax.shard_map`.

        A top-k needs it: on GPU meshes that of a sharded array has been wrong (jax issue 19271).
        """
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, P()))

    def local(self) -> ItemShards:
        """Return the same sharding for code inside `jax.shard_map`."""
        return dataclasses.replace(self, manual=True)


def place(value: Any, mesh: Mesh, spec: P = P()) -> Array:  # noqa: B008
    """Return a host array on the devices of a mesh; each process hands over only what its own devices hold.

    Args:
      value: NumPy array, the same in every process (wherever this process reads it).
      mesh: mesh of the program that reads the array.
      spec: sharded axes; none by default.
    """
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, spec), lambda index: host[index])


def in_turn(tree: Tree) -> Tree:
    """Return ``tree``; first wait for its arrays if several devices of a CPU compute them.

    Where programs that communicate are dispatched in a row, each is waited for: on a CPU, more than 32 in flight stop each
    other for ever (jaxlib 0.10.2; 0.12.0 runs them).
    """
    if jax.default_backend() == "cpu":
        arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, Array))
        jax.block_until_ready([x for x in arrays if len(x.sharding.device_set) > 1])
    return tree


def varying_axes(*arrays: Array) -> frozenset[Any]:
    """Return the mesh axes over which any of the arrays differs between devices; none outside `jax.shard_map`."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary_over(x: Array, axes: frozenset[Any]) -> Array:
    """Return ``x`` marked, inside `jax.shard_map`, as varying over ``axes`` besides its own."""
    missing = tuple(sorted(axes - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def equally_varying(*arrays: Array) -> tuple[Array, ...]:
    """Return the arrays marked as varying over the union of their axes, so that JAX sums their gradients."""
    union = varying_axes(*arrays)
    return tuple(vary_over(x, union) for x in arrays)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices of a run, over all its processes; results do not depend on it beyond rounding.

    Attributes:
      data: devices that share each batch; 0 = all that remain.
      item: devices that share the item tables and the loss over the catalogue.
    """

    data: Annotated[int, Range("[0, inf)")] = 1
    item: Annotated[int, Range("[1, inf)")] = 1

    def __post_init__(self) -> None:
        """Check the options."""
        validate(self, "mesh")


def build_mesh(config: MeshConfig, rows: int, n_items: int) -> Mesh | None:
    """Return the mesh with axes ``data`` and ``item``, or None for a single device.

    A single process may use fewer devices than it sees, if their number divides; several processes use all of theirs.

    Args:
      config: devices along each axis.
      rows: rows of a batch that pass through the model at a time.
      n_items: V.

    Raises:
      ConfigError: it does not divide the devices, the batch does not divide over it, or a device would have no item.
    """
    devices = jax.devices()
    count, processes = len(devices), jax.process_count()
    seen = f"{count} device{'s' * (count > 1)}"
    if not config.data and count % config.item:
        raise ConfigError(
            f"--mesh.item must divide the number of devices, got {config.item} for {seen}; choose from {_divisors(count)}"
        )
    shape = (config.data or count // config.item, config.item)
    size = shape[0] * shape[1]
    if count % size:
        raise ConfigError(
            f"--mesh.data x --mesh.item must divide the number of devices, got {shape[0]} x {shape[1]} = {size} for "
            f"{seen}; choose a product from {_divisors(count)}"
        )
    if processes > 1 and size != count:
        raise ConfigError(
            f"--mesh.data x --mesh.item must use every device of all {processes} processes, got {shape[0]} x {shape[1]} for "
            f"{seen}; set --mesh.data 0"
        )
    if rows % shape[0]:
        raise ConfigError(
            "--batches.batch-size / --training.accumulate-steps must be a multiple of --mesh.data, got "
            f"{rows} rows for {shape[0]} devices"
        )
    if n_items < shape[1]:
        raise ConfigError(
            f"--mesh.item must be at most the number of items, got {shape[1]} for {n_items}; choose a smaller one"
        )
    if size == 1:
        return None
    return jax.make_mesh(shape, (DATA, ITEM), axis_types=(AxisType.Auto,) * 2, devices=devices[:size])


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]
