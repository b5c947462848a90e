"""Position schemes: how an encoder represents the order and the distance of interactions.

Additive schemes ("learned", "sinusoidal") are added to the embeddings by the encoder and do nothing here. The others
act inside every mechanism that scores pairs of positions; "learned-hstu-time" does both. What acts inside depends on the
offset between a query and a key of the same sequence, or on their times. Those positions are adjacent in a row
(`AttentionContext`), so the offset is the difference of their columns, whatever ``positions`` counts from, and biases of
offsets need no batch axis.

Under a bidirectional mask "rotary" and "relative-bias" (T5's buckets for both directions) distinguish earlier from
later keys; the others see the distance alone.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.errors import DataError
from jaxrec.registry import Registry

#: Buckets of "relative-bias" and the distance from which all share the last (T5's defaults).
RELATIVE_BUCKETS = 32
RELATIVE_MAX_DISTANCE = 128
#: Buckets of "time-interval": two for each doubling of an int32 number of seconds.
INTERVAL_BUCKETS = 62
#: Buckets of "hstu-time", and the logarithm of the ratio of their bounds (HSTU's code: 1.35, 128 buckets).
QUESTION_BUCKETS = 128
QUESTION_LOG = 0.301
ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class PositionScheme:
    """Properties of a scheme.

    Attributes:
      description: one line for listings.
      additive: the encoder adds vectors to its input.
      learned: these vectors are learned.
      inside: attention does something: it turns queries and keys, or adds a bias to their scores.
      buckets: learned scalars of each layer inside attention, for each head.
      shared_by_heads: one table of them for all heads.
      needs_timestamps: works on logs with timestamps only.
      even_heads: the width of a head must be even.
      reads_next_time: a position reads the time of the next interaction, which is the target's in training.
    """

    description: str
    additive: bool = False
    learned: bool = False
    inside: bool = False
    buckets: int = 0
    shared_by_heads: bool = False
    needs_timestamps: bool = False
    even_heads: bool = False
    reads_next_time: bool = False


POSITIONS: Registry[PositionScheme] = Registry(
    "position scheme",
    {
        "none": PositionScheme("no positions: only the causal mask tells the order"),
        "learned": PositionScheme(
            "a learned vector for each position, added at the input", additive=True, learned=True
        ),
        "sinusoidal": PositionScheme("fixed sines and cosines, added at the input", additive=True),
        "rotary": PositionScheme(
            "queries and keys rotated by position (RoPE; Su et al. 2021)", inside=True, even_heads=True
        ),
        "relative-bias": PositionScheme(
            "a learned bias for each bucket of distances (T5; Raffel et al. 2020)",
            inside=True,
            buckets=RELATIVE_BUCKETS,
        ),
        "alibi": PositionScheme(
            "a fixed penalty in proportion to distance (ALiBi; Press et al. 2022)", inside=True
        ),
        "time-interval": PositionScheme(
            "a learned bias for each head and half-octave of seconds between query and key",
            inside=True,
            buckets=INTERVAL_BUCKETS,
            needs_timestamps=True,
        ),
        "hstu-time": PositionScheme(
            "a learned bias for each bucket of seconds between the key and the next interaction after the "
            "query, one table for all heads (HSTU's bias; Zhai et al. 2024)",
            inside=True,
            buckets=QUESTION_BUCKETS,
            shared_by_heads=True,
            needs_timestamps=True,
            reads_next_time=True,
        ),
        "learned-hstu-time": PositionScheme(
            "learned vectors added at the input, and the bias of hstu-time (HSTU as its code trains it)",
            additive=True,
            learned=True,
            inside=True,
            buckets=QUESTION_BUCKETS,
            shared_by_heads=True,
            needs_timestamps=True,
            reads_next_time=True,
        ),
    },
)


def offsets(length: int) -> Int[np.ndarray, "L L"]:
    """int32[L, L]: how many interactions before the query (first axis) the key (second axis) is; < 0 if later."""
    index = np.arange(length, dtype=np.int32)
    return index[:, None] - index[None, :]


def relative_buckets(
    offset: Int[np.ndarray, "*size"], bidirectional: bool = False
) -> Int[np.ndarray, "*size"]:
    """T5's buckets of offsets, int32: one for each small distance, then logarithmic.

    Causal: all buckets are for distances >= 0 (later keys, which the mask forbids, share the first). Bidirectional:
    the first half is for distances >= 0, the second half for later keys.
    """
    count = RELATIVE_BUCKETS // 2 if bidirectional else RELATIVE_BUCKETS
    later = np.where(offset < 0, count, 0) if bidirectional else np.zeros_like(offset)
    distance = np.abs(offset) if bidirectional else np.maximum(offset, 0)
    exact = count // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / math.log(RELATIVE_MAX_DISTANCE / exact)
    logarithmic = exact + (ratio * (count - exact)).astype(np.int32)
    near = np.where(distance < exact, distance, np.minimum(logarithmic, count - 1))
    return (later + near).astype(np.int32)


def alibi_slopes(heads: int) -> Float[np.ndarray, " H"]:
    """float32[H]: the geometric sequence from 2^(-8/H) down to 2^-8."""
    return np.exp2(-8.0 * np.arange(1, heads + 1) / heads).astype(np.float32)


def interval_buckets(seconds: Int[Array, "*size"]) -> Int[Array, "*size"]:
    """int32 buckets of int32 seconds >= 0, exact by leading bits: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ..."""
    exponent = 31 - lax.clz(jnp.maximum(seconds, 1))
    second_bit = lax.shift_right_logical(seconds, jnp.maximum(exponent - 1, 0)) & 1
    return jnp.where(seconds < 2, seconds, 2 * exponent + second_bit)


def question_buckets(seconds: Int[Array, "*size"]) -> Int[Array, "*size"]:
    """int32 buckets of int32 seconds >= 0 as HSTU's code has them: floor(ln(max(seconds, 1)) / 0.301)."""
    logarithm = jnp.log(jnp.maximum(seconds, 1).astype(jnp.float32))
    return jnp.minimum((logarithm / QUESTION_LOG).astype(jnp.int32), QUESTION_BUCKETS - 1)


