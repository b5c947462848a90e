"""A hinge loss: the target must score above every negative by a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.objectives import OBJECTIVES
from jaxrec.objectives.sampled import SampledObjectiveConfig, Scores
from jaxrec.options import Range


@OBJECTIVES.register("hinge")
@dataclass(frozen=True)
class HingeConfig(SampledObjectiveConfig):
    """Sum over the negatives of ``max(0, margin - s_target + s_negative)``.

    Attributes:
      margin: least difference that costs nothing.
    """

    n_negatives: Annotated[int, Range("[1, inf)")] = 16
    margin: Annotated[float, Range("(0, inf)")] = 1.0

    def position_losses(self, scores: Scores) -> Array:
        """Return the loss of each of c positions."""
        excess = jax.nn.relu(self.margin - scores.positive[:, None] + scores.negative)
        return jnp.sum(jnp.where(scores.valid, excess, 0.0), axis=1)
