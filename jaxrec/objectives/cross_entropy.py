"""Exact softmax cross-entropy over the whole catalogue.

With it every position of a sequence is a target: the "F" ("cumulative") loss of Li et al. (arXiv 2301.00979).
For the variant they compare with, weight the last position alone (the batch's ``last_only``).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jaxrec.models.base import ItemTable
from jaxrec.objectives.base import ObjectiveConfig, SamplingInputs, check_number, real_weights, scaled
from jaxrec.objectives.catalogue import catalogue_cross_entropy


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
        )
        if self.label_smoothing > 0:
            total = total + self.label_smoothing * _excess(hidden, table, targets, weights)
        return total, jnp.sum(weights)


def _excess(hidden: Array, table: ItemTable, targets: Array, weights: Array) -> Array:
    """Σ w (s_target - mean of all scores): scores enter the loss linearly beside log Z, so a smoothed target
    costs no
    more than the mean of the item vectors."""
    real = weights > 0
    rows = jnp.where(real, targets, 0)
    towards = table.vectors[rows] - jnp.mean(table.vectors[1:], axis=0, keepdims=True)
    excess = jnp.sum(jnp.where(real[:, None], hidden * towards, 0.0), axis=1)
    if table.bias is not None:
        excess = excess + jnp.where(real, table.bias[rows] - jnp.mean(table.bias[1:]), 0.0)
    return jnp.sum(weights * excess)
