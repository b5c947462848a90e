"""Scaled dot-product softmax attention (Vaswani et al. 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.cache import Grown
from jaxrec.attention.functional import (
    attend_in_stretches,
    keep_all,
    masked_softmax,
    merge_heads,
    pair_products,
    weighted_sums,
)
from jaxrec.attention.module import (
    AttentionInputs,
    AttentionModule,
    OutputProjection,
    Projections,
    position_count,
    projection_count,
    query_input,
)
from jaxrec.attention.padding_keys import extend_keys, keep_padding, padding_counts
from jaxrec.attention.prefix_keys import with_prefix


def softmax_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B L H d"] | Grown,
    v: Float[Array, "B L H d"] | Grown,
    bias: Float[Array, "#B #H S L"] | float,
    mask: Bool[Array, "#B #H S L"],
    dropout: Callable[[Array], Array] = keep_all,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B S H d"], Float[Array, "B H S L"]]:
    """``softmax(mask(Q K^T / sqrt(d) + bias)) V``, for each head.

    Args:
      q: [B, S, H, d].
      k: [B, L, H, d], or in two parts.
      v: [B, L, H, d], or in two parts.
      bias: [1 or B, 1 or H, S, L], or a number.
      mask: bool[B, 1 or H, S, L], true where a query may attend to a key.
      dropout: of the weights.
      dtype: precision of the operands of products.

    Returns:
      [B, S, H, d], and the weights [B, H, S, L] before dropout.
    """
    scores = pair_products(q * q.shape[-1] ** -0.5, k, dtype) + bias
    weights = masked_softmax(scores, mask)
    return weighted_sums(dropout(weights), v, dtype), weights


@dataclasses.dataclass(frozen=True)
class SoftmaxAttentionConfig(AttentionConfig):
    """Multi-head softmax attention."""

    selects_positions: ClassVar[bool] = True
    reads_padding: ClassVar[bool] = True
    reads_prefix: ClassVar[bool] = True
    paper: ClassVar[str] = "Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762)"

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """None: keys and values of earlier positions stay what they are."""
        return None

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `SoftmaxAttention`."""
        return SoftmaxAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """``3 (D^2 + D)``, the output projection and the position scheme."""
        width = spec.width
        return 3 * (width**2 + width) + projection_count(spec) + position_count(self, spec)


class SoftmaxAttention(AttentionModule):
    """``(x [B, L, D], context, train) -> [B, L, D]``, or [B, S, D] at ``query_positions`` int32[B, S].

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` more with an output projection, and those of the position scheme
    (`jaxrec.attention.positions.PositionScheme`). Sows ``attention_weights`` float32[B, H, L, L], and where padding
    takes part as keys ``padding_weights`` float32[B, H, L], its share; ``prefix_weights`` likewise.
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
        project = Projections(self.config.heads, self.spec, name="projections")
        qkv = project(x, query_input(x, queries, query_positions))
        if context.prefix is not None:
            _, prefix_k, prefix_v = project(context.prefix, None)
            attended = self._attend_with_prefix(qkv, (prefix_k, prefix_v), context, train, query_positions)
        elif context.padding is None:
            formula = partial(softmax_attention, dtype=self.spec.dtype)
            attended = self.attend(formula, qkv, context, train, query_positions=query_positions)
        else:
            _, padding_k, padding_v = project(context.padding, None)
            attended = self._attend_with_padding(qkv, (padding_k, padding_v), context, train, query_positions)
        return OutputProjection(self.spec, name="output")(attended)

    def _attend_with_prefix(
        self,
        qkv: tuple[Array, Array, Array],
        prefix: tuple[Array, Array],
        context: AttentionContext,
        train: bool,
        query_positions: Array | None,
    ) -> Array:
        """`attend` with one more key for each sequence; positions play no part in the scores."""
        formula = partial(softmax_attention, dtype=self.spec.dtype)
        batch, length, heads, _ = qkv[1].shape
        if query_positions is not None:
            q, k, v = qkv
            mask = context.allowed(query_positions)[:, None]
            k, v, mask = with_prefix(k, v, *prefix, context.segments, mask, query_positions)
            return merge_heads(formula(q, k, v, 0.0, mask)[0])
        keep, probability = self.keep_mask((batch, heads, length, 2 * length), train)

        def core(inputs: AttentionInputs, count: int) -> tuple[Array, dict[str, Array]]:
            q, k, v, *front = inputs.arrays
            k, v, mask = with_prefix(k, v, front[0], front[1], inputs.segments, inputs.allowed(), None)
            out, weights = attend_in_stretches(
                formula, q, k, v, 0.0, mask, keep=inputs.keep, probability=probability, count=count
            )
            share = weights[..., :length].sum(axis=-1)
            return out, {"attention_weights": weights[..., length:], "prefix_weights": share}

        inputs = AttentionInputs.of((*qkv, *prefix), context, keep)
        return merge_heads(self.over_rows(core, inputs, 2 * heads * length * length))

    def _attend_with_padding(
        self,
        qkv: tuple[Array, Array, Array],
        padding: tuple[Array, Array],
        context: AttentionContext,
        train: bool,
        query_positions: Array | None,
    ) -> Array:
        """`attend` with one more key for all positions of padding; positions play no part in the scores."""
        dtype, max_length = self.spec.dtype, self.spec.max_length
        batch, length, heads, _ = qkv[1].shape
        if query_positions is not None:
            q, k, v = qkv
            counts = jnp.take_along_axis(
                padding_counts(context.segments, max_length), query_positions, axis=1
            )
            keys = extend_keys(k, v, *padding, context.allowed(query_positions)[:, None], counts)
            return merge_heads(softmax_attention(q, *keys, dtype=dtype)[0])
        keep, probability = self.keep_mask((batch, heads, length, 1 + length), train)

        def formula(
            q: Array,
            k: Array,
            v: Array,
            bias: Array | float,
            mask: Array,
            dropout: Callable[[Array], Array],
        ) -> tuple[Array, Array]:
            return softmax_attention(q, k, v, bias, mask, keep_padding(dropout), dtype)

        def core(inputs: AttentionInputs, count: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = inputs.arrays
            counts = padding_counts(inputs.segments, max_length)
            keys = extend_keys(k, v, *padding, inputs.allowed(), counts)
            out, weights = attend_in_stretches(
                formula, q, *keys, keep=inputs.keep, probability=probability, count=count
            )
            return out, {"attention_weights": weights[..., 1:], "padding_weights": weights[..., 0]}

        inputs = AttentionInputs.of(qkv, context, keep)
        return merge_heads(self.over_rows(core, inputs, heads * length * length))
