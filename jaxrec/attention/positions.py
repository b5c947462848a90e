"""Position schemes: how an encoder tells the order, and the distance, of interactions.

Additive schemes ("learned", "sinusoidal") are added to the embeddings by the encoder and do nothing here. The
others act inside every mechanism that scores pairs of positions. They depend on the distance between a query
and a key of the same sequence only. Those positions are adjacent in a row (`AttentionContext`), so the
distance is the difference of their columns, whatever ``positions`` counts from, and biases need no batch
axis.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrec.errors import DataError
from jaxrec.registry import Registry

#: Buckets of "relative-bias" and the distance from which all share the last (T5's defaults).
RELATIVE_BUCKETS = 32
RELATIVE_MAX_DISTANCE = 128
#: Buckets of "time-interval": two for each doubling of an int32 number of seconds.
INTERVAL_BUCKETS = 62
ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class PositionScheme:
    """What the parts need to know about a scheme.

    Attributes:
      description: one line for listings.
      additive: the encoder adds vectors to its input; attention does nothing.
      parameters_per_head: learned scalars for each head of each layer, inside attention.
      needs_timestamps: works on logs with timestamps only.
      even_heads: the width of a head must be even.
    """

    description: str
    additive: bool = False
    parameters_per_head: int = 0
    needs_timestamps: bool = False
    even_heads: bool = False


POSITIONS: Registry[PositionScheme] = Registry(
    "position scheme",
    {
        "none": PositionScheme("no positions: only the causal mask tells the order"),
        "learned": PositionScheme("a learned vector for each position, added at the input", additive=True),
        "sinusoidal": PositionScheme("fixed sines and cosines, added at the input", additive=True),
        "rotary": PositionScheme(
            "queries and keys rotated by position (RoPE; Su et al. 2021)", even_heads=True
        ),
        "relative-bias": PositionScheme(
            "a learned bias for each bucket of distances (T5; Raffel et al. 2020)",
            parameters_per_head=RELATIVE_BUCKETS,
        ),
        "alibi": PositionScheme("a fixed penalty in proportion to distance (ALiBi; Press et al. 2022)"),
        "time-interval": PositionScheme(
            "a learned bias for each bucket of seconds between query and key (Zhai et al. 2024)",
            parameters_per_head=INTERVAL_BUCKETS,
            needs_timestamps=True,
        ),
    },
)


def distances(length: int) -> np.ndarray:
    """int32[L, L]: how many interactions before the query (first axis) the key (second axis) is; 0 for later
    keys.
    """
    index = np.arange(length, dtype=np.int32)
    return np.maximum(index[:, None] - index[None, :], 0)


def relative_buckets(distance: np.ndarray) -> np.ndarray:
    """T5's causal buckets of distances >= 0: one for each of the first half, then logarithmic, int32."""
    exact = RELATIVE_BUCKETS // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / math.log(RELATIVE_MAX_DISTANCE / exact)
    logarithmic = exact + (ratio * (RELATIVE_BUCKETS - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(logarithmic, RELATIVE_BUCKETS - 1)).astype(
        np.int32
    )


def alibi_slopes(heads: int) -> np.ndarray:
    """float32[H]: the geometric sequence from 2^(-8/H) down to 2^-8."""
    return np.exp2(-8.0 * np.arange(1, heads + 1) / heads).astype(np.float32)


def interval_buckets(seconds: Array) -> Array:
    """int32 buckets of int32 seconds >= 0, exact by leading bits: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ..."""
    exponent = 31 - lax.clz(jnp.maximum(seconds, 1))
    second_bit = lax.shift_right_logical(seconds, jnp.maximum(exponent - 1, 0)) & 1
    return jnp.where(seconds < 2, seconds, 2 * exponent + second_bit)


def rotate(x: Array, length: int, at: Array | None = None) -> Array:
    """Rotate each pair (i, i + d/2) of ``x`` by the angle ``column * 10000^(-2i / d)``.

    ``x`` is [B, L, H, d] with L = ``length`` columns, or [B, S, H, d] of the columns ``at`` int32[B, S].
    """
    half = x.shape[3] // 2
    frequency = ROTARY_BASE ** (-np.arange(half) / half)
    angle = (np.arange(length)[:, None] * frequency[None, :]).reshape(length, 1, half)
    cosine, sine = (
        part[None] if at is None else jnp.asarray(part)[at]
        for part in (np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    )
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class ScoreBias(nn.Module):
    """The bias that a scheme adds to the scores: see `PositionScheme.parameters_per_head` for its parameters.

    Returns ``(bias float32[H, L, L] | None, interval_table float32[H, buckets] | None)``; the second one is
    looked up for each row by `interval_bias`, since it depends on the row's timestamps.
    """

    scheme: str
    heads: int

    @nn.compact
    def __call__(self, length: int) -> tuple[Array | None, Array | None]:
        count = POSITIONS[self.scheme].parameters_per_head
        if self.scheme == "alibi":
            slopes = alibi_slopes(self.heads)
            return jnp.asarray(-slopes[:, None, None] * distances(length)[None].astype(np.float32)), None
        if not count:
            return None, None
        table = self.param("table", nn.initializers.normal(0.02), (self.heads, count), jnp.float32)
        if self.scheme == "time-interval":
            return None, table
        return table[:, relative_buckets(distances(length))], None


def interval_bias(table: Array, timestamps: Array | None) -> Array:
    """float32[B, H, L, L] from ``table`` [H, buckets] and ``timestamps`` int32[B, L] in seconds."""
    if timestamps is None:
        raise DataError(
            "time-interval positions need timestamps: expected Batch.timestamps int32[B, L], got None; "
            "choose other positions, or load a log with a timestamp column"
        )
    seconds = jnp.maximum(timestamps[:, :, None] - timestamps[:, None, :], 0)
    return jnp.moveaxis(table[:, interval_buckets(seconds)], 0, 1)
