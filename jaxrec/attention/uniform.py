"""Uniform attention: the mean of the values, a control for mechanisms that learn weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import SECTION, AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.cache import Grown
from jaxrec.attention.functional import keep_all, split_heads, weighted_sums
from jaxrec.attention.module import AttentionModule, OutputProjection, projection_count
from jaxrec.attention.positions import POSITIONS
from jaxrec.errors import ConfigError
from jaxrec.nn.layers import Dense, take_positions


def uniform_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B L H d"] | Grown,
    v: Float[Array, "B L H d"] | Grown,
    bias: Float[Array, "#B #H S L"] | float,
    mask: Bool[Array, "#B #H S L"],
    dropout: Callable[[Array], Array] = keep_all,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B S H d"], Float[Array, "B H S L"]]:
    """The mean of the values that the mask allows; queries, keys and bias play no part.

    Args:
      q: [B, S, H, d], only its number of heads counts.
      k: unused.
      v: [B, L, H, d], or in two parts.
      bias: unused.
      mask: bool[B, 1, S, L].
      dropout: of the weights.
      dtype: precision of the operands of products.

    Returns:
      [B, S, H, d], and the weights [B, H, S, L] before dropout.
    """
    allowed = mask.astype(jnp.float32)
    weights = jnp.repeat(allowed / allowed.sum(axis=-1, keepdims=True), q.shape[2], axis=1)
    return weighted_sums(dropout(weights), v, dtype), weights


@dataclasses.dataclass(frozen=True)
class UniformAttentionConfig(AttentionConfig):
    """Mean pooling of projected values: no weights are learned."""

    selects_positions: ClassVar[bool] = True
    paper: ClassVar[str] = "a control; average attention in Zhang et al., ACL 2018 (arXiv 1805.00631)"

    def check(self, spec: AttentionSpec) -> None:
        """Reject position schemes inside attention, which would do nothing."""
        super().check(spec)
        if POSITIONS[spec.positions].inside:
            raise ConfigError(
                f"--encoder.positions {spec.positions} acts on attention scores, and {SECTION} 'uniform' has none; "
                f"choose 'learned', 'sinusoidal' or 'none'"
            )

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """None: values of earlier positions stay what they are."""
        return None

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `UniformAttention`."""
        return UniformAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """``D^2 + D`` for the values, and the output projection."""
        return spec.width**2 + spec.width + projection_count(spec)


class UniformAttention(AttentionModule):
    """``(x [B, L, D], context, train) -> [B, L, D]``, or [B, S, D] at ``query_positions``; ``queries`` are not read.

    Parameters: ``D^2 + D``, and as many with an output projection. Sows ``attention_weights`` float32[B, H, L, L].
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: AttentionContext,
        train: bool = False,
        queries: Float[Array, "B L D"] | None = None,
        query_positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Attend; see `AttentionConfig.build` for the arguments."""
        spec = self.spec
        dense = Dense(spec.width, kernel_init=spec.kernel_init, dtype=spec.dtype, name="values")
        v = split_heads(dense(x), self.config.heads)
        formula = partial(uniform_attention, dtype=spec.dtype)
        q = v if query_positions is None else take_positions(v, query_positions)
        attended = self.attend(formula, (q, v, v), context, train, query_positions=query_positions)
        return OutputProjection(spec, name="output")(attended)