def question_times(timestamps: Int[Array, "B L"], segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """int32[B, L]: time of the next interaction of the same sequence; at its end, of the last one.

    Args:
      timestamps: int32[B, L], seconds.
      segments: int32[B, L].
    """
    continues = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (0, 1)))
    following = jnp.concatenate([timestamps[:, 1:], timestamps[:, -1:]], axis=1)
    return jnp.where(continues, following, timestamps)


def rotate(
    x: Float[Array, "B S H d"], length: int, query_positions: Int[Array, "B S"] | None = None
) -> Float[Array, "B S H d"]:
    """Rotate each pair (i, i + d/2) of ``x`` by the angle ``column * 10000^(-2i / d)``.

    Args:
      x: [B, L, H, d] with L = ``length`` columns, or [B, S, H, d] of the columns ``query_positions``.
      length: L.
      query_positions: int32[B, S], or None for all columns.
    """
    half = x.shape[3] // 2
    frequency = ROTARY_BASE ** (-np.arange(half) / half)
    angle = (np.arange(length)[:, None] * frequency[None, :]).reshape(length, 1, half)
    cosine, sine = (
        part[None] if query_positions is None else jnp.asarray(part)[query_positions]
        for part in (np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    )
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class ScoreBias(nn.Module):
    """Bias that a scheme adds to the scores; its parameters are those that `PositionScheme` counts.

    Returns ``(bias float32[H, L, L] | None, table float32[H or 1, buckets] | None)``; the table is that of the schemes
    that depend on a row's timestamps, for `interval_bias`.
    """

    scheme: str
    heads: int

    @nn.compact
    def __call__(
        self, length: int, bidirectional: bool = False
    ) -> tuple[Float[Array, "H L L"] | None, Float[Array, "H1 buckets"] | None]:
        """Return the bias and the table for rows of ``length``; see the class."""
        scheme = POSITIONS[self.scheme]
        if self.scheme == "alibi":
            distance = np.abs(offsets(length)).astype(np.float32)
            return jnp.asarray(-alibi_slopes(self.heads)[:, None, None] * distance[None]), None
        if not scheme.buckets:
            return None, None
        heads = 1 if scheme.shared_by_heads else self.heads
        table = self.param("table", nn.initializers.normal(0.02), (heads, scheme.buckets), jnp.float32)
        if scheme.needs_timestamps:
            return None, table
        return table[:, relative_buckets(offsets(length), bidirectional)], None


def interval_bias(
    scheme: str,
    table: Float[Array, "H1 buckets"],
    timestamps: Int[Array, "B L"] | None,
    segments: Int[Array, "B L"],
    query_positions: Int[Array, "B S"] | None = None,
) -> Float[Array, "B H1 S L"]:
    """Bias of the scores from the seconds between query and key.

    Args:
      scheme: "time-interval", "hstu-time" or "learned-hstu-time".
      table: float32[H or 1, buckets].
      timestamps: int32[B, L], seconds, or None.
      segments: int32[B, L].
      query_positions: int32[B, S], columns of the queries; None = all L.

    Returns:
      float32[B, H or 1, L, L], or [B, H or 1, S, L].

    Raises:
      DataError: there are no timestamps.
    """
    if timestamps is None:
        raise DataError(
            f"{scheme} positions need timestamps: expected Batch.timestamps int32[B, L], got None; "
            f"choose other positions, or load a log with a timestamp column"
        )
    hstu = POSITIONS[scheme].reads_next_time
    query_times = question_times(timestamps, segments) if hstu else timestamps
    if query_positions is not None:
        query_times = jnp.take_along_axis(query_times, query_positions, axis=1)
    seconds = jnp.abs(query_times[:, :, None] - timestamps[:, None, :])
    buckets = question_buckets(seconds) if hstu else interval_buckets(seconds)
    return jnp.moveaxis(table[:, buckets], 0, 1)
