"""The mesh of a run, and how its state, its batches and its data lie on it.

Batches are split over the axis ``data``; item tables, with what the optimiser keeps for them, over ``item``;
all else is on every device. The compiler partitions the program (`jax.jit` with Auto axes); what reads or
scores a split table is written with `jax.shard_map` (`jaxrec.models.shards`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder
from jaxrec.models.shards import DATA, ITEM, ItemShards, place
from jaxrec.training.checkpoint import flatten
from jaxrec.training.state import Params, Resources, initial_state


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices of a run, over all its processes. Results do not depend on it beyond rounding.

    Attributes:
      data: devices that share each batch; 0 = all that are left.
      item: devices that share the item tables and the loss over the catalogue.
    """

    data: int = 1
    item: int = 1

    def __post_init__(self) -> None:
        if self.data < 0:
            raise ConfigError(
                f"mesh.data must be 0 (all that are left) or a number of devices, got {self.data}"
            )
        if self.item < 1:
            raise ConfigError(f"mesh.item must be at least 1, got {self.item}")


def build_mesh(config: MeshConfig, rows: int, n_items: int) -> Mesh | None:
    """The mesh with axes ``data`` and ``item``, or None for a single device.

    A process of its own may use fewer devices than it sees, if their number divides; several processes use
    all of theirs.

    Args:
      config: how many along each axis.
      rows: that go through the model at a time.
      n_items: V.

    Raises:
      ConfigError: it does not divide the devices, the batch does not divide over it, or a device would have no
        item.
    """
    devices = jax.devices()
    count, processes = len(devices), jax.process_count()
    seen = f"{count} device{'s' * (count > 1)}"
    if not config.data and count % config.item:
        raise ConfigError(
            f"mesh.item must divide the number of devices, got {config.item} for {seen}; choose from {_divisors(count)}"
        )
    shape = (config.data or count // config.item, config.item)
    size = shape[0] * shape[1]
    if count % size:
        raise ConfigError(
            f"mesh.data x mesh.item must divide the number of devices, got {shape[0]} x {shape[1]} = {size} for "
            f"{seen}; choose a product from {_divisors(count)}"
        )
    if processes > 1 and size != count:
        raise ConfigError(
            f"mesh.data x mesh.item must use every device of all {processes} processes, got {shape[0]} x {shape[1]} for "
            f"{seen}; set mesh.data to 0"
        )
    if rows % shape[0]:
        raise ConfigError(
            "batches.batch_size / training.accumulate_steps must be a multiple of mesh.data, got "
            f"{rows} rows for {shape[0]} devices"
        )
    if n_items < shape[1]:
        raise ConfigError(
            f"mesh.item must be at most the number of items, got {shape[1]} for {n_items}; choose a smaller one"
        )
    if size == 1:
        return None
    return jax.make_mesh(shape, (DATA, ITEM), axis_types=(AxisType.Auto,) * 2, devices=devices[:size])


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def on_mesh(encoder: Encoder, mesh: Mesh | None) -> Encoder:
    """``encoder`` with its item tables split over ``mesh``."""
    return encoder if mesh is None else encoder.clone(shards=ItemShards(mesh, encoder.n_items))


def item_axes(encoder: Encoder, optimizer: optax.GradientTransformation) -> Any:
    """For each array of a `TrainState`, as a tree of the same structure: the axis that counts items, or -1.

    Read off the shapes: it is the axis that grows by one with one more item.
    """
    whole = encoder.clone(shards=None)

    def shapes(n_items: int) -> Any:
        return jax.eval_shape(
            lambda seed: initial_state(whole.clone(n_items=n_items), optimizer, seed), jnp.uint32(0)
        )

    def axis(here: Any, more: Any) -> int:
        return next((i for i, (a, b) in enumerate(zip(here.shape, more.shape, strict=True)) if a != b), -1)

    return jax.tree.map(axis, shapes(whole.n_items), shapes(whole.n_items + 1))


def _of_seed(params: Params, index: int) -> Params:
    return jax.tree.map(lambda x: x[index], params)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of a run lie.

    Attributes:
      encoder: which knows its mesh (`on_mesh`).
      optimizer: of the run.
    """

    encoder: Encoder
    optimizer: optax.GradientTransformation

    @property
    def mesh(self) -> Mesh | None:
        """Of the run, or None for a single device."""
        return None if self.encoder.shards is None else self.encoder.shards.mesh

    @functools.cached_property
    def axes(self) -> Any:
        """See `item_axes`, of the state of one seed."""
        return item_axes(self.encoder, self.optimizer)

    def shardings(self) -> Any:
        """Of the state of all seeds (leading axis), for `jax.jit`; None leaves a single device to JAX."""
        return None if self.mesh is None else _shardings(self.mesh, self.axes, 1)

    def everywhere(self) -> Any:
        """The sharding of what every device holds, for `jax.jit`."""
        return None if self.mesh is None else NamedSharding(self.mesh, P())

    def seed_params(self, params: Params, index: int) -> Params:
        """One seed's parameters out of the stacked ones."""
        if self.mesh is None:
            return _of_seed(params, index)
        shardings = _shardings(self.mesh, self.axes.params, 0)
        return jax.jit(_of_seed, static_argnums=1, out_shardings=shardings)(params, index)

    def tables(self) -> dict[str, Any]:
        """What `CheckpointStore.restore` must know of (state, best parameters) to fit tables to this mesh."""
        axes = flatten((self.axes, self.axes.params))
        return {
            "tables": {name: axis + 1 for name, axis in axes.items() if axis >= 0},
            "table_rows": self.encoder.n_items + 1,
        }

    def own_rows(self, batch_size: int) -> slice:
        """Which of the rows of every batch lie on devices of this process."""
        if self.mesh is None:
            return slice(None)
        split = NamedSharding(self.mesh, P(DATA)).addressable_devices_indices_map((batch_size,))
        bounds = [index[0].indices(batch_size)[:2] for index in split.values() if index is not None]
        return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))

    def put(self, batch_size: int) -> Callable[[Any], Any]:
        """What moves a chunk's plans or batches [S, K, rows, ...] to the devices, split over ``data``; each process gives
        its `own_rows` of every batch.
        """
        mesh, first = self.mesh, self.own_rows(batch_size).start
        if mesh is None:
            return jax.device_put

        def whole(x: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[2].indices(batch_size)
                return x[:, :, start - first : stop - first]

            shape = (*x.shape[:2], batch_size, *x.shape[3:])
            return jax.make_array_from_callback(shape, NamedSharding(mesh, P(None, None, DATA)), part)

        return lambda tree: jax.tree.map(whole, tree)

    def resources(self, resources: Resources) -> Resources:
        """What every device holds: the log, and what samplers ask for."""
        mesh = self.mesh
        return resources if mesh is None else jax.tree.map(lambda x: place(x, mesh), resources)

    def batches(self, batches: Batch) -> Batch:
        """Inside the program: the batches of K steps [K, B, L] split over ``data``, which the compiler carries on to all
        that follows.
        """
        if self.mesh is None:
            return batches
        return lax.with_sharding_constraint(batches, NamedSharding(self.mesh, P(None, DATA)))


def _shardings(mesh: Mesh, axes: Any, before: int) -> Any:
    """Split over ``item`` along the axis that counts items, which ``before`` further axes precede."""

    def sharding(axis: int) -> NamedSharding:
        return NamedSharding(mesh, P() if axis < 0 else P(*(None,) * (axis + before), ITEM))

    return jax.tree.map(sharding, axes)
