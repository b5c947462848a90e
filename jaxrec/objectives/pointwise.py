"""Losses that judge the target and each negative on its own: binary cross-entropy and its calibrated form."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.objectives.base import check_number
from jaxrec.objectives.sampled import SampledObjectiveConfig, Scores


@dataclass(frozen=True)
class BinaryCrossEntropyConfig(SampledObjectiveConfig):
    """``-log σ(s_target) - Σ_j log(1 - σ(s_j))``; with one uniform negative, the loss of SASRec (Kang &
    McAuley 2018).
    """

    def position_losses(self, scores: Scores, n_items: int) -> Array:
        negative = jnp.where(scores.valid, jax.nn.softplus(scores.negative), 0.0)
        return jax.nn.softplus(-scores.positive) + jnp.sum(negative, axis=1)


@dataclass(frozen=True)
class GeneralizedBinaryCrossEntropyConfig(SampledObjectiveConfig):
    """gBCE of gSASRec (Petrov & Macdonald, RecSys 2023): ``-(β log σ(s_target) + Σ_j log(1 - σ(s_j))) / (n +
    1)``.

    β = α (t (1 - 1/α) + 1/α) with the sampling rate α = n / (V - 1): t = 0 is plain BCE, t = 1 removes the
    overconfidence that sampling causes. Draws that are masked still count in n, as in the paper, which lets
    them collide.

    Attributes:
      calibration: t, in [0, 1].
    """

    n_negatives: int = 256
    calibration: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "calibration", 0, 1)

    def position_losses(self, scores: Scores, n_items: int) -> Array:
        rate = min(1.0, self.n_negatives / max(1, n_items - 1))
        beta = rate * (self.calibration * (1 - 1 / rate) + 1 / rate)
        negative = jnp.where(scores.valid, jax.nn.softplus(scores.negative), 0.0)
        total = beta * jax.nn.softplus(-scores.positive) + jnp.sum(negative, axis=1)
        return total / (scores.negative.shape[1] + 1)
