"""Slow float64 NumPy versions of the losses, from the formulas of the papers, and numeric gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-softplus(-x))


def log_sum_exp(x: np.ndarray) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))


def scores(hidden, vectors, bias, temperature=1.0) -> np.ndarray:
    """float64[N, V+1]."""
    return (hidden @ vectors.T + (0.0 if bias is None else bias[None, :])) / temperature


def cross_entropy(rows: np.ndarray, targets: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """float64[N] from scores [N, V+1], column 0 left out."""
    rows = rows[:, 1:]
    wanted = np.full(rows.shape, smoothing / rows.shape[1])
    wanted[np.arange(len(rows)), targets - 1] += 1 - smoothing
    top = rows.max(axis=1, keepdims=True)
    normaliser = top + np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    return (wanted * (normaliser - rows)).sum(axis=1)


def bce(positive: float, negative: np.ndarray, log_expected: np.ndarray, n_items: int) -> float:
    return float(softplus(-positive) + softplus(negative).sum())


def gbce(t: float, n: int) -> Callable:
    def loss(positive, negative, log_expected, n_items):
        alpha = n / (n_items - 1)
        beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        return float(-(beta * np.log(sigmoid(positive)) + np.log(1 - sigmoid(negative)).sum()) / (n + 1))

    return loss


def bpr(positive, negative, log_expected, n_items) -> float:
    return float(-np.log(sigmoid(positive - negative)).mean()) if len(negative) else 0.0


def bpr_pvn(weight: float, hidden, vectors, bias, target, negatives) -> float:
    """STOSA's loss of one state, from distances W(h, i) = |h|^2 - score; item i as a state is v_i / 2."""
    if not len(negatives):
        return 0.0
    total = 0.0
    for j in negatives:
        to_target = hidden @ hidden - (hidden @ vectors[target] + bias[target])
        to_negative = hidden @ hidden - (hidden @ vectors[j] + bias[j])
        point = vectors[target] / 2
        between = point @ point - (point @ vectors[j] + bias[j])
        total += -np.log(sigmoid(to_negative - to_target)) + weight * max(0.0, to_target - between)
    return float(total / len(negatives))


def bpr_max(regularisation: float) -> Callable:
    def loss(positive, negative, log_expected, n_items):
        if not len(negative):
            return 0.0
        p = np.exp(negative - log_sum_exp(negative))
        ranking = -np.log((p * sigmoid(positive - negative)).sum())
        return float(ranking + regularisation * (p * negative**2).sum())

    return loss


def top1_max(positive, negative, log_expected, n_items) -> float:
    if not len(negative):
        return 0.0
    p = np.exp(negative - log_sum_exp(negative))
    return float((p * (sigmoid(negative - positive) + sigmoid(negative**2))).sum())


def sampled_softmax(positive, negative, log_expected, n_items) -> float:
    return log_sum_exp(np.concatenate([[positive], negative - log_expected])) - float(positive)


def numeric_gradient(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """Central differences in float64, element by element."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient
