"""Exact softmax cross-entropy over the whole catalogue.

With it every position of a sequence is a target: the "F" ("cumulative") loss of Li et al. (arXiv 2301.00979). For the
variant they compare with, weight the last position alone (the batch's ``last_only``).
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
      token_chunk: positions scored at a time; 0 = chosen from the shapes.
    """

    label_smoothing: float = 0.0
    temperature: float = 1.0
    cosine: bool = False
    token_chunk: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "label_smoothing", 0, 1, open_high=True)
        check_number(self, "temperature", 0, open_low=True)
        check_number(self, "token_chunk", 0)

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
            label_smoothing=self.label_smoothing,
            dtype=jnp.dtype(self.dtype).name,
            token_chunk=self.token_chunk,
        )
        return total, jnp.sum(weights)
