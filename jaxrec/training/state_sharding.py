"""Placement of a run's state, batches and data on its mesh.

Batches are split over the axis ``data``; item tables, with what the optimiser keeps for them, over ``item``;
all else is on every device. The compiler partitions the program (`jax.jit` with Auto axes); what reads or
scores a split table is written with `jax.shard_map` (`jaxrec.sharding`).
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
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.data.batches import Batch
from jaxrec.models.base import Encoder
from jaxrec.sharding import DATA, ITEM, ItemShards, place
from jaxrec.tasks import Resources, Task
from jaxrec.training.state import Params, TrainState, initial_params, initial_state
from jaxrec.training.trees import flatten


def on_mesh(encoder: Encoder, mesh: Mesh | None) -> Encoder:
    """``encoder`` with its item tables split over ``mesh``, or on a single device."""
    return encoder.clone(shards=None if mesh is None else ItemShards(mesh, encoder.n_items))


def item_axes(task: Task, make: Callable[[Task], Any]) -> Any:
    """Find the axis that counts items in each array that ``make`` builds, or -1, as a tree of the same structure.

    Read off the shapes: it is the axis that grows by one with one more item.
    """

    def shapes(n_items: int) -> Any:
        spec = dataclasses.replace(task.spec, n_items=n_items)
        other = dataclasses.replace(task, encoder=task.encoder.clone(shards=None, spec=spec))
        return jax.eval_shape(lambda: make(other))

    def axis(here: Any, larger: Any) -> int:
        return next((i for i, (a, b) in enumerate(zip(here.shape, larger.shape, strict=True)) if a != b), -1)

    n_items = task.spec.n_items
    return jax.tree.map(axis, shapes(n_items), shapes(n_items + 1))


def _of_seed(params: Params, index: int) -> Params:
    return jax.tree.map(lambda x: x[index], params)


@dataclasses.dataclass(frozen=True)
class ParameterSharding:
    """Placement of a task's parameters on the mesh of its encoder.

    Attributes:
      task: whose encoder knows its mesh (`on_mesh`).
    """

    task: Task

    @property
    def mesh(self) -> Mesh | None:
        """Of the encoder, or None for a single device."""
        return None if self.task.encoder.shards is None else self.task.encoder.shards.mesh

    @functools.cached_property
    def axes(self) -> Any:
        """See `item_axes`, of the parameters of one seed."""
        return item_axes(self.task, lambda task: initial_params(task, jnp.uint32(0)))

    def seed_params(self, params: Params, index: int) -> Params:
        """One seed's parameters out of the stacked ones."""
        if self.mesh is None:
            return _of_seed(params, index)
        shardings = _shardings(self.mesh, self.axes, 0)
        return jax.jit(_of_seed, static_argnums=1, out_shardings=shardings)(params, index)

    def targets(self, seeds: Array) -> Params:
        """Shapes and shardings of the parameters of all seeds, for a restore."""
        shapes = jax.eval_shape(jax.vmap(lambda seed: initial_params(self.task, seed)), seeds)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        mesh = self.mesh
        places = jax.tree.map(lambda _: device, shapes) if mesh is None else _shardings(mesh, self.axes, 1)
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
        )

    def tables(self) -> dict[str, int]:
        """Axis that counts items of each stacked table, by name."""
        return {name: axis + 1 for name, axis in flatten(self.axes).items() if axis >= 0}


@dataclasses.dataclass(frozen=True)
class StateSharding:
    """Placement of a run's arrays on its devices.

    Attributes:
      task: whose encoder knows its mesh (`on_mesh`).
      optimizer: of the run.
    """

    task: Task
    optimizer: optax.GradientTransformation

    @property
    def mesh(self) -> Mesh | None:
        """Of the run, or None for a single device."""
        shards = self.task.encoder.shards
        return None if shards is None else shards.mesh

    @functools.cached_property
    def axes(self) -> Any:
        """See `item_axes`, of the state of one seed."""
        return item_axes(self.task, lambda task: initial_state(task, self.optimizer, jnp.uint32(0)))

    @functools.cached_property
    def fresh(self) -> Callable[[Any], TrainState]:
        """The function of seeds uint32[S] that makes their fresh states; one and the same, so that JAX traces it once."""
        return jax.vmap(lambda seed: initial_state(self.task, self.optimizer, seed))

    def shardings(self) -> Any:
        """Of the state of all seeds (leading axis), for `jax.jit`; None leaves a single device to JAX."""
        return None if self.mesh is None else _shardings(self.mesh, self.axes, 1)

    def replicated(self) -> Any:
        """The sharding of what every device holds, for `jax.jit`."""
        return None if self.mesh is None else NamedSharding(self.mesh, P())

    def seed_params(self, params: Params, index: int) -> Params:
        """One seed's parameters out of the stacked ones."""
        return ParameterSharding(self.task).seed_params(params, index)

    def tables(self) -> dict[str, int]:
        """Axis that counts items of each stacked table of a checkpoint's parts, by name."""
        axes = flatten({"state": self.axes, "best": self.axes.params})
        return {name: axis + 1 for name, axis in axes.items() if axis >= 0}

    def parameter_tables(self) -> dict[str, int]:
        """See `ParameterSharding.tables`."""
        return ParameterSharding(self.task).tables()

    def local_rows(self, batch_size: int) -> slice:
        """Rows of every batch that lie on devices of this process."""
        if self.mesh is None:
            return slice(None)
        split = NamedSharding(self.mesh, P(DATA)).addressable_devices_indices_map((batch_size,))
        bounds = [index[0].indices(batch_size)[:2] for index in split.values() if index is not None]
        return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))

    def put(self, batch_size: int) -> Callable[[Any], Any]:
        """Return the function that moves a chunk's plans or batches [S, K, rows, ...] to the devices, split over ``data``.

        Each process gives its `local_rows` of every batch.
        """
        mesh, first = self.mesh, self.local_rows(batch_size).start
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
        """Put the arrays that every device holds (the log, the data of samplers) on the devices."""
        mesh = self.mesh
        return resources if mesh is None else jax.tree.map(lambda x: place(x, mesh), resources)

    def batches(self, batches: Batch) -> Batch:
        """Split the batches of K steps [K, B, L] over ``data`` inside the program; the compiler follows from there."""
        if self.mesh is None:
            return batches
        return lax.with_sharding_constraint(batches, NamedSharding(self.mesh, P(None, DATA)))


def _shardings(mesh: Mesh, axes: Any, before: int) -> Any:
    """Split over ``item`` along the axis that counts items, which ``before`` further axes precede."""

    def sharding(axis: int) -> NamedSharding:
        return NamedSharding(mesh, P() if axis < 0 else P(*(None,) * (axis + before), ITEM))

    return jax.tree.map(sharding, axes)
