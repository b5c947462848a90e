"""Codes of items from vectors of the items: factors of the training interactions, k-means, product and residual codes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from jaxrec.data.readers.vectors import unit_rows
from jaxrec.data.splits import Split

#: Points per centre that k-means learns from; all points are assigned.
POINTS_PER_CENTRE = 256
ITERATIONS = 25
#: Distances of one piece of the assignment: 64 MiB of float32.
_PIECE = 1 << 24


def cooccurrence_factors(split: Split, width: int) -> np.ndarray:
    """Factors float32[V, F] of the items, from training interactions alone; F = ``width`` or what the data allow.

    The co-occurrence of two items is the number of users who have both, divided by the root of the numbers who have each:
    the product of a matrix of users by items with itself, whose truncated singular value decomposition is taken. Rows are
    scaled to length 1; an item without a training interaction has zeros.

    Args:
      split: whose training part is read.
      width: most factors.
    """
    mask, dataset = split.training_mask, split.dataset
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths)[mask]
    items = np.asarray(dataset.items)[mask].astype(np.int64) - 1
    shape = (dataset.n_users, dataset.n_items)
    has = sparse.csr_array((np.ones(len(items), np.float64), (users, items)), shape=shape)
    has.data[:] = 1.0  # a repeated interaction counts once
    counts = np.asarray(has.sum(axis=0)).ravel()
    scaled = has @ sparse.diags_array(1.0 / np.sqrt(np.maximum(counts, 1.0)))
    rank = min(width, min(shape) - 1)
    if rank < 1:
        return np.zeros((dataset.n_items, 1), np.float32)
    start = np.random.default_rng(0).normal(size=min(shape))
    _, values, factors = linalg.svds(scaled, k=rank, v0=start, solver="arpack")
    order = np.argsort(-values, kind="stable")
    vectors = factors[order].T * values[order]
    vectors[counts == 0] = 0.0  # where the solver leaves noise
    return unit_rows(vectors)


def item_codes(
    vectors: np.ndarray, method: Literal["product", "residual"], count: int, size: int, seed: int
) -> np.ndarray:
    """Quantise vectors of the items: int32[V+1, C], codes 1..K; row 0 is padding, with zeros.

    Product codes quantise the parts of a vector, after a random rotation that gives every part its share. Residual codes
    quantise the vector, then what the nearest centre leaves of it, and so on.

    Args:
      vectors: float32[V, F].
      method: see above.
      count: C.
      size: K, at most V.
      seed: of rotation and k-means.
    """
    generator = np.random.default_rng(seed)
    codes = np.zeros((len(vectors) + 1, count), np.int32)
    if method == "product":
        parts = np.array_split(_rotated(vectors, count, generator), count, axis=1)
        for column, part in enumerate(parts):
            codes[1:, column] = k_means(part, size, generator)[1] + 1
        return codes
    left = np.asarray(vectors, np.float32).copy()
    for column in range(count):
        centres, nearest = k_means(left, size, generator)
        codes[1:, column] = nearest + 1
        left -= centres[nearest]
    return codes


def _rotated(vectors: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """The vectors in a random orthonormal basis, with zeros up to a width of at least ``count``."""
    width = max(vectors.shape[1], count)
    basis = np.linalg.qr(generator.normal(size=(width, width)))[0]
    return np.asarray(vectors @ basis[: vectors.shape[1]], np.float32)


def k_means(
    points: np.ndarray, size: int, generator: np.random.Generator, iterations: int = ITERATIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster points: centres float32[K, F], and int64[V], the nearest of each point (the first of equally near ones).

    Lloyd's algorithm from random points; a centre that loses all its points moves to the point that is farthest from its
    own. It learns from at most `POINTS_PER_CENTRE` points per centre.

    Args:
      points: float32[V, F].
      size: K, at most V.
      generator: source of the first centres.
      iterations: most rounds.
    """
    points = np.asarray(points, np.float32)
    order = generator.permutation(len(points))
    sample = points[np.sort(order[: POINTS_PER_CENTRE * size])]
    centres = points[order[:size]].copy()
    before = None
    for _ in range(iterations):
        nearest, distance = nearest_centres(sample, centres)
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        counts = np.bincount(nearest, minlength=size)
        member = (np.ones(len(sample)), (nearest, np.arange(len(sample))))
        sums = sparse.csr_array(member, shape=(size, len(sample))) @ sample
        centres = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centres[empty] = sample[np.argsort(-distance, kind="stable")[: len(empty)]]
    return centres, nearest_centres(points, centres)[0]


def nearest_centres(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest centre of each point: int64[V], and the squared distance float32[V].

    Args:
      points: float32[V, F].
      centres: float32[K, F].
    """
    squares = (centres**2).sum(axis=1)
    nearest, distance = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    step = max(1, _PIECE // len(centres))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        # Squared distance without the point's own square, which is the same for all centres.
        relative = squares - 2.0 * (part @ centres.T)
        best = relative.argmin(axis=1)
        nearest[start : start + step] = best
        distance[start : start + step] = np.take_along_axis(relative, best[:, None], axis=1)[:, 0] + (
            part**2
        ).sum(axis=1)
    return nearest, distance
