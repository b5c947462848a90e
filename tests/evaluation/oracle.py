"""Slow definitions in float64 and whole numbers, against which the package is tested."""

import numpy as np


def score_matrix(hidden, vectors, bias=None):
    scores = hidden.astype(np.float64) @ vectors.astype(np.float64).T
    return scores + (0.0 if bias is None else bias.astype(np.float64)[None])


def tie_key(item, seed=0):
    """The key of an item in whole numbers of Python: multiplications and shifts modulo 2^32."""
    key = item ^ seed
    for shift, factor in ((16, 0x7A4B2D35), (13, 0x9C8E6F4B), (15, 0x3F5D1E27)):
        key = ((key ^ (key >> shift)) * factor) % 2**32
    return key ^ (key >> 16)


def strike(scores, seen):
    """Item 0 and each row's seen items out."""
    scores = scores.copy()
    scores[:, 0] = -np.inf
    for row, items in enumerate(seen):
        for item in items:
            if item:
                scores[row, item] = -np.inf
    return scores


def order(scores, seed=0):
    """Greater score first, then lower tie key."""
    keys = [tie_key(item, seed) for item in range(scores.shape[1])]
    by_key = np.argsort(keys)
    return np.stack([by_key[np.argsort(-row[by_key], kind="stable")] for row in scores])


def ranks(scores, targets, seed=0):
    """Places in the order; 2^31 - 1 for a target whose score is -inf."""
    return np.array(
        [
            int(np.flatnonzero(ordered == t)[0]) + 1 if row[t] > -np.inf else 2**31 - 1
            for row, ordered, t in zip(scores, order(scores, seed), targets, strict=True)
        ]
    )


def whole_numbers(rng, n_rows, n_items, width):
    """States, vectors and bias whose scores are exact in float32 and tie often."""
    hidden = rng.integers(-2, 3, (n_rows, width)).astype(np.float32)
    vectors = rng.integers(-2, 3, (n_items + 1, width)).astype(np.float32)
    return hidden, vectors, rng.integers(-2, 3, n_items + 1).astype(np.float32)


def normal_numbers(rng, n_rows, n_items, width):
    hidden = rng.normal(size=(n_rows, width)).astype(np.float32)
    vectors = rng.normal(size=(n_items + 1, width)).astype(np.float32)
    return hidden, vectors, rng.normal(size=n_items + 1).astype(np.float32)
