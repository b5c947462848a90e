"""Losses on the difference between the target's score and each negative's: BPR, STOSA's BPR, BPR-max and TOP1-max."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.errors import ConfigError
from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives.sampled import SampledObjectiveConfig, Scores
from jaxrec.options import Range, Search


@dataclass(frozen=True)
class BPRConfig(SampledObjectiveConfig):
    """Bayesian personalised ranking ``-mean_j log σ(s_target - s_j)`` (Rendle et al., UAI 2009)."""

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        return _mean_of_valid(jax.nn.softplus(scores.negative - scores.positive[:, None]), scores)


@dataclass(frozen=True)
class BPRPositiveVersusNegativeConfig(BPRConfig):
    """STOSA's loss: BPR on squared Wasserstein distances W, and their order among three (Fan et al., WWW 2022).

    ``mean_j [-log σ(W(h, j) - W(h, i)) + λ max(0, W(h, i) - W(i, j))]`` for the target i and negatives j. The second term,
    pvn (positive versus negative), pulls a state nearer to its target than the target is to a negative. It needs an item
    table whose scores are distances (`jaxrec.nn.item_table.EuclideanItemTable`), as the encoder "stosa" has.

    Attributes:
      pvn_weight: λ.
    """

    pvn_weight: Annotated[float, Range("[0, inf)")] = 0.005

    def __post_init__(self) -> None:
        """Check the options; distances have no temperature."""
        super().__post_init__()
        if self.temperature != 1.0:
            raise ConfigError(
                "--objective bpr-pvn compares distances, which have no temperature: expected --objective.temperature 1, "
                f"got {self.temperature:g}"
            )

    def check(self, table: ItemTable) -> None:
        """Reject a table whose scores are dot products; see `ItemTable.item_states`."""
        jax.eval_shape(lambda table: table.item_states(), table)

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        states = scores.targets.item_states()
        to_target = scores.targets.squared_distances(scores.hidden, scores.positive)
        target_to_negatives = scores.targets.squared_distances(states, scores.score_negatives(states))
        pvn = jnp.maximum(to_target[:, None] - target_to_negatives, 0.0)
        return super().position_losses(scores) + self.pvn_weight * _mean_of_valid(pvn, scores)


@dataclass(frozen=True)
class BPRMaxConfig(SampledObjectiveConfig):
    """BPR-max ``-log Σ_j p_j σ(s_target - s_j) + λ Σ_j p_j s_j²``, p the softmax of the negatives' scores.

    Hidasi & Karatzoglou, CIKM 2018, section 3.3: the gradient concentrates on the negatives that compete.

    Attributes:
      regularisation: λ.
    """

    n_negatives: Annotated[int, Range("[1, inf)"), Search("log:16:1024")] = 100
    regularisation: Annotated[float, Range("[0, inf)")] = 1.0

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        p = _masked_softmax(scores)
        any_valid = jnp.any(scores.valid, axis=1)
        # In logarithms, so that a target far below its rivals keeps a gradient.
        terms = jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)
        terms = terms + jax.nn.log_sigmoid(scores.positive[:, None] - scores.negative)
        terms = jnp.where(any_valid[:, None], terms, 0.0)
        ranking = -jax.nn.logsumexp(terms, axis=1)
        losses = ranking + self.regularisation * jnp.sum(p * jnp.square(scores.negative), axis=1)
        return jnp.where(any_valid, losses, 0.0)


@dataclass(frozen=True)
class TOP1MaxConfig(SampledObjectiveConfig):
    """TOP1-max ``Σ_j p_j (σ(s_j - s_target) + σ(s_j²))``, p the softmax of the negatives' scores.

    Hidasi & Karatzoglou, CIKM 2018.
    """

    n_negatives: Annotated[int, Range("[1, inf)"), Search("log:16:1024")] = 100

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        gap = jax.nn.sigmoid(scores.negative - scores.positive[:, None])
        return jnp.sum(_masked_softmax(scores) * (gap + jax.nn.sigmoid(jnp.square(scores.negative))), axis=1)


def _masked_softmax(scores: Scores) -> Array:
    """Return the softmax [c, n] over the negatives that count; all zero where none does."""
    largest = jnp.max(jnp.where(scores.valid, scores.negative, -jnp.inf), axis=1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    shifted = jnp.where(scores.valid, scores.negative - largest, 0.0)
    p = jnp.where(scores.valid, jnp.exp(shifted), 0.0)
    total = jnp.sum(p, axis=1, keepdims=True)
    return p / jnp.where(total > 0, total, 1.0)


def _mean_of_valid(losses: Array, scores: Scores) -> Array:
    """Return the mean [c] of losses [c, n] over the negatives that count; 0 where none does."""
    n_valid = jnp.maximum(jnp.sum(scores.valid, axis=1, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(scores.valid, losses, 0.0), axis=1) / n_valid
