"""Losses that judge the target and each negative on its own: binary cross-entropy and its calibrated form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.objectives.sampled import SampledObjectiveConfig, Scores
from jaxrec.options import Range, Search


@dataclass(frozen=True)
class BinaryCrossEntropyConfig(SampledObjectiveConfig):
    """Binary cross-entropy ``-log σ(s_target) - Σ_j log(1 - σ(s_j))``.

    With one uniform negative outside the user's own items (``exclude_seen``) it is the loss of SASRec (Kang & McAuley
    2018).
    """

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        return jax.nn.softplus(-scores.positive) + _negative_loss(scores)


@dataclass(frozen=True)
class GeneralizedBinaryCrossEntropyConfig(SampledObjectiveConfig):
    """gBCE of gSASRec: ``-(β log σ(s_target) + Σ_j log(1 - σ(s_j))) / (n + 1)`` (Petrov & Macdonald, RecSys 2023).

    β = α (t (1 - 1/α) + 1/α) = 1 - t (1 - α) with the sampling rate α = n / (V - 1): t = 0 is plain BCE, t = 1 removes the
    overconfidence that sampling causes. Masked draws still count in n, as in the paper, whose negatives may collide with
    the target.

    Attributes:
      calibration: t.
    """

    n_negatives: Annotated[int, Range("[1, inf)"), Search("log:16:1024")] = 256
    calibration: Annotated[float, Range("[0, 1]")] = 0.75

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        rate = min(1.0, self.n_negatives / max(1, scores.n_items - 1))
        beta = 1.0 - self.calibration * (1.0 - rate)
        total = beta * jax.nn.softplus(-scores.positive) + _negative_loss(scores)
        return total / (scores.negative.shape[1] + 1)


def _negative_loss(scores: Scores) -> Array:
    """Return ``-Σ_j log(1 - σ(s_j))`` over the negatives that count: float32[c]."""
    return jnp.sum(jnp.where(scores.valid, jax.nn.softplus(scores.negative), 0.0), axis=1)
