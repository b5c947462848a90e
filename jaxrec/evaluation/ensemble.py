"""Ensembles of scorers: scores on one scale per history, weighted, and ranked like those of any model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxrec.data.splits import EvaluationCases
from jaxrec.errors import ConfigError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.evaluate import usable_cases
from jaxrec.evaluation.histories import Histories, ranking_cases
from jaxrec.evaluation.metrics import metric_values
from jaxrec.evaluation.next_user import log_sum_exp
from jaxrec.evaluation.popularity import Popularity
from jaxrec.evaluation.ranker import EncoderRanker, Scorer, row_parts
from jaxrec.evaluation.ranking import rank_targets, score_table

Scale = Literal["z-score", "log-softmax"]

#: Weights of the second scorer among which validation chooses.
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderScorer:
    """Scores of an encoder as an array, to be mixed with others; popularity answers empty histories.

    Attributes:
      ranker: of the encoder.
      temperature: divides the scores, so that their softmax is that of training (``objective.temperature``).
    """

    ranker: EncoderRanker
    temperature: float = 1.0

    @property
    def n_items(self) -> int:
        """V."""
        return self.ranker.n_items

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], products of states and items over the temperature."""
        table, rows = self.ranker.table, slice(0, self.n_items + 1)
        assert table.vectors is not None
        hidden = np.asarray(self.ranker.encode(histories), np.float32)
        scores = hidden @ np.asarray(table.vectors)[rows].T + np.asarray(table.bias)[None, rows]
        scores /= np.float32(self.temperature)
        empty = np.flatnonzero(histories.lengths == 0)
        if len(empty) and self.ranker.item_counts is not None:
            scores[empty] = Popularity(self.ranker.item_counts).scores(histories.select(empty))
        return scores


def on_scale(scores: Float[np.ndarray, "R V1"], scale: Scale) -> Float[np.ndarray, "R V1"]:
    """Bring each row of scores to a scale that scorers share; column 0, which is no item, becomes 0.

    Args:
      scores: float32[R, V+1].
      scale: "z-score" (mean 0 and standard deviation 1 over the V items, or 0 where all are equal) or "log-softmax" (log
        probabilities over the V items).
    """
    items = np.asarray(scores[:, 1:], np.float64)
    if scale == "log-softmax":
        items = items - log_sum_exp(items)[:, None]
    else:
        spread = items.std(axis=1, keepdims=True)
        items = (items - items.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return np.pad(items, ((0, 0), (1, 0))).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreEnsemble:
    """The weighted sum ``(1 - weight) * first + weight * second`` of scores on one scale.

    Rank it with `jaxrec.evaluation.ranker.ScoreRanker`.

    Attributes:
      first: a scorer.
      second: another one of the same items.
      weight: of the second, 0 to 1.
      scale: see `on_scale`; "z-score" weighs spreads, "log-softmax" mixes probabilities geometrically.
    """

    first: Scorer
    second: Scorer
    weight: float
    scale: Scale = "z-score"

    def __post_init__(self) -> None:
        """Check the weight and that both score the same items."""
        check_weights((self.weight,))
        if self.first.n_items != self.second.n_items:
            raise ConfigError(
                "scorers of an ensemble must score the same items, got "
                f"{self.first.n_items} and {self.second.n_items} items"
            )

    @property
    def n_items(self) -> int:
        """V."""
        return self.first.n_items

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1]."""
        first, second = (
            on_scale(scorer.scores(histories), self.scale) for scorer in (self.first, self.second)
        )
        return mixed(first, second, self.weight)


def mixed(
    first: Float[np.ndarray, "R V1"], second: Float[np.ndarray, "R V1"], weight: float
) -> Float[np.ndarray, "R V1"]:
    """Add scores on one scale, float32[R, V+1]; the second ones have ``weight``."""
    return np.float32(1 - weight) * first + np.float32(weight) * second


def check_weights(weights: Sequence[float]) -> None:
    """Reject weights outside 0 to 1.

    Raises:
      ConfigError: there is none, or one is outside.
    """
    if not len(weights) or not all(0 <= weight <= 1 for weight in weights):
        raise ConfigError(f"weights of an ensemble must be from 0 to 1, got {tuple(weights)}")


def weight_curve(  # noqa: PLR0913 - two scorers and the cases that both answer
    first: Scorer,
    second: Scorer,
    cases: EvaluationCases,
    items: Any,
    config: EvaluationConfig,
    metric: str,
    *,
    timestamps: Any = None,
    weights: Sequence[float] = WEIGHTS,
    scale: Scale = "z-score",
    tie_seed: int = 0,
) -> dict[float, float]:
    """Evaluate an ensemble at every weight; both scorers answer each case once.

    Args:
      first: see `ScoreEnsemble`.
      second: see `ScoreEnsemble`.
      cases: of validation, so that no test target has a part in the choice.
      items: int32[N], the log that the cases point into.
      config: whether seen items are candidates.
      metric: such as "NDCG@10".
      timestamps: see `jaxrec.evaluation.histories.Histories`.
      weights: of the second scorer.
      scale: see `on_scale`.
      tie_seed: order of items with equal scores.

    Returns:
      {weight: the metric's mean over the cases}.
    """
    check_weights(weights)
    cases, _ = usable_cases(cases)
    asked = ranking_cases(cases, items, timestamps, config.remove_seen)
    table = score_table(first.n_items, item_chunk=config.item_chunk, tie_seed=tie_seed)
    rows_of = asked.case_of_target
    ranks = np.empty((len(weights), len(asked.targets)), np.int32)
    for part in row_parts(len(rows_of), first.n_items):
        rows = rows_of[part]
        histories = asked.histories.select(rows)
        exclude = None if asked.exclude is None else asked.exclude.select(rows)
        one, other = (on_scale(scorer.scores(histories), scale) for scorer in (first, second))
        for number, weight in enumerate(weights):
            ranks[number, part] = rank_targets(mixed(one, other, weight), table, asked.targets[part], exclude)
    return {
        float(weight): float(metric_values(own, metric, cases.target_offsets).mean())
        for weight, own in zip(weights, ranks, strict=True)
    }


def best_weight(curve: dict[float, float]) -> float:
    """The weight with the best metric; of equal ones the smallest, which trusts the first scorer most."""
    return min(curve, key=lambda weight: (-curve[weight], weight))
