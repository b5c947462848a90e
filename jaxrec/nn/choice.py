"""Choosing an item of each row of scores: the best one, or a draw from their softmax.

A draw needs one random number of a row, where the usual way, the best of scores with Gumbel noise, needs one of each item
(``experiments/results/exposure_speed.md``).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

#: Items whose weights are summed first, so that a running sum is over few numbers.
BLOCK = 128


def best_index(scores: Float[Array, "R V"]) -> Int[Array, " R"]:
    """Find the best of each row, of equal ones the first: int32[R]."""
    # Two plain reductions: a CPU computes them several times as fast as an argmax.
    width = scores.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)
    best = scores.max(axis=1, keepdims=True)
    return jnp.where(scores == best, index, width - 1).min(axis=1)


def draw_index(scores: Float[Array, "R V"], uniform: Float[Array, " R"]) -> Int[Array, " R"]:
    """Draw from the softmax of each row, by inverting its cumulative distribution: int32[R].

    Columns of -inf are never drawn, and columns of -inf after the others change no draw; a row of them alone gives 0.

    Args:
      scores: logits; -inf = no candidate.
      uniform: a draw from [0, 1) for each row.
    """
    best = scores.max(axis=1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(best), best, 0.0))
    blocks = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % BLOCK))).reshape(len(weights), -1, BLOCK)
    sums = blocks.sum(axis=2)
    until = jnp.cumsum(sums, axis=1)
    goal = uniform * until[:, -1]
    block = _first_above(until, goal)[:, None]
    before = jnp.take_along_axis(until - sums, block, axis=1)[:, 0]
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0], axis=1)
    # Above 0 there is a weight; rounding may leave less than nothing to go.
    return block[:, 0] * BLOCK + _first_above(inside, jnp.maximum(goal - before, 0.0))


def _first_above(sums: Float[Array, "R N"], goal: Float[Array, " R"]) -> Int[Array, " R"]:
    """First place where ascending sums exceed the goal, or, where rounding leaves none, reach their last value: int32[R]."""
    last = jnp.arange(sums.shape[1], dtype=jnp.int32)
    above = sums > goal[:, None]
    reached = sums == sums[:, -1:]
    found = jnp.where(above.any(axis=1, keepdims=True), above, reached)
    return jnp.where(found, last, sums.shape[1] - 1).min(axis=1)
