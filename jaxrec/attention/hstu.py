"""HSTU's pointwise attention (Zhai et al., ICML 2024, arXiv 2402.17152).

    U, Q, K, V = SiLU(affine(x));   A = mask(SiLU(Q K^T + bias)) / n;   out = affine(norm(A V) * U)

There is no softmax: weights of different keys do not compete, so the sum of weights tells how much of an
interest there is. n is the maximum length (as in the published code, and so that padding changes nothing),
the bias is a learned scalar for each distance, plus one for each bucket of seconds with positions
"time-interval". The norm has no parameters.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape
from jaxrec.attention.functional import drop_weights, merge_heads, split_heads
from jaxrec.attention.module import Mechanism, Rows, position_count
from jaxrec.attention.positions import distances
from jaxrec.nn.layers import Dense
from jaxrec.nn.precision import contract


@dataclasses.dataclass(frozen=True)
class PointwiseAttentionConfig(AttentionConfig):
    """HSTU's pointwise aggregation, with a gate in place of a feed-forward network's.

    Attributes:
      distance_bias: learn a bias of the scores for each distance between query and key, up to the maximum
        length.
    """

    distance_bias: bool = True

    default_positions: ClassVar[str] = "none"
    paper: ClassVar[str] = "Zhai et al., Actions Speak Louder than Words (HSTU), ICML 2024 (arXiv 2402.17152)"

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return PointwiseAttention(self, shape, name=name)

    def parameter_count(self, shape: AttentionShape) -> int:
        width = shape.width
        bias = self.heads * shape.max_length if self.distance_bias else 0
        return 5 * (width**2 + width) + bias + position_count(self, shape)


class PointwiseAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

    Parameters: ``5 (D^2 + D)`` (the map after the gate is part of the mechanism, whatever the encoder's
    ``output_projection``), ``H n`` for the distance bias, and the position scheme's. ``queries`` feed both
    the queries and the gate. Sows ``attention_weights`` float32[B, H, L, L].
    """

    config: PointwiseAttentionConfig

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        config, shape, heads = self.config, self.shape, self.config.heads
        dtype, width = shape.dtype, shape.width
        batch, length, _ = x.shape
        turn, bias_of = self.position_terms(context)

        def activated(name: str, inputs: Array) -> Array:
            dense = Dense(width, kernel_init=shape.kernel_init, dtype=dtype, name=name)
            return jax.nn.silu(dense(inputs))

        asking = x if queries is None else queries
        gate = activated("gate", asking)
        q = split_heads(activated("queries", asking), heads)
        k = split_heads(activated("keys", x), heads)
        v = split_heads(activated("values", x), heads)
        by_distance = None
        if config.distance_bias:
            table = self.param(
                "distance_bias", nn.initializers.normal(0.02), (heads, shape.max_length), jnp.float32
            )
            by_distance = table[:, distances(length)][None]
        keep, probability = self.keep_mask((batch, heads, length, length), train)

        def core(rows: Rows, _: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = rows.inputs
            scores = contract("bihd,bjhd->bhij", q, k, dtype)
            for bias in (by_distance, bias_of(rows)):
                scores = scores if bias is None else scores + bias
            weights = jnp.where(rows.allowed(), jax.nn.silu(scores) / shape.max_length, 0.0)
            out = contract("bhij,bjhd->bihd", drop_weights(weights, rows.keep, probability), v, dtype)
            return out, {"attention_weights": weights}

        rows = Rows((turn(q), turn(k), v), context.segments, context.positions, context.timestamps, keep)
        attended = merge_heads(self.over_rows(core, rows, heads * length * length))
        norm = nn.LayerNorm(use_scale=False, use_bias=False, name="norm")
        return Dense(width, kernel_init=shape.kernel_init, dtype=dtype, name="output")(norm(attended) * gate)
