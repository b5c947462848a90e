"""Softmax attention as functions of queries, keys, values, bias and mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import allowed_positions
from jaxrec.nn.precision import contract

#: Stretches of time that the core treats one by one on a CPU, and the least length of one.
CHUNKS = 4
CHUNK_LENGTH = 16


def split_heads(x: Array, heads: int) -> Array:
    """[..., D] to [..., H, D / H]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """[..., H, d] to [..., H * d]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def masked_softmax(scores: Array, allowed: Array) -> Array:
    """Softmax over the allowed entries of the last axis (one at least); exactly 0 elsewhere."""
    return jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(scores.dtype).min), axis=-1)


def causal_chunks(length: int, backend: str) -> int:
    """How many stretches of time to treat one by one: a CPU gains by not scoring what the mask forbids."""
    return max(1, min(CHUNKS, length // CHUNK_LENGTH)) if backend == "cpu" else 1


def stretches(length: int, chunks: int) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of time."""
    return [(chunk * length // chunks, (chunk + 1) * length // chunks) for chunk in range(chunks)]


class Extra(NamedTuple):
    """Keys outside the row that every query may see.

    Attributes:
      queries: [B, L * M, H, d], what meets these keys.
      keys, values: [E, H, d].
    """

    queries: Array
    keys: Array
    values: Array


def softmax_core(
    q: Array,
    k: Array,
    v: Array,
    *,
    segments: Array,
    bias: Array | None,
    keep: Array | None,
    probability: float,
    dtype: Any,
    chunks: int,
    slots: int = 1,
    extra: Extra | None = None,
) -> tuple[Array, Array]:
    """Causal softmax attention, one stretch of time after another against the keys up to its end.

    Args:
      q: [B, L * M, H, d], M = ``slots`` queries at each time, adjacent.
      k, v: [B, L, H, d].
      segments: int32[B, L].
      bias: of the scores, [1 or B, H, L, L], or None.
      keep: the weights that dropout keeps, bool[B, H, L, M, E + L], or None; kept with ``probability``.
      dtype: of the operands of products.
      chunks: number of stretches; the result does not depend on it.
      extra: E more keys, before the row's own, or None.

    Returns:
      [B, L * M, H, d], and the weights [B, H, stretch, M, E + L] before dropout of the last stretch (all
      times where ``chunks`` is 1).
    """
    batch, length, heads, _ = k.shape
    outside = 0 if extra is None else extra.keys.shape[0]
    allowed = allowed_positions(segments)
    outs = []
    for start, stop in stretches(length, chunks):
        asking = slice(start * slots, stop * slots)
        size = (batch, heads, stop - start, slots)
        scores = contract("bihd,bjhd->bhij", q[:, asking], k[:, :stop], dtype).reshape(*size, stop)
        if bias is not None:
            scores = scores + bias[:, :, start:stop, None, :stop]
        seen = jnp.broadcast_to(allowed[:, None, start:stop, None, :stop], scores.shape)
        if extra is not None:
            more = contract("bihd,jhd->bhij", extra.queries[:, asking], extra.keys, dtype)
            scores = jnp.concatenate([more.reshape(*size, outside), scores], axis=-1)
            seen = jnp.concatenate([jnp.ones((*size, outside), jnp.bool_), seen], axis=-1)
        weights = masked_softmax(scores, seen)
        dropped = drop_weights(
            weights, None if keep is None else keep[:, :, start:stop, :, : outside + stop], probability
        ).reshape(batch, heads, (stop - start) * slots, outside + stop)
        out = contract("bhij,bjhd->bihd", dropped[..., outside:], v[:, :stop], dtype)
        if extra is not None:
            out = out + contract("bhij,jhd->bihd", dropped[..., :outside], extra.values, dtype)
        outs.append(out)
    return (outs[0] if chunks == 1 else jnp.concatenate(outs, axis=1)), weights


def softmax_at(
    q: Array, k: Array, v: Array, *, at: Array, segments: Array, bias: Array | None, dtype: Any
) -> Array:
    """What `softmax_core` gives at the positions ``at`` int32[B, S], whose queries are ``q`` [B, S, H, d]."""
    scores = contract("bihd,bjhd->bhij", q, k, dtype)
    if bias is not None:
        scores = scores + jnp.take_along_axis(bias, at[:, None, :, None], axis=2)
    weights = masked_softmax(scores, allowed_positions(segments, at)[:, None])
    return contract("bhij,bjhd->bihd", weights, v, dtype)


def drop_weights(weights: Array, keep: Array | None, probability: float) -> Array:
    """Inverted dropout of attention weights."""
    return weights if keep is None else jnp.where(keep, weights / probability, 0.0)


def index_from_start(segments: Array) -> Array:
    """int32[B, L]: the index of each position inside its own run of equal ``segments``, 0 = its first."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    before = jnp.concatenate([jnp.full_like(segments[:, :1], -1), segments[:, :-1]], axis=1)
    starts = jnp.where(segments != before, columns, jnp.int32(0))
    return columns - jax.lax.cummax(starts, axis=1)
