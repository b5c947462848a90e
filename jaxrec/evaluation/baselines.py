"""Popularity and first-order Markov chains, ranked by the same code as every model: the numbers to be better
than.

Both give whole-number scores, so that every tie is a real one and is broken by the declared rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from jaxrec.data.splits import Split
from jaxrec.evaluation.evaluate import Evaluation, check_cutoffs, evaluation_of, usable_cases
from jaxrec.evaluation.metrics import DEFAULT_KS
from jaxrec.evaluation.ranking import ITEM_CHUNK, ROW_CHUNK, identity_catalogue, rank_targets, top_k
from jaxrec.evaluation.seen import SeenItems, ranges, seen_items


class Baseline(Protocol):
    """Scores of all items after a last item."""

    n_items: int

    def scores(self, last_items: np.ndarray) -> np.ndarray:
        """float32[R, V+1] for the newest item int[R] of each history, 0 = the history is empty."""


class Popularity:
    """Score = how many training interactions have fewer than the item's: the order of training counts.

    Args:
      counts: int[V+1], training interactions of each item.
    """

    def __init__(self, counts: np.ndarray):
        self.n_items = len(counts) - 1
        self._order = dense_order(np.asarray(counts)).astype(np.float32)

    def scores(self, last_items: np.ndarray) -> np.ndarray:
        return np.repeat(self._order[None], len(last_items), axis=0)


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

    def scores(self, last_items: np.ndarray) -> np.ndarray:
        scores = np.repeat(self._popularity.astype(np.float32)[None], len(last_items), axis=0)
        first, last = self._offsets[last_items], self._offsets[np.asarray(last_items) + 1]
        entries = ranges(first, last - first)
        rows = np.repeat(np.arange(len(last_items)), last - first)
        scores[rows, self._next[entries]] = self._place[entries]
        return scores


def dense_order(values: np.ndarray) -> np.ndarray:
    """int64: how many distinct smaller values there are; exact in float32 below 2**24 where counts may not
    be.
    """
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)


def evaluate_baselines(
    split: Split,
    part: Literal["valid", "test"] = "test",
    ks: Sequence[int] = DEFAULT_KS,
    remove_seen: bool = True,
) -> dict[str, Evaluation]:
    """Popularity and a first-order Markov chain, fitted to the training part and ranked like a model.

    Args:
      split: the dataset and its cases.
      part: which cases.
      ks: cutoffs of the metrics.
      remove_seen: strike the items of each history from the candidates.

    Returns:
      {"popularity": Evaluation, "markov": Evaluation}
    """
    dataset = split.dataset
    models: dict[str, Baseline] = {
        "popularity": Popularity(split.item_counts),
        "markov": MarkovChain(dataset.items, split.train_starts, split.train_stops, dataset.n_items),
    }
    return {name: evaluate_baseline(model, split, part, ks, remove_seen) for name, model in models.items()}


def evaluate_baseline(
    model: Baseline,
    split: Split,
    part: Literal["valid", "test"] = "test",
    ks: Sequence[int] = DEFAULT_KS,
    remove_seen: bool = True,
) -> Evaluation:
    """The same for one baseline; it scores 512 rows at a time."""
    check_cutoffs(ks, model.n_items)
    cases, counts = usable_cases(split.cases(part), split.item_counts > 0)
    sizes = np.diff(cases.target_offsets)
    row_of_target = np.repeat(np.arange(len(sizes)), sizes)
    seen = seen_items(cases, split.dataset.items).select(row_of_target) if remove_seen else None
    last_items = _last_items(split.dataset.items, cases.history_starts, cases.history_stops)[row_of_target]
    table = identity_catalogue(model.n_items, item_chunk=ITEM_CHUNK)
    ranks = [
        rank_targets(model.scores(last_items[rows]), table, cases.targets[rows], _select(seen, rows))
        for rows in _batches(len(last_items))
    ]
    return evaluation_of(np.concatenate(ranks), cases, counts, ks=ks, remove_seen=remove_seen)


def baseline_lists(
    model: Baseline,
    last_items: np.ndarray,
    k: int,
    seen: SeenItems | None = None,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """int32[E, K]: the k best items of each history by a baseline; see `jaxrec.evaluation.ranking.top_k`."""
    table = identity_catalogue(model.n_items, item_chunk=ITEM_CHUNK)
    lists = [
        top_k(
            model.scores(last_items[rows]),
            table,
            k,
            _select(seen, rows),
            keep=None if keep is None else keep[rows],
        )[1]
        for rows in _batches(len(last_items))
    ]
    return np.concatenate(lists)


def _batches(n: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + ROW_CHUNK, n)) for start in range(0, n, ROW_CHUNK)]


def _select(seen: SeenItems | None, rows: np.ndarray) -> SeenItems | None:
    return None if seen is None else seen.select(rows)


def _last_items(items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """int64[E]: the newest item of each history, 0 where it is empty."""
    return np.where(stops > starts, items[np.maximum(stops - 1, 0)], 0).astype(np.int64)
