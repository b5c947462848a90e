"""Ranking metrics from exact ranks, for one or several targets per case.

All follow the definitions of TREC evaluation with binary relevance, which `ir_measures` implements: for a
case with targets T and the list of the K best candidates,

    Precision@K = hits / K                 Recall@K = hits / |T|          HR@K = 1 if any hit
    NDCG@K = sum over hits of 1 / log2(1 + rank), divided by the same sum of an ideal list of min(K, |T|) hits
    MRR@K = 1 / rank of the first hit      MAP@K = sum over hits of (hits so far / rank), divided by |T|

With one target HR@K = Recall@K and NDCG@K = 1 / log2(1 + rank) (the definitions of He et al., WWW 2017, and
of every leave-one-out paper since). Ranks are 1-based; the mean over cases is reported. A target that is no candidate
(rank `MISSED`) is no hit at any rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from jaxrec.errors import ConfigError, DataError

#: The rank of a target that is no candidate, such as a seen item where seen items are removed.
MISSED = int(np.iinfo(np.int32).max)
DEFAULT_KS = (5, 10, 20)


def hits(ranks: Integer[np.ndarray, " E"], k: int) -> Float[np.ndarray, " E"]:
    """float64[E]: 1 where the target is among the first ``k``."""
    return (np.asarray(ranks) <= k).astype(np.float64)


def discounted_gains(ranks: Integer[np.ndarray, " E"], k: int | None = None) -> Float[np.ndarray, " E"]:
    """float64[E]: 1 / log2(1 + rank), 0 beyond ``k``."""
    ranks = np.asarray(ranks, np.float64)
    return np.where(ranks <= _last_rank(k), 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_ranks(ranks: Integer[np.ndarray, " E"], k: int | None = None) -> Float[np.ndarray, " E"]:
    """float64[E]: 1 / rank, 0 beyond ``k``."""
    ranks = np.asarray(ranks, np.float64)
    return np.where(ranks <= _last_rank(k), 1.0 / ranks, 0.0)


def _last_rank(k: int | None) -> int:
    """The greatest rank that counts."""
    return MISSED - 1 if k is None else k


def metric_values(
    ranks: Integer[np.ndarray, " T"], metric: str, offsets: Integer[np.ndarray, " E1"] | None = None
) -> Float[np.ndarray, " E"]:
    """Compute one metric of every case: float64[E].

    >>> metric_values(np.array([1, 3, 40]), "HR@10").tolist()
    [1.0, 1.0, 0.0]
    >>> metric_values(np.array([1, 3, 40]), "MRR").tolist()
    [1.0, 0.3333333333333333, 0.025]

    Args:
      ranks: int[T], the rank of each target, 1 = best.
      metric: "HR@10", "Recall@10", "Precision@10", "NDCG@10", "MRR@10", "MAP@10", or "MRR", "NDCG", "MAP"
        over the whole catalogue.
      offsets: int64[E+1], case e has the targets ``ranks[offsets[e]:offsets[e+1]]``; None = one each.

    Raises:
      ConfigError: the metric is unknown.
      DataError: a rank below 1, or a case without a target.
    """
    name, k = parse_metric(metric)
    ranks = np.asarray(ranks)
    if len(ranks) and ranks.min() < 1:
        raise DataError(f"ranks must be at least 1 (1 = best), got {ranks.min()}")
    if offsets is None or _one_each(offsets):
        single = {
            "HR": lambda: hits(ranks, _cutoff(k)),
            "Recall": lambda: hits(ranks, _cutoff(k)),
            "Precision": lambda: hits(ranks, _cutoff(k)) / _cutoff(k),
            "NDCG": lambda: discounted_gains(ranks, k),
            "MRR": lambda: reciprocal_ranks(ranks, k),
            "MAP": lambda: reciprocal_ranks(ranks, k),
        }
        return single[name]()
    return _several_targets(ranks, name, k, np.asarray(offsets, np.int64))


def _one_each(offsets: np.ndarray) -> bool:
    return bool((np.diff(offsets) == 1).all())


def _cutoff(k: int | None) -> int:
    assert k is not None  # parse_metric demands it for these metrics
    return k


def _several_targets(ranks: np.ndarray, name: str, k: int | None, offsets: np.ndarray) -> np.ndarray:
    sizes = np.diff(offsets)
    if (sizes < 1).any():
        raise DataError(
            f"every case needs a target, got {int((sizes < 1).sum())} without; leave them out and count them"
        )
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((ranks, owner))
    rank = np.asarray(ranks, np.float64)[order]
    so_far = np.arange(len(rank)) - offsets[:-1][owner] + 1.0
    inside = (rank <= _last_rank(k)).astype(np.float64)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values * inside, minlength=len(sizes))

    if name == "HR":
        return (total(np.ones(len(rank))) > 0).astype(np.float64)
    if name == "Recall":
        return total(np.ones(len(rank))) / sizes
    if name == "Precision":
        return total(np.ones(len(rank))) / _cutoff(k)
    if name == "MRR":
        return total((so_far == 1) / rank)
    if name == "MAP":
        return total(so_far / rank) / sizes
    ideal = np.concatenate([np.zeros(1), np.cumsum(1.0 / np.log2(2.0 + np.arange(sizes.max(initial=1))))])
    return total(1.0 / np.log2(1.0 + rank)) / ideal[sizes if k is None else np.minimum(sizes, k)]


_AT_K = ("HR", "Recall", "Precision", "NDCG", "MRR", "MAP")
_WITHOUT_K = ("NDCG", "MRR", "MAP")


def parse_metric(metric: str) -> tuple[str, int | None]:
    """("NDCG", 10) of "NDCG@10" and ("MRR", None) of "MRR"."""
    name, _, cutoff = metric.partition("@")
    with_k = name in _AT_K and cutoff.isdecimal() and int(cutoff) >= 1
    valid = with_k or (name in _WITHOUT_K and "@" not in metric)
    if not valid:
        raise ConfigError(
            f"unknown metric {metric!r}: expected one of {', '.join(_AT_K)} with @ and a cutoff such as "
            f"NDCG@10, or {', '.join(_WITHOUT_K)} without"
        )
    return name, int(cutoff) if cutoff else None


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse metrics to compare of which there is none, one unknown or one twice.

    Raises:
      ConfigError: says which.
    """
    for metric in metrics:
        parse_metric(metric)
    twice = [metric for place, metric in enumerate(metrics) if metric in metrics[:place]]
    if twice or not metrics:
        came = f"{twice[0]} twice: give it once" if twice else "none: name one, such as NDCG@10"
        raise ConfigError(f"--metrics: expected at least one metric, each once, got {came}")


