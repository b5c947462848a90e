"""Baselines ranked by the same code as every model: popularity and first-order Markov chains.

Both give whole-number scores, so that every tie is a real one and is broken by the declared rule.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxrec.data.splits import Split
from jaxrec.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate_cases
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import ScoreRanker
from jaxrec.evaluation.seen import ranges


class Popularity:
    """Score = how many training interactions have fewer than the item's: the order of training counts.

    Args:
      counts: int[V+1], training interactions of each item.
    """

    def __init__(self, counts: np.ndarray):
        self.n_items = len(counts) - 1
        self._order = dense_order(np.asarray(counts)).astype(np.float32)

    def scores(self, histories: Histories) -> np.ndarray:
        """float32[R, V+1], the same for every history."""
        return np.repeat(self._order[None], len(histories), axis=0)


class MarkovChain:
    """Score = how often the item came directly after the last item in training; equal counts by popularity.

    So items that never followed the last one come after those that did, in the order of popularity.

    Args:
      items: int32[N], the log.
      starts, stops: int64[U], the training part ``items[start:stop]`` of each user.
      n_items: V.
    """

    def __init__(self, items: np.ndarray, starts: np.ndarray, stops: np.ndarray, n_items: int):
        self.n_items = n_items
        lengths = np.maximum(np.asarray(stops) - np.asarray(starts), 0)
        counts = np.bincount(items[ranges(starts, lengths)], minlength=n_items + 1)
        self._popularity = dense_order(counts)
        first = ranges(starts, np.maximum(lengths - 1, 0))
        pairs = items[first].astype(np.int64) * (n_items + 1) + items[first + 1]
        unique, times = np.unique(pairs, return_counts=True)
        previous, self._next = np.divmod(unique, n_items + 1)
        self._offsets = np.searchsorted(previous, np.arange(n_items + 2))
        # Each transition's place among those of the same previous item, by count and then popularity, above
        # all others.
        order = np.lexsort((self._popularity[self._next], times, previous))
        keys = np.stack([previous, times, self._popularity[self._next]])[:, order]
        changes = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)])[: len(order)]
        place = np.cumsum(changes)
        before = place[self._offsets[:-1][keys[0]]] if len(order) else place
        self._place = np.empty(len(order), np.int64)
        self._place[order] = place - before + 1 + n_items

    def scores(self, histories: Histories) -> np.ndarray:
        """float32[R, V+1], from the newest item of each history."""
        last_items = histories.last_items()
        scores = np.repeat(self._popularity.astype(np.float32)[None], len(last_items), axis=0)
        first, last = self._offsets[last_items], self._offsets[np.asarray(last_items) + 1]
        entries = ranges(first, last - first)
        rows = np.repeat(np.arange(len(last_items)), last - first)
        scores[rows, self._next[entries]] = self._place[entries]
        return scores


def dense_order(values: np.ndarray) -> np.ndarray:
    """int64, number of distinct smaller values; exact in float32 below 2**24 where counts may not be."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)


def evaluate_baselines(
    split: Split,
    part: Literal["valid", "test"] = "test",
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008
) -> dict[str, Evaluation]:
    """Popularity and a first-order Markov chain, fitted to the training part and ranked like a model.

    Args:
      split: the dataset and its cases.
      part: which cases.
      config: cutoffs, and whether seen items are candidates.

    Returns:
      {"popularity": Evaluation, "markov": Evaluation}
    """
    return {
        name: evaluate_cases(
            ranker, split.cases(part), split.dataset.items, config, known_items=split.item_counts > 0
        )
        for name, ranker in baseline_rankers(split).items()
    }


def baseline_rankers(split: Split) -> dict[str, ScoreRanker]:
    """Rankers of every baseline, fitted to the training part of ``split``."""
    dataset = split.dataset
    markov = MarkovChain(dataset.items, split.train_starts, split.train_stops, dataset.n_items)
    return {"popularity": ScoreRanker(Popularity(split.item_counts)), "markov": ScoreRanker(markov)}
