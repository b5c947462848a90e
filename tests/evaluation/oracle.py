"""Slow definitions in float64 and whole numbers, against which the package is tested."""

import numpy as np


def score_matrix(hidden, vectors, bias=None):
    scores = hidden.astype(np.float64) @ vectors.astype(np.float64).T
    return scores + (0.0 if bias is None else bias.astype(np.float64)[None])


def strike(scores, seen, targets=None):
    """Item 0 and each row's seen items out, the row's target excepted."""
    scores = scores.copy()
    scores[:, 0] = -np.inf
    for row, items in enumerate(seen):
        for item in items:
            if item and (targets is None or item != targets[row]):
                scores[row, item] = -np.inf
    return scores


def order(scores):
    """Greater score first, then lower id."""
    return np.argsort(-scores, axis=1, kind="stable")


def ranks(scores, targets):
    return np.array(
        [int(np.flatnonzero(row == t)[0]) + 1 for row, t in zip(order(scores), targets, strict=True)]
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
