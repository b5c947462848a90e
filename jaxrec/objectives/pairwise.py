"""Losses on the difference between the target's score and each negative's: BPR, STOSA's BPR with pvn, BPR-max and
TOP1-max.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.errors import ConfigError
from jaxrec.objectives.base import check_number
from jaxrec.objectives.sampled import SampledObjectiveConfig, Scores


def _masked_softmax(scores: Scores) -> Array:
    """Softmax [c, n] over the negatives that count; all zero where none does."""
    largest = jnp.max(jnp.where(scores.valid, scores.negative, -jnp.inf), axis=1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    shifted = jnp.where(scores.valid, scores.negative - largest, 0.0)
    p = jnp.where(scores.valid, jnp.exp(shifted), 0.0)
    total = jnp.sum(p, axis=1, keepdims=True)
    return p / jnp.where(total > 0, total, 1.0)


@dataclass(frozen=True)
class BPRConfig(SampledObjectiveConfig):
    """``-mean_j log σ(s_target - s_j)`` (Rendle et al., UAI 2009)."""

    def position_losses(self, scores: Scores, n_items: int) -> Array:
        return _mean_of_valid(jax.nn.softplus(scores.negative - scores.positive[:, None]), scores.valid)


def _mean_of_valid(losses: Array, valid: Array) -> Array:
    """Mean [c] over the negatives that count; 0 where none does."""
    n_valid = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(valid, losses, 0.0), axis=1) / n_valid


@dataclass(frozen=True)
class BPRPositiveVersusNegativeConfig(BPRConfig):
    """STOSA's loss (Fan et al., WWW 2022): BPR on squared Wasserstein distances W, and their order among three.

    ``mean_j [-log σ(W(h, j) - W(h, i)) + λ max(0, W(h, i) - W(i, j))]`` for the target i and negatives j. The second
    term, pvn (positive versus negative), wants a state to be nearer to its target than the target is to a negative.
    It needs the scores of the encoder "stosa", which are distances but for a constant: a plain dot product has none.

    Attributes:
      pvn_weight: λ.
    """

    pvn_weight: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "pvn_weight", 0)
        if self.cosine or self.temperature != 1.0:
            raise ConfigError(
                f"{type(self).__name__} works on distances, which have no temperature and no angles: expected "
                f"temperature 1 and cosine off, got temperature {self.temperature:g} and cosine {self.cosine}"
            )

    @property
    def needs_distances(self) -> bool:
        return True

    def position_losses(self, scores: Scores, n_items: int) -> Array:
        assert scores.distances is not None, "`SampledObjectiveConfig` gives them to who needs them"
        target, between = scores.distances
        pvn = jnp.maximum(target[:, None] - between, 0.0)
        return super().position_losses(scores, n_items) + self.pvn_weight * _mean_of_valid(pvn, scores.valid)


@dataclass(frozen=True)
class BPRMaxConfig(SampledObjectiveConfig):
    """``-log Σ_j p_j σ(s_target - s_j) + λ Σ_j p_j s_j²``, p the softmax of the negatives' scores.

    Hidasi & Karatzoglou, CIKM 2018, section 3.3: the gradient stays with the negatives that compete.

    Attributes:
      regularisation: λ.
    """

    n_negatives: int = 100
    regularisation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "regularisation", 0)

    def position_losses(self, scores: Scores, n_items: int) -> Array:
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
    """``Σ_j p_j (σ(s_j - s_target) + σ(s_j²))``, p the softmax of the negatives' scores (Hidasi & Karatzoglou
    2018).
    """

    n_negatives: int = 100

    def position_losses(self, scores: Scores, n_items: int) -> Array:
        gap = jax.nn.sigmoid(scores.negative - scores.positive[:, None])
        return jnp.sum(_masked_softmax(scores) * (gap + jax.nn.sigmoid(jnp.square(scores.negative))), axis=1)
