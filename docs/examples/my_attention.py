"""Recency attention: weights that halve with every `half_life` interactions, whatever the items are."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxrec.attention import ATTENTION, AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.module import OutputProjection, projection_count
from jaxrec.nn.layers import Dense
from jaxrec.options import Range


@ATTENTION.register("recency")
@dataclasses.dataclass(frozen=True)
class RecencyAttentionConfig(AttentionConfig):
    """Mean of earlier values with weights that fall off with distance.

    Attributes:
      half_life: interactions after which a weight has halved.
    """

    half_life: Annotated[float, Range("(0, inf)")] = 5.0

    default_positions: ClassVar[str] = "none"
    paper: ClassVar[str] = "the example of the documentation"

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `RecencyAttention`."""
        return RecencyAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """``D^2 + D`` and the output projection."""
        return spec.width**2 + spec.width + projection_count(spec)


class RecencyAttention(nn.Module):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``."""

    config: RecencyAttentionConfig
    spec: AttentionSpec

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        """Average the values that the mask allows."""
        values = Dense(
            self.spec.width, kernel_init=self.spec.kernel_init, dtype=self.spec.dtype, name="values"
        )(x)
        index = jnp.arange(x.shape[1], dtype=jnp.float32)
        distance = jnp.abs(index[:, None] - index[None, :])  # a sequence is contiguous in its row
        weights = jnp.where(context.allowed(), 0.5 ** (distance / self.config.half_life)[None], 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        self.sow("intermediates", "attention_weights", weights[:, None])  # for `jaxrec attention`
        return OutputProjection(self.spec, name="output")(jnp.einsum("bij,bjd->bid", weights, values))
