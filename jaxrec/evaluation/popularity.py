"""Popularity: the order of training counts, as a baseline and as the answer to an empty history."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse

from jaxrec.evaluation.histories import Histories


class Popularity:
    """Score = number of distinct smaller training counts: the order of training counts.

    Args:
      counts: int[V+1], training interactions of each item.
    """

    def __init__(self, counts: Shaped[np.ndarray, " V1"]):
        self.counts = np.asarray(counts)
        self.n_items = len(counts) - 1
        self.order = dense_order(self.counts)

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], the same for every history."""
        return np.repeat(self.order[None].astype(np.float32), len(histories), axis=0)

    def evidence(self, histories: Histories) -> sparse.csr_matrix:
        """Nothing: see `jaxrec.evaluation.evidence.EvidenceScorer`."""
        return sparse.csr_matrix((len(histories), self.n_items + 1), dtype=np.int64)


def dense_order(values: Shaped[np.ndarray, "*size"]) -> Int[np.ndarray, " N"]:
    """int64, number of distinct smaller values; exact in float32 below 2**24 where counts may not be."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)