def ranking_metrics(
    ranks: Integer[np.ndarray, " T"],
    ks: Sequence[int] = DEFAULT_KS,
    offsets: Integer[np.ndarray, " E1"] | None = None,
) -> dict[str, float]:
    """Compute means over cases: HR, NDCG and MRR at each cutoff, and MRR.

    With several targets in some case also Precision, Recall and MAP at each cutoff (with one target Recall
    is HR).

    Args:
      ranks: int[T], 1 = best.
      ks: cutoffs.
      offsets: as in `metric_values`.

    Returns:
      {"HR@5": ..., "NDCG@5": ..., "MRR@5": ..., ..., "MRR": ...}; NaN where there is no case.
    """
    several = offsets is not None and not _one_each(offsets)
    names = ["HR", "NDCG", "MRR"] + (["Precision", "Recall", "MAP"] if several else [])
    metrics = [f"{name}@{k}" for k in ks for name in names] + ["MRR"]
    values = {metric: metric_values(ranks, metric, offsets) for metric in metrics}
    return {name: float(value.mean()) if len(value) else float("nan") for name, value in values.items()}


def over_seeds(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Summarise metrics over seeds: {metric: {"mean", "sd" (None for a single seed), "values"}}."""
    summary = {}
    for name in metrics[0]:
        values = [float(seed[name]) for seed in metrics]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary[name] = {"mean": float(np.mean(values)), "sd": sd, "values": values}
    return summary


def default_metric(ks: Sequence[int]) -> str:
    """The metric that chooses a model where none is named: NDCG@10, or NDCG at the longest list without a 10."""
    return f"NDCG@{10 if 10 in ks else max(ks)}"
