"""Machinery beneath the formulas: heads, masks, dropout, stretches of time, and parts of Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.cache import Grown
from jaxrec.nn.precision import einsum, operand

#: Stretches of time that a CPU computes one after another, and the least length of one.
STRETCHES = 4
STRETCH_LENGTH = 16
#: Keeps the gradient of a square root finite where ELU + 1 underflows.
SMALLEST_VARIANCE = 1e-12


def split_heads(x: Float[Array, "*rows D"], heads: int) -> Float[Array, "*rows H d"]:
    """[..., D] to [..., H, D / H]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Float[Array, "*rows H d"]) -> Float[Array, "*rows D"]:
    """[..., H, d] to [..., H * d]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def masked_softmax(
    scores: Float[Array, "B H S L"], mask: Bool[Array, "#B #H S L"]
) -> Float[Array, "B H S L"]:
    """Softmax over the allowed entries of the last axis (one at least); exactly 0 elsewhere."""
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)


def pair_products(
    q: Float[Array, "R S H d"], k: Float[Array, "R L H d"] | Grown, dtype: Any
) -> Float[Array, "R H S L"]:
    """Product of every query with every key, ``q . k``, for each head.

    Keys in two parts stay where they are: rows with known keys in common meet them in one product.
    """
    equation = "bihd,bjhd->bhij"
    if not isinstance(k, Grown):
        return einsum(equation, q, k, dtype)
    rows, queries, heads, width = q.shape
    shared = q.reshape(k.known.shape[0], -1, heads, width)
    known = einsum(equation, shared, k.known, dtype)
    known = jnp.moveaxis(known.reshape(len(known), heads, -1, queries, known.shape[-1]), 2, 1)
    known = known.reshape(rows, heads, queries, -1)
    return jnp.concatenate([known, einsum(equation, q, k.new, dtype)], axis=-1)


def weighted_sums(
    weights: Float[Array, "R H S L"], v: Float[Array, "R L H d"] | Grown, dtype: Any
) -> Float[Array, "R S H d"]:
    """Sum of all values by the weights of each query and head; of values in two parts as in `pair_products`."""
    equation = "bhij,bjhd->bihd"
    if not isinstance(v, Grown):
        return einsum(equation, weights, v, dtype)
    (rows, heads, queries, _), (shared, known, _, _) = weights.shape, v.known.shape
    of_known = weights[..., :known].reshape(shared, -1, heads, queries, known)
    of_known = jnp.moveaxis(of_known, 1, 2).reshape(shared, heads, -1, known)
    out = einsum(equation, of_known, v.known, dtype).reshape(rows, queries, heads, -1)
    return out + einsum(equation, weights[..., known:], v.new, dtype)


def keep_all(weights: Float[Array, "*size"]) -> Float[Array, "*size"]:
    """Dropout that drops nothing."""
    return weights


def drop_weights(
    weights: Float[Array, "*size"], keep: Bool[Array, "*size"] | None, probability: float
) -> Float[Array, "*size"]:
    """Inverted dropout of weights by a mask ``keep`` that is true with ``probability``; None keeps all."""
    return weights if keep is None else jnp.where(keep, weights / probability, 0.0)


def stretch_count(length: int, backend: str, mask: str) -> int:
    """Number of stretches of time: a CPU gains by not scoring what a causal mask forbids."""
    if backend != "cpu" or mask != "causal":
        return 1
    return max(1, min(STRETCHES, length // STRETCH_LENGTH))


def stretches(length: int, count: int) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of time."""
    return [(part * length // count, (part + 1) * length // count) for part in range(count)]


def attend_in_stretches(
    formula: Callable[..., tuple[Array, Array]],
    q: Float[Array, "B LM H d"],
    k: Float[Array, "B K H d"],
    v: Float[Array, "B K H d"],
    bias: Float[Array, "#B #H LM K"] | float,
    mask: Bool[Array, "#B #H LM K"],
    *,
    keep: Bool[Array, "B H LM K"] | None = None,
    probability: float = 1.0,
    count: int = 1,
    queries_per_position: int = 1,
) -> tuple[Float[Array, "B LM H d"], Float[Array, "B H queries keys"]]:
    """Apply a formula of (q, k, v, bias, mask) to one stretch of time after another.

    The queries of a stretch meet the keys up to its end only, which is all that a causal mask allows. The result does
    not depend on ``count``; with a bidirectional mask it must be 1.

    Args:
      formula: ``(q, k, v, bias, mask, dropout) -> (out, weights)``, each query by itself.
      q: [B, L * M, H, d], M = ``queries_per_position`` adjacent queries at each time.
      k: [B, E + L, H, d], E keys outside the row in front.
      v: [B, E + L, H, d].
      bias: [1 or B, H, L * M, E + L], or a number.
      mask: bool[B, 1 or H, L * M, E + L].
      keep: bool[B, H, L * M, E + L], weights that dropout keeps, or None for all.
      probability: of keeping a weight.
      count: number of stretches.
      queries_per_position: M.

    Returns:
      [B, L * M, H, d], and the weights [B, H, queries, keys] before dropout of the last stretch (all of them where
      ``count`` is 1).
    """
    length = q.shape[1] // queries_per_position
    outside = k.shape[1] - length
    outs = []
    for start, stop in stretches(length, count):
        queries = slice(start * queries_per_position, stop * queries_per_position)
        keys = slice(outside + stop)

        def part(pairs: Array, queries: slice = queries, keys: slice = keys) -> Array:
            return pairs[:, :, queries, keys]

        dropout = partial(drop_weights, keep=None if keep is None else part(keep), probability=probability)
        out, weights = formula(
            q[:, queries],
            k[:, keys],
            v[:, keys],
            part(bias) if isinstance(bias, Array) else bias,
            part(mask),
            dropout=dropout,
        )
        outs.append(out)
    return (outs[0] if count == 1 else jnp.concatenate(outs, axis=1)), weights


def elu_plus_one(x: Float[Array, "*size"]) -> Float[Array, "*size"]:
    """The covariances of STOSA: ELU + 1, positive."""
    return jax.nn.elu(x) + 1.0


def standard_deviation(variance: Float[Array, "*size"]) -> Float[Array, "*size"]:
    """The square root, with a finite gradient everywhere."""
    return jnp.sqrt(jnp.maximum(variance, SMALLEST_VARIANCE))


def negative_squared_distances(
    a: Float[Array, "B H I size"], b: Float[Array, "B H J size"], dtype: Any
) -> Float[Array, "B H I J"]:
    """``-|a_i - b_j|^2`` [B, H, I, J] from [B, H, I, size] and [B, H, J, size], as one matrix product.

    The squares are of the rounded operands: those of exact ones would not cancel against the product, and a vector
    would be far from itself.
    """
    rounded = (operand(x, dtype).astype(jnp.float32) for x in (a, b))
    squares_a, squares_b = (jnp.sum(x**2, axis=-1) for x in rounded)
    return 2.0 * einsum("bhir,bhjr->bhij", a, b, dtype) - squares_a[..., :, None] - squares_b[..., None, :]


def index_from_start(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """int32[B, L]: the index of each position inside its own run of equal ``segments``, 0 = its first."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    before = jnp.concatenate([jnp.full_like(segments[:, :1], -1), segments[:, :-1]], axis=1)
    starts = jnp.where(segments != before, columns, jnp.int32(0))
    return columns - jax.lax.cummax(starts, axis=1)
