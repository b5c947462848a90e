"""The kernel of the exact cross-entropy: one pass over chunks of positions that leaves the gradient behind.

For a chunk of c positions, with E the items and P = exp(H Eᵀ - m) for any shift m that neither over- nor underflows::

    Z = Σ_i P_i + exp(s_target - m)          loss = log(Z) + m - s_target
    dH = (P E) / Z + (p_target - 1) E_target     dE = Pᵀ (w H / Z) + (p_target - 1) w H  at the target

The column of the target is left out of P and added in float32, so that a confident position (p_target near 1) keeps its
small gradient even where P is rounded to bfloat16. Neither a softmax nor a one-hot matrix is formed: three matrix products and one
exponential a score, the least that the exact gradient takes.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jaxrec.models.base import ItemTable

TILE_BYTES = 4 * 2**20  # of float32 scores: what stays in the cache of a few CPU cores


class _Settings(NamedTuple):
    label_smoothing: float
    dtype: str
    token_chunk: int


def catalogue_cross_entropy(
    hidden: Array,
    table: ItemTable,
    targets: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    dtype: str = "float32",
    token_chunk: int = 0,
) -> Array:
    """The weighted sum of the cross-entropy of N positions over V items, float32.

    Args:
      hidden: float32[N, D].
      table: vectors float32[V+1, D], bias float32[V+1] or None; row 0 is never a candidate.
      targets: int32[N] in 1..V where the weight is positive.
      weights: float32[N]; positions of weight 0 cost nothing and may hold any target.
      label_smoothing: share of the target's probability spread evenly over the items.
      dtype: operands of the products; sums are float32.
      token_chunk: positions a chunk; 0 = chosen from the shapes.
    """
    n, v = hidden.shape[0], table.vectors.shape[0]
    chunk = token_chunk or max(64, min(512, TILE_BYTES // (4 * v)))
    settings = _Settings(label_smoothing, dtype, min(chunk, max(n, 1)))
    vectors = table.vectors
    if table.bias is not None:
        vectors = jnp.concatenate([vectors, table.bias[:, None]], axis=1)
        hidden = jnp.concatenate([hidden, jnp.ones((n, 1), hidden.dtype)], axis=1)
    total = _loss(hidden, vectors, targets, weights, settings)
    if label_smoothing > 0:
        # The scores enter linearly: log Z - (1 - a) s_target - a mean(s) = [log Z - s_target] + a (s_target - mean(s)).
        towards = vectors[jnp.where(weights > 0, targets, 0)] - jnp.mean(vectors[1:], axis=0, keepdims=True)
        excess = jnp.sum(jnp.where(weights[:, None] > 0, hidden * towards, 0.0), axis=1)
        total = total + label_smoothing * jnp.sum(weights * excess)
    return total


@custom_vmap
def _same_for_all(x: Array) -> Array:
    """The identity; under `vmap` the maximum over the batch, so that a loop bound stays one number for all."""
    return x


@_same_for_all.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return (jnp.max(x, axis=0), False) if in_batched[0] else (x, False)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(hidden: Array, vectors: Array, targets: Array, weights: Array, settings: _Settings) -> Array:
    return _run(hidden, vectors, targets, weights, settings, gradient=False)[0]


def _forward(
    hidden: Array, vectors: Array, targets: Array, weights: Array, settings: _Settings
) -> tuple[Array, tuple[Array, Array, Array]]:
    total, *gradients = _run(hidden, vectors, targets, weights, settings, gradient=True)
    return total, tuple(gradients)


def _backward(
    settings: _Settings, gradients: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, None, Array]:
    hidden_bar, vectors_bar, losses = gradients
    return cotangent * hidden_bar, cotangent * vectors_bar, None, cotangent * losses


_loss.defvjp(_forward, _backward)


def _run(
    hidden: Array, vectors: Array, targets: Array, weights: Array, settings: _Settings, gradient: bool
) -> tuple[Array, ...]:
    """(loss, d hidden, d vectors, loss of each position), or (loss,) without ``gradient``."""
    n, width = hidden.shape
    rows = vectors.shape[0]
    chunk = settings.token_chunk
    real = weights > 0
    n_real = jnp.sum(real, dtype=jnp.int32)
    before = jnp.cumsum(real, dtype=jnp.int32) - real.astype(jnp.int32)
    place = jnp.where(real, before, n_real + jnp.arange(n, dtype=jnp.int32) - before)
    padded = -(-max(n, 1) // chunk) * chunk
    order = (
        jnp.full((padded,), n, jnp.int32).at[place].set(jnp.arange(n, dtype=jnp.int32), unique_indices=True)
    )
    n_chunks = _same_for_all((n_real + chunk - 1) // chunk)

    dtype = jnp.dtype(settings.dtype)
    items = vectors.astype(dtype)

    def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        start = i * chunk
        index = lax.dynamic_slice(order, (start,), (chunk,))
        h = jnp.take(hidden, index, axis=0, mode="fill", fill_value=0)
        w = jnp.take(weights, index, mode="fill", fill_value=0)
        y = jnp.where(w > 0, jnp.take(targets, index, mode="fill", fill_value=0), 0)
        hd = h.astype(dtype)
        target_rows = items[y]
        s_target = jnp.sum(hd.astype(jnp.float32) * target_rows.astype(jnp.float32), axis=1)
        scores = lax.dot_general(hd, items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        column = jnp.arange(rows, dtype=jnp.int32)[None, :]
        scores = jnp.where((column == 0) | (column == y[:, None]), -jnp.inf, scores)
        shift = jnp.maximum(jnp.max(scores, axis=1), s_target)
        p = jnp.exp(scores - shift[:, None])
        p_target = jnp.exp(s_target - shift)
        z = jnp.sum(p, axis=1) + p_target
        losses = jnp.where(w > 0, jnp.log(z) + shift - s_target, 0.0)
        total = carry[0] + jnp.sum(w * losses)
        if not gradient:
            return (total,)
        pd = p.astype(dtype)
        short = (z - p_target) / z  # 1 - p_target
        h_bar = lax.dot_general(pd, items, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        h_bar = (w / z)[:, None] * h_bar - (w * short)[:, None] * target_rows.astype(jnp.float32)
        scaled = h * (w / z)[:, None]
        e_bar = carry[2] + lax.dot_general(
            pd, scaled.astype(dtype), (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        e_bar = e_bar.at[y].add(-(w * short)[:, None] * h)
        hidden_bar = lax.dynamic_update_slice(carry[1], h_bar, (start, jnp.int32(0)))
        return total, hidden_bar, e_bar, lax.dynamic_update_slice(carry[3], losses, (start,))

    carry: tuple[Array, ...] = (jnp.zeros((), jnp.float32),)
    if gradient:
        carry = (
            *carry,
            jnp.zeros((padded, width), jnp.float32),
            jnp.zeros((rows, width), jnp.float32),
            jnp.zeros((padded,), jnp.float32),
        )
    out = lax.fori_loop(jnp.int32(0), n_chunks, body, carry)
    if not gradient:
        return out
    total, hidden_bar, e_bar, losses = out
    return total, hidden_bar[place].astype(hidden.dtype), e_bar.astype(vectors.dtype), losses[place]
