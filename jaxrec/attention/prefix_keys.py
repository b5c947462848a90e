"""A token in front of each sequence of a row, as one more key: its state differs between sequences, as a user's does.

The token of a sequence is stored at the column of the sequence's first position, so that rows keep their width. It has no
position; it sees itself alone, and every position of its sequence sees it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxrec.nn.segments import first_index


def with_prefix(
    k: Array, v: Array, prefix_k: Array, prefix_v: Array, segments: Array, mask: Array, queries: Array | None
) -> tuple[Array, Array, Array]:
    """Put the keys of the tokens in front of the keys of every row; a query sees that of its own sequence.

    Args:
      k: [B, L, H, d].
      v: [B, L, H, d].
      prefix_k: [B, L, H, d], of which the columns of first positions count.
      prefix_v: [B, L, H, d].
      segments: int32[B, L].
      mask: bool[B, 1, S, L].
      queries: int32[B, S], columns of the queries; None = all.

    Returns:
      Keys and values [B, L + L, H, d], and the mask bool[B, 1, S, L + L].
    """
    first, real = first_index(segments), segments > 0
    if queries is not None:
        first, real = (jnp.take_along_axis(x, queries, axis=1) for x in (first, real))
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    sees = (first[:, :, None] == column[None, None]) & real[:, :, None]
    return (
        jnp.concatenate([prefix_k, k], axis=1),
        jnp.concatenate([prefix_v, v], axis=1),
        jnp.concatenate([sees[:, None], mask], axis=-1),
    )
