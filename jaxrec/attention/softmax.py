"""Scaled dot-product softmax attention (Vaswani et al. 2017), causal within each sequence of a row."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape
from jaxrec.attention.functional import merge_heads, softmax_at, softmax_core
from jaxrec.attention.module import (
    Mechanism,
    OutputProjection,
    Projections,
    Rows,
    position_count,
    projection_count,
)


@dataclasses.dataclass(frozen=True)
class SoftmaxAttentionConfig(AttentionConfig):
    """Multi-head softmax attention: ``softmax(mask(Q K^T / sqrt(D / H) + bias)) V``."""

    selects_positions: ClassVar[bool] = True
    paper: ClassVar[str] = "Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762)"

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return SoftmaxAttention(self, shape, name=name)

    def parameter_count(self, shape: AttentionShape) -> int:
        width = shape.width
        return 3 * (width**2 + width) + projection_count(shape) + position_count(self, shape)


class SoftmaxAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None, at=None) -> [B, L, D]``, [B, S, D] with ``at`` int32[B, S].

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` more with an output projection, and those of the position scheme
    (`jaxrec.attention.positions.PositionScheme`). Sows ``attention_weights`` float32[B, H, L, L].
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: AttentionContext,
        train: bool = False,
        queries: Array | None = None,
        at: Array | None = None,
    ) -> Array:
        heads, dtype = self.config.heads, self.shape.dtype
        batch, length, _ = x.shape
        turn, bias_of = self.position_terms(context)
        q, k, v = Projections(heads, self.shape, name="projections")(x, queries)
        scale = q.shape[-1] ** -0.5
        project = OutputProjection(self.shape, name="output")
        if at is not None:
            whole = Rows((), context.segments, context.positions, context.timestamps, None)
            asked = turn(q, at) * scale
            attended = softmax_at(
                asked, turn(k), v, at=at, segments=context.segments, bias=bias_of(whole), dtype=dtype
            )
            return project(merge_heads(attended))
        keep, probability = self.keep_mask((batch, heads, length, 1, length), train)

        def core(rows: Rows, chunks: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = rows.inputs
            out, weights = softmax_core(
                q,
                k,
                v,
                segments=rows.segments,
                bias=bias_of(rows),
                keep=rows.keep,
                probability=probability,
                dtype=dtype,
                chunks=chunks,
            )
            return out, {"attention_weights": weights[:, :, :, 0]}

        inputs = (turn(q) * scale, turn(k), v)
        rows = Rows(inputs, context.segments, context.positions, context.timestamps, keep)
        attended = merge_heads(self.over_rows(core, rows, heads * length * length))
        return project(attended)
