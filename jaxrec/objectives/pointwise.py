"""Binary cross-entropy: the target against a few sampled negatives, each judged on its own."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.models.base import ItemTable
from jaxrec.objectives.base import ObjectiveConfig, SamplingInputs, check_number, real_weights


@dataclass(frozen=True)
class BinaryCrossEntropyConfig(ObjectiveConfig):
    """``-log σ(s_target) - Σ_j log(1 - σ(s_j)) / n`` over n uniform negatives other than the target (SASRec: n = 1).

    Attributes:
      n_negatives: negatives of each position.
    """

    n_negatives: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "n_negatives", 1)

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
        n_items = table.vectors.shape[0] - 1
        draws = jax.random.randint(rng, (targets.shape[0], self.n_negatives), 1, max(n_items, 2))
        negatives = draws + (draws >= targets[:, None]).astype(jnp.int32)
        items = jnp.concatenate([targets[:, None], negatives], axis=1)
        scores = jnp.einsum("nd,nkd->nk", hidden, table.vectors[items])
        if table.bias is not None:
            scores = scores + table.bias[items]
        losses = jax.nn.softplus(-scores[:, 0]) + jnp.mean(jax.nn.softplus(scores[:, 1:]), axis=1)
        return jnp.sum(weights * losses), jnp.sum(weights)
