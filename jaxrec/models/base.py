"""What every encoder gives to objectives, ranking, serving and export."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array


class ItemTable(NamedTuple):
    """The candidates: the score of item i for a hidden state is ``hidden · vectors[i] + bias[i]``.

    Attributes:
      vectors: float32[V+1, D]; row 0 is padding and never a candidate.
      bias: float32[V+1], or None for no bias.
    """

    vectors: Array
    bias: Array | None = None
