"""Popularity: the order of training counts, as a baseline and as the answer to an empty history."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxrec.evaluation.histories import Histories


class Popularity:
    """Score = number of distinct smaller training counts: the order of training counts.

    Args:
      counts: int[V+1], training interactions of each item.
    """

    def __init__(self, counts: Shaped[np.ndarray, " V1"]):
        self.counts = np.asarray(counts)
        self.n_items = len(counts) - 1
        self._order = dense_order(self.counts).astype(np.float32)

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], the same for every history."""
        return np.repeat(self._order[None], len(histories), axis=0)


def dense_order(values: Shaped[np.ndarray, "*size"]) -> Int[np.ndarray, " N"]:
    """int64, number of distinct smaller values; exact in float32 below 2**24 where counts may not be."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)
