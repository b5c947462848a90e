"""Sequences inside the rows of a batch, read off ``segments`` int32[B, L]: 0 = padding, 1.. = which sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Shaped


def is_first(segments: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Mark the first position of each sequence, bool[B, L]."""
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return (segments > 0) & (segments != before)


def is_last(segments: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Mark the last position of each sequence, bool[B, L]."""
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    return (segments > 0) & (segments != following)


def first_index(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Column of the first position of each position's sequence, int32[B, L]; meaningless on padding."""
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    return jax.lax.cummax(jnp.where(is_first(segments), column, 0), axis=1)


def last_index(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Column of the last position of each position's sequence, int32[B, L]; meaningless on padding."""
    length = segments.shape[1]
    column = jnp.arange(length, dtype=jnp.int32)[None]
    return jax.lax.cummin(jnp.where(is_last(segments), column, length - 1), axis=1, reverse=True)


def per_segment(values: Shaped[Array, "B L"], segments: Int[Array, "B L"]) -> Shaped[Array, "B L"]:
    """Give every position the value of ``values`` [B, L] at the first position of its sequence."""
    return jnp.take_along_axis(values, first_index(segments), axis=1)


def any_in_segment(marks: Bool[Array, "B L"], segments: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Tell for each position whether its sequence has a position marked in ``marks`` bool[B, L]."""
    marked = marks.astype(jnp.int32)
    counts = jnp.cumsum(marked, axis=1, dtype=jnp.int32)
    before = jnp.take_along_axis(counts - marked, first_index(segments), axis=1)
    return jnp.take_along_axis(counts, last_index(segments), axis=1) > before
