"""Exact softmax cross-entropy over the whole catalogue.

With it every position of a sequence is a target: the "F" ("cumulative") loss of Li et al. (arXiv 2301.00979).
For the variant they compare with, weight the last position alone (the batch's ``last_only``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxrec.nn.item_table import ItemTable, sum_over_positions
from jaxrec.objectives.base import ObjectiveConfig, SamplingInputs, check_number, real_weights, scaled
from jaxrec.objectives.fused_cross_entropy import catalogue_cross_entropy
from jaxrec.sharding import ITEM


@dataclass(frozen=True)
class CrossEntropyConfig(ObjectiveConfig):
    """``log Σ_i exp(s_i) - s_target`` over all V items, without ever holding [N, V] scores.

    Attributes:
      label_smoothing: share of the target's probability that is spread evenly over the V items, in [0, 1).
      temperature: divides the scores.
      cosine: score unit vectors, ``cos(hidden, item) / temperature``.
      token_chunk: positions scored at a time; 0 = chosen from the shapes and the device.
      item_tile: items scored at a time; 0 = chosen. Neither changes the result beyond rounding.
    """

    label_smoothing: float = 0.0
    temperature: float = 1.0
    cosine: bool = False
    token_chunk: int = 0
    item_tile: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "label_smoothing", 0, 1, open_high=True)
        check_number(self, "temperature", 0, open_low=True)
        check_number(self, "token_chunk", 0)
        check_number(self, "item_tile", 0)

    def __call__(
        self,
        hidden: Array,
        table: ItemTable,
        targets: Array,
        weights: Array,
        rng: Array,
        inputs: SamplingInputs | None = None,
    ) -> tuple[Array, Array]:
        if table.shards is None:
            return self.sharded(hidden, table, targets, weights)

        def local(table: ItemTable, positions: Any, _: Any) -> tuple[Array, Array]:
            return self.sharded(positions[0], table, *positions[1:], axis_name=ITEM, n_items=table.n_items)

        total, weight = sum_over_positions(local, table, (hidden, targets, weights))
        return total, weight

    def sharded(
        self,
        hidden: Array,
        table: ItemTable,
        targets: Array,
        weights: Array,
        *,
        axis_name: str | None = None,
        n_items: int | None = None,
    ) -> tuple[Array, Array]:
        """The same inside `jax.shard_map` with the rows of the table sharded over the mesh axis
        ``axis_name``.

        See `jaxrec.objectives.fused_cross_entropy.catalogue_cross_entropy` for what each device gives. Both sums are
        those of the positions given; positions sharded over another axis are summed over it by the caller.
        """
        weights = real_weights(targets, weights)
        hidden, table = scaled(hidden, table, self.temperature, self.cosine)
        total = catalogue_cross_entropy(
            hidden,
            table,
            targets,
            weights,
            dtype=self.dtype,
            token_chunk=self.token_chunk,
            item_tile=self.item_tile,
            axis_name=axis_name,
            n_items=n_items,
        )
        if self.label_smoothing > 0:
            excess = _excess(hidden, table, targets, weights, axis_name, n_items)
            total = total + self.label_smoothing * excess
        return total, jnp.sum(weights)


def _excess(
    hidden: Array,
    table: ItemTable,
    targets: Array,
    weights: Array,
    axis_name: str | None,
    n_items: int | None,
) -> Array:
    """Σ w (s_target - mean of all scores): scores enter the loss linearly beside log Z, so a smoothed target
    costs no more than the mean of the item vectors.
    """
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
    towards = jnp.where(own[:, None], vectors[row], 0.0) - mean[None, :]
    excess = jnp.sum(jnp.where(real[:, None], hidden, 0.0) * towards, axis=1)
    if bias is not None:
        mean_bias = jnp.sum(jnp.where(candidate, bias, 0.0)) / v
        excess = excess + jnp.where(own, bias[row], 0.0) - mean_bias
    total = jnp.sum(weights * excess)
    return total if axis_name is None else lax.psum(total, axis_name)
