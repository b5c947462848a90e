"""Transformer blocks: attention and a feed-forward network, in the arrangements that the papers use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.nn.layers import Dense, Dropout, Initializer, LayerNorm, take_positions
from jaxrec.registry import Registry

ACTIVATIONS: Registry[Callable[[Array], Array]] = Registry(
    "activation",
    {
        "relu": jax.nn.relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu-tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "silu": jax.nn.silu,
        "identity": lambda x: x,
    },
)


#: Name of the activation that is a gated network: ``(SiLU(x W_1 + b_1) * (x W_2 + b_2)) W_3 + b_3``.
SWIGLU = "swiglu"


class FeedForward(nn.Module):
    """``D -> ffn_width -> D`` at each position: ``2 * D * ffn_width + ffn_width + D`` parameters.

    With the activation "swiglu" (Shazeer 2020, arXiv 2002.05202) a second map of the input multiplies the inner states:
    ``D * ffn_width + ffn_width`` parameters more.
    """

    ffn_width: int
    activation: str
    dropout: float
    inner_dropout: bool
    kernel_init: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"], train: bool) -> Float[Array, "*rows D"]:
        """Apply the network to ``x`` [B, L, D]."""
        width = x.shape[-1]
        hidden = Dense(self.ffn_width, kernel_init=self.kernel_init, dtype=self.dtype, name="inner")(x)
        if self.activation == SWIGLU:
            factor = Dense(self.ffn_width, kernel_init=self.kernel_init, dtype=self.dtype, name="factor")(x)
            hidden = jax.nn.silu(hidden) * factor
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        if self.inner_dropout:
            hidden = Dropout(self.dropout)(hidden, train)
        out = Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="outer")(hidden)
        return Dropout(self.dropout)(out, train)


#: Names of the arrangements, described in `Block`.
ARRANGEMENTS = ("original", "post-norm", "pre-norm", "gated", "attention-only")


class Block(nn.Module):
    """One layer: ``x [B, L, D] -> [B, L, D]``, or [B, S, D] for ``query_positions`` int32[B, S] alone.

    Arrangements:
      original: Kang & McAuley 2018 as published code has it: only the queries' input is normalised, the residual adds
        that normalised input, the feed-forward residual adds its own normalised input, no output projection.
      post-norm: norm after each residual (S3-Rec, Li et al. 2023).
      pre-norm: norm before each sublayer; the encoder normalises once more at the end.
      gated: ``x + f(norm(x)) * sigmoid(x W + b)`` for each sublayer f, a W and b for each (LiGR, Borisyuk et al. 2025,
        arXiv 2502.03417). That the gate reads x as it is, before the norm, follows the public implementations for
        sequential recommendation, whose feed-forward network is that of the activation "swiglu", without biases.
      attention-only: ``x + attend(norm(x))``. HSTU's layer (Zhai et al. 2024, arXiv 2402.17152): its attention has a
        gate of its own in place of the feed-forward network.
    """

    arrangement: str
    attention: AttentionConfig
    spec: AttentionSpec
    ffn_width: int
    activation: str
    dropout: float
    norm_epsilon: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: AttentionContext,
        train: bool,
        query_positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Apply the layer to ``x`` [B, L, D]; see the class."""
        attention = self.attention.build(self.spec, name="attention")
        feed_forward = FeedForward(
            self.ffn_width,
            self.activation,
            self.dropout,
            inner_dropout=self.arrangement != "post-norm",
            kernel_init=self.spec.kernel_init,
            dtype=self.spec.dtype,
            name="feed_forward",
        )

        def norm(name: str) -> LayerNorm:
            return LayerNorm(epsilon=self.norm_epsilon, name=name)

        def select(x: Array) -> Array:
            return x if query_positions is None else take_positions(x, query_positions)

        # Keys outside the row are dropped for all queries at once, so that training computes them all.
        outside = context.padding is not None or context.prefix is not None
        selects = self.attention.selects_positions and not (train and outside)

        def attend(x: Array, queries: Array | None = None) -> Array:
            if query_positions is None or not selects:
                return select(attention(x, context, train, queries=queries))
            return attention(x, context, train, queries=queries, query_positions=query_positions)

        def gated(name: str, x: Array, change: Array) -> Array:
            if self.arrangement != "gated":
                return change
            gate = Dense(self.spec.width, kernel_init=self.spec.kernel_init, dtype=self.spec.dtype, name=name)
            return change * jax.nn.sigmoid(gate(x))

        attention_norm = norm("attention_norm")
        if context.tokens is not None and self.arrangement != "post-norm":
            context = dataclasses.replace(context, tokens=attention_norm(context.tokens))
        if context.padding is not None and self.arrangement not in ("original", "post-norm"):
            context = dataclasses.replace(context, padding=attention_norm(context.padding))
        if context.prefix is not None and self.arrangement not in ("original", "post-norm"):
            context = dataclasses.replace(context, prefix=attention_norm(context.prefix))
        if self.arrangement == "original":
            queries = attention_norm(x)
            x = select(queries) + attend(x, queries)
            x = norm("feed_forward_norm")(x)
            return x + feed_forward(x, train)
        if self.arrangement == "post-norm":
            attended = Dropout(self.dropout)(attend(x), train)
            x = attention_norm(select(x) + attended)
            return norm("feed_forward_norm")(x + feed_forward(x, train))
        attended = Dropout(self.dropout)(attend(attention_norm(x)), train)
        x = select(x)
        x = x + gated("attention_gate", x, attended)
        if self.arrangement == "attention-only":
            return x
        return x + gated("feed_forward_gate", x, feed_forward(norm("feed_forward_norm")(x), train))


def zero_padding(x: Float[Array, "B L D"], segments: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Set the states [B, L, D] of padding to zero."""
    return jnp.where((segments > 0)[..., None], x, 0.0)
