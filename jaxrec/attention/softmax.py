"""Scaled dot-product softmax attention (Vaswani et al. 2017), causal within each sequence of a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape, allowed_positions
from jaxrec.layers import Dense, dropout_mask, matmul


def map_rows(
    function: Callable[..., Array], rows_per_group: int, *arrays: Array
) -> Array:
    """``function(*arrays)`` over groups of rows of the leading axis, recomputed in the backward pass.

    The [rows, L, L] tensors of attention then stay in a CPU's cache instead of travelling through memory. 0, or a group
    that does not divide the rows, means all rows at once.
    """
    rows = arrays[0].shape[0]
    if rows_per_group <= 0 or rows <= rows_per_group or rows % rows_per_group:
        return function(*arrays)
    grouped = [a.reshape(rows // rows_per_group, rows_per_group, *a.shape[1:]) for a in arrays]
    out = jax.lax.map(lambda group: jax.checkpoint(function)(*group), grouped)
    return out.reshape(rows, *out.shape[2:])
