"""Attention weight refinement for sequential recommendation, AWRSR ("Pay Attention to Attention for
Sequential Recommendation", RecSys 2024, arXiv 2410.21048), on dot-product attention.

The paper's principle is public, its equations are not: learnable matrices map the attention weights into a
new space, and correlations between weight vectors there give higher-order weights. Everything below that line
is this project's reading, and results have to say which was used:

- what the weights A are: probabilities by default, for stability. Texts on the paper call the scores before
  the softmax "attention weights", which is ``source="raw"`` (what the mask forbids set to zero first);
- the maps: positions x positions, one set for all heads and one a layer, started at the identity; ``rank`` for
  low-rank ones;
- the order mask, softmax, maps, correlation, mask, softmax, dropout, values, and the correlation's scale, the
  root of the mapped profiles' size;
- "simple" and "value-weighted" by analogy with queries, keys and values; ``value_map=False`` leaves the third
  map out;
- "additive": the correlation is added to the scores (default), mixed with the first weights by a gate, or is
  Bahdanau's additive score: three readings of one word, "additive", "additive-gated", "additive-bahdanau".

The paper's fourth mechanism, "stochastic", needs Gaussian attention: `jaxrec.attention.wasserstein`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionContext, AttentionShape
from jaxrec.attention.core import (
    Mechanism,
    OutputProjection,
    Projections,
    Rows,
    contract,
    drop_weights,
    masked_softmax,
    merge_heads,
    position_count,
    projection_count,
    stretches,
)
from jaxrec.attention.reweighing import ProfileMaps, ReweighingConfig, reweigh


@dataclasses.dataclass(frozen=True)
class RefinedAttentionConfig(ReweighingConfig):
    """AWRSR on dot-product attention: attention to attention weights."""

    paper: ClassVar[str] = (
        "Pay Attention to Attention for Sequential Recommendation, RecSys 2024 (arXiv 2410.21048)"
    )

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return RefinedAttention(self, shape, name=name)

    def parameter_count(self, shape: AttentionShape) -> int:
        own = 3 * (shape.width**2 + shape.width) + self.reweighing_count(shape)
        return own + projection_count(shape) + position_count(self, shape)


class RefinedAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` with an output projection, the position scheme's, and with n the
    maximum length and r the rank or n: ``2 n r`` for the maps; "value-weighted" with a value map ``3 n^2``,
      or ``4 n r`` if
    low-rank; one more for "additive-gated", r more for "additive-bahdanau".
    Sows ``attention_weights`` (A', those used) and ``first_weights`` (softmax of the scores), float32[B, H,
    L, L].
    """

    config: RefinedAttentionConfig

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        config, dtype = self.config, self.shape.dtype
        batch, length, _ = x.shape
        turn, bias_of = self.position_terms(context)
        q, k, v = Projections(config.heads, self.shape, name="projections")(x, queries)
        maps = ProfileMaps(config, self.shape.max_length, name="profiles")()
        keep, probability = self.keep_mask((batch, config.heads, length, length), train)

        def core(rows: Rows, chunks: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = rows.inputs
            bias, allowed = bias_of(rows), rows.allowed()
            outs, earlier = [], None
            for start, stop in stretches(length, chunks):
                scores = contract("bihd,bjhd->bhij", q[:, start:stop], k[:, :stop], dtype)
                scores = scores if bias is None else scores + bias[:, :, start:stop, :stop]
                seen = allowed[:, :, start:stop, :stop]
                weights, earlier = reweigh(config, maps, scores, seen, rows.positions, dtype, earlier)
                keep = None if rows.keep is None else rows.keep[:, :, start:stop, :stop]
                dropped = drop_weights(weights, keep, probability)
                outs.append(contract("bhij,bjhd->bihd", dropped, v[:, :stop], dtype))
            # Weights are asked for in one stretch only (`Mechanism.over_rows`).
            shown = {"attention_weights": weights, "first_weights": masked_softmax(scores, seen)}
            return jnp.concatenate(outs, axis=1), shown

        inputs = (turn(q) * q.shape[-1] ** -0.5, turn(k), v)
        rows = Rows(inputs, context.segments, context.positions, context.timestamps, keep)
        attended = merge_heads(self.over_rows(core, rows, config.heads * length * length))
        return OutputProjection(self.shape, name="output")(attended)
