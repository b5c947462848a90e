"""Transformer blocks: attention and a feed-forward network, in the three arrangements that the papers use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape
from jaxrec.layers import Dense, Dropout, Initializer
from jaxrec.registry import Registry

ACTIVATIONS: Registry[Callable[[Array], Array]] = Registry(
    "activation",
    {
        "relu": jax.nn.relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu-tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "silu": jax.nn.silu,
    },
)


class FeedForward(nn.Module):
    """``D -> ffn_width -> D`` at each position: ``2 * D * ffn_width + ffn_width + D`` parameters."""

    ffn_width: int
    activation: str
    dropout: float
    inner_dropout: bool
    kernel_init: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = x.shape[-1]
        hidden = Dense(self.ffn_width, kernel_init=self.kernel_init, dtype=self.dtype, name="inner")(x)
        hidden = ACTIVATIONS[self.activation](hidden)
        if self.inner_dropout:
            hidden = Dropout(self.dropout)(hidden, train)
        out = Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="outer")(hidden)
        return Dropout(self.dropout)(out, train)


class Block(nn.Module):
    """One layer: ``x [B, L, D] -> [B, L, D]``.

    Arrangements:
      original: Kang & McAuley 2018 as published code has it: only the queries' input is normalised, the residual adds
        that normalised input, the feed-forward residual adds its own normalised input, no output projection.
      post-norm: norm after each residual (S3-Rec, Li et al. 2023).
      pre-norm: norm before each sublayer; the encoder normalises once more at the end.
    """

    arrangement: str
    attention: AttentionConfig
    shape: AttentionShape
    ffn_width: int
    activation: str
    dropout: float
    norm_epsilon: float

    @nn.compact
    def __call__(self, x: Array, context: AttentionContext, train: bool) -> Array:
        attend = self.attention.module(self.shape, name="attention")
        feed_forward = FeedForward(
            self.ffn_width,
            self.activation,
            self.dropout,
            inner_dropout=self.arrangement != "post-norm",
            kernel_init=self.shape.kernel_init,
            dtype=self.shape.dtype,
            name="feed_forward",
        )

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=self.norm_epsilon, name=name)

        if self.arrangement == "original":
            queries = norm("attention_norm")(x)
            x = queries + attend(x, context, train, queries=queries)
            x = norm("feed_forward_norm")(x)
            return x + feed_forward(x, train)
        if self.arrangement == "post-norm":
            attended = Dropout(self.dropout)(attend(x, context, train), train)
            x = norm("attention_norm")(x + attended)
            return norm("feed_forward_norm")(x + feed_forward(x, train))
        attended = attend(norm("attention_norm")(x), context, train)
        x = x + Dropout(self.dropout)(attended, train)
        return x + feed_forward(norm("feed_forward_norm")(x), train)


def zero_padding(x: Array, segments: Array) -> Array:
    """States [B, L, D] with those of padding set to zero."""
    return jnp.where((segments > 0)[..., None], x, 0.0)
