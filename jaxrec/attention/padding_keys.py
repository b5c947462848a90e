"""Padding that takes part as keys, as in public PyTorch code of SASRec, exact for packed rows.

That code pads every history to L positions on the left and masks later positions, but not padding: a query of a history of
n items also attends to the L - n positions of padding before it. All of these have one state, so one key with the
multiplicity L - n stands for them, wherever the history lies in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class ExtendedKeys(NamedTuple):
    """Keys of a group of rows with padding in front.

    Attributes:
      k: [B, 1 + L, H, d].
      v: [B, 1 + L, H, d].
      bias: [B, 1, S, 1 + L], the logarithm of the multiplicity of padding, 0 elsewhere.
      mask: bool[B, 1, S, 1 + L].
    """

    k: Array
    v: Array
    bias: Array
    mask: Array


def padding_counts(segments: Array, max_length: int) -> Array:
    """Positions of padding before each position's own sequence, in a row of its own: int32[B, L].

    Args:
      segments: int32[B, L], 0 = padding.
      max_length: length to which public code pads.

    Returns:
      ``max_length`` less the length of the position's sequence.
    """
    lengths = (segments[:, :, None] == segments[:, None, :]).sum(axis=2, dtype=jnp.int32)
    return max_length - lengths


def extend_keys(
    k: Array, v: Array, padding_k: Array, padding_v: Array, mask: Array, counts: Array
) -> ExtendedKeys:
    """Put the one key of padding in front of the keys of every row.

    Args:
      k: [B, L, H, d].
      v: [B, L, H, d].
      padding_k: [1, 1, H, d].
      padding_v: [1, 1, H, d].
      mask: bool[B, 1, S, L].
      counts: int32[B, S], multiplicity of padding for each query.

    Returns:
      The extended keys; a query without padding does not see the key.
    """
    one = (k.shape[0], 1, *k.shape[2:])
    share = jnp.log(jnp.maximum(counts, 1).astype(jnp.float32))[:, None, :, None]
    return ExtendedKeys(
        jnp.concatenate([jnp.broadcast_to(padding_k, one), k], axis=1),
        jnp.concatenate([jnp.broadcast_to(padding_v, one), v], axis=1),
        jnp.concatenate([share, jnp.zeros(mask.shape, jnp.float32)], axis=-1),
        jnp.concatenate([(counts > 0)[:, None, :, None], mask], axis=-1),
    )


def keep_padding(dropout: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """``dropout`` of all weights but the first key's: many positions share it, so their mean hardly varies."""
    return lambda weights: jnp.concatenate([weights[..., :1], dropout(weights)[..., 1:]], axis=-1)
