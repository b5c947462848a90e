"""Exact softmax cross-entropy over the whole catalogue: options, label smoothing, and the dispatch over a mesh.

With every position of a sequence as a target it is the "F" ("cumulative") loss of Li et al. (arXiv 2301.00979). For the
variant that they compare with, weight the last position alone (the batch's ``last_only``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array, lax

from jaxrec.nn.item_table import ItemTable, sum_over_positions
from jaxrec.objectives.base import LossInputs, LossSums, ObjectiveConfig
from jaxrec.objectives.fused_cross_entropy import catalogue_cross_entropy
from jaxrec.options import Range
from jaxrec.sharding import ITEM


@dataclass(frozen=True)
class CrossEntropyConfig(ObjectiveConfig):
    """Cross-entropy ``log Σ_i exp(s_i) - s_target`` over all V items, without ever holding [N, V] scores.

    Attributes:
      label_smoothing: share of the target's probability that is spread evenly over the V items.
      temperature: divides the scores.
      token_chunk: positions scored at a time; 0 = chosen from the shapes and the device.
      item_tile: items scored at a time; 0 = chosen. Neither changes the result beyond rounding.
    """

    label_smoothing: Annotated[float, Range("[0, 1)")] = 0.0
    temperature: Annotated[float, Range("(0, inf)")] = 1.0
    token_chunk: Annotated[int, Range("[0, inf)")] = 0
    item_tile: Annotated[int, Range("[0, inf)")] = 0

    def loss(self, inputs: LossInputs) -> LossSums:
        """Compute the loss, inside `jax.shard_map` where the table is sharded."""
        if inputs.table.shards is None:
            return self.sharded_loss(inputs)

        def local(table: ItemTable, positions: Any, _: Any) -> tuple[Array, ...]:
            return self.sharded_loss(LossInputs(positions[0], table, *positions[1:]), ITEM, table.n_items)

        positions = (inputs.hidden, inputs.targets, inputs.weights)
        return LossSums(*sum_over_positions(local, inputs.table, positions))

    def sharded_loss(
        self, inputs: LossInputs, axis_name: str | None = None, n_items: int | None = None
    ) -> LossSums:
        """Compute the loss of the positions at hand; inside `jax.shard_map`, of the rows of all devices.

        Positions sharded over another axis are summed over it by the caller.

        Args:
          inputs: the positions and this device's rows of the table.
          axis_name: mesh axis over which the rows are sharded (see `catalogue_cross_entropy`); None = they are whole.
          n_items: V, needed with ``axis_name``.
        """
        inputs = inputs.prepare(self.temperature)
        total = catalogue_cross_entropy(
            inputs,
            dtype=self.dtype,
            token_chunk=self.token_chunk,
            item_tile=self.item_tile,
            axis_name=axis_name,
            n_items=n_items,
        )
        if self.label_smoothing > 0:
            total = total + self.label_smoothing * _smoothing(inputs, axis_name, n_items)
        return LossSums(total, jnp.sum(inputs.weights))


def _smoothing(inputs: LossInputs, axis_name: str | None, n_items: int | None) -> Array:
    """Return Σ w (s_target - mean of all scores).

    Beside log Z, scores enter the loss linearly, so that a smoothed target costs no more than the mean of the item vectors.
    """
    hidden, table, targets, weights, *_ = inputs
    vectors, bias = table.vectors, table.bias
    n_rows = vectors.shape[0]
    v = n_rows - 1 if n_items is None else n_items
    first = jnp.int32(0) if axis_name is None else lax.axis_index(axis_name).astype(jnp.int32) * n_rows
    item = first + jnp.arange(n_rows, dtype=jnp.int32)
    candidate = (item > 0) & (item <= v)
    row = targets - first
    real = weights > 0
    own = real & (row >= 0) & (row < n_rows)
    row = jnp.where(own, row, 0)

    mean = jnp.sum(jnp.where(candidate[:, None], vectors, 0.0), axis=0) / v
    difference = jnp.where(own[:, None], vectors[row], 0.0) - mean[None, :]
    excess = jnp.sum(jnp.where(real[:, None], hidden, 0.0) * difference, axis=1)
    if bias is not None:
        mean_bias = jnp.sum(jnp.where(candidate, bias, 0.0)) / v
        excess = excess + jnp.where(own, bias[row], 0.0) - mean_bias
    total = jnp.sum(weights * excess)
    return total if axis_name is None else lax.psum(total, axis_name)
