"""HSTU's pointwise attention (Zhai et al., ICML 2024, arXiv 2402.17152).

    U, Q, K, V = SiLU(affine(x));   A = mask(SiLU(Q K^T + bias)) / n;   out = affine(norm(A V) * U)

There is no softmax: weights of different keys do not compete, so their sum measures how strong an interest is. n is the
maximum length, as in the published code, and so that padding changes nothing.

Biases: a learned scalar for each distance (`distance_bias`), and that of the position scheme. "hstu-time" is the
published bias by time, from the key to the next interaction after the query (at the end of a history, where the next
one is not known, to the last); "time-interval" measures from the key to the query instead, with a table for each head.

Differences from the published code: affine maps have biases where its single projection has none; the distance bias has
a table for each head rather than one for all (with one head they agree), and under a bidirectional mask the distance is
taken without its sign; the block's input norm has an affine map; the encoder's dropout follows the output map, where
the published one precedes it. The published code adds learned positions at the input beside both biases: positions
"learned-hstu-time", or "learned" for logs without times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.cache import Grown
from jaxrec.attention.functional import keep_all, pair_products, split_heads, weighted_sums
from jaxrec.attention.module import AttentionModule, position_count, query_input
from jaxrec.attention.positions import offsets
from jaxrec.nn.layers import Dense


def pointwise_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B L H d"] | Grown,
    v: Float[Array, "B L H d"] | Grown,
    bias: Float[Array, "#B #H S L"] | float,
    mask: Bool[Array, "#B #H S L"],
    dropout: Callable[[Array], Array] = keep_all,
    max_length: int = 1,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B S H d"], Float[Array, "B H S L"]]:
    """``mask(SiLU(Q K^T + bias)) V / n``, for each head.

    Args:
      q: [B, S, H, d].
      k: [B, L, H, d], or in two parts.
      v: [B, L, H, d], or in two parts.
      bias: [1 or B, 1 or H, S, L], or a number.
      mask: bool[B, 1 or H, S, L].
      dropout: of the weights.
      max_length: n.
      dtype: precision of the operands of products.

    Returns:
      [B, S, H, d], and the weights [B, H, S, L] before dropout, which do not sum to 1.
    """
    scores = pair_products(q, k, dtype) + bias
    weights = jnp.where(mask, jax.nn.silu(scores) / max_length, 0.0)
    return weighted_sums(dropout(weights), v, dtype), weights


@dataclasses.dataclass(frozen=True)
class PointwiseAttentionConfig(AttentionConfig):
    """Pointwise SiLU attention with a gate; made for the block "attention-only".

    Attributes:
      distance_bias: learn a scalar for each distance between query and key, up to the maximum length.
    """

    distance_bias: bool = True

    default_positions: ClassVar[str] = "none"
    selects_positions: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhai et al., Actions Speak Louder than Words (HSTU), ICML 2024 (arXiv 2402.17152)"

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """None: keys and values of earlier positions stay what they are."""
        return None

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `PointwiseAttention`."""
        return PointwiseAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """``5 (D^2 + D)``, ``H n`` for the distance bias, and the position scheme."""
        width = spec.width
        bias = self.heads * spec.max_length if self.distance_bias else 0
        return 5 * (width**2 + width) + bias + position_count(self, spec)


class PointwiseAttention(AttentionModule):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``, or [B, S, D] at ``query_positions`` int32[B, S].

    Parameters: ``5 (D^2 + D)`` (the map after the gate is part of the mechanism, whatever the encoder's
    ``output_projection``), ``H n`` for the distance bias, and the position scheme's. ``queries`` feed both
    the queries and the gate. Sows ``attention_weights`` float32[B, H, L, L].
    """

    config: PointwiseAttentionConfig

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
        config, spec, heads = self.config, self.spec, self.config.heads
        dtype, width = spec.dtype, spec.width

        def activated(name: str, inputs: Array) -> Array:
            dense = Dense(width, kernel_init=spec.kernel_init, dtype=dtype, name=name)
            return jax.nn.silu(dense(inputs))

        asked = query_input(x, queries, query_positions)
        asked = x if asked is None else asked
        gate = activated("gate", asked)
        q = split_heads(activated("queries", asked), heads)
        k = split_heads(activated("keys", x), heads)
        v = split_heads(activated("values", x), heads)
        bias: Array | float = 0.0
        if config.distance_bias:
            table = self.param(
                "distance_bias", nn.initializers.normal(0.02), (heads, spec.max_length), jnp.float32
            )
            bias = table[:, np.abs(offsets(context.segments.shape[1]))][None]
        formula = partial(pointwise_attention, max_length=spec.max_length, dtype=dtype)
        attended = self.attend(formula, (q, k, v), context, train, query_positions=query_positions, bias=bias)
        norm = nn.LayerNorm(use_scale=False, use_bias=False, name="norm")
        return Dense(width, kernel_init=spec.kernel_init, dtype=dtype, name="output")(norm(attended) * gate)
