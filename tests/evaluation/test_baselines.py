"""Popularity and Markov chains against counts written out, and against known numbers of the bundled data."""

import numpy as np
import pytest

from jaxrec.data import load_dataset, split_dataset
from jaxrec.evaluation.baselines import (
    MarkovChain,
    Popularity,
    dense_order,
    evaluate_baselines,
)
from jaxrec.evaluation.histories import Histories, ranking_cases
from jaxrec.evaluation.metrics import ranking_metrics
from jaxrec.evaluation.ranker import ScoreRanker


def ending_with(last_items):
    """Histories of one interaction each, or of none where the item is 0."""
    last_items = np.asarray(last_items, np.int32)
    starts = np.arange(len(last_items))
    return Histories(last_items, starts, starts + (last_items > 0))


def test_popularity_orders_items_by_count():
    model = Popularity(np.array([0, 5, 1_000_000_007, 1_000_000_008, 5, 0]))
    scores = model.scores(ending_with([3, 0]))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[0, 1, 2, 3, 1, 0]] * 2)


def test_markov_orders_by_transitions_and_then_by_popularity():
    rng = np.random.default_rng(4)
    n_items, items = 12, rng.integers(1, 13, 300).astype(np.int32)
    starts = np.arange(0, 300, 30)
    stops = starts + rng.integers(0, 30, 10)
    popularity, transitions = np.zeros(n_items + 1), np.zeros((n_items + 1, n_items + 1))
    for start, stop in zip(starts, stops, strict=True):
        for i in range(start, stop):
            popularity[items[i]] += 1
            if i + 1 < stop:
                transitions[items[i], items[i + 1]] += 1
    scores = MarkovChain(items, starts, stops, n_items).scores(ending_with(np.arange(n_items + 1)))
    exact = transitions * 1000 + popularity[None]
    for last in range(n_items + 1):
        np.testing.assert_array_equal(dense_order(scores[last]), dense_order(exact[last]))


def test_a_markov_chain_of_nothing_is_popularity():
    scores = MarkovChain(np.array([1, 2], np.int32), np.array([0, 1]), np.array([1, 2]), 3).scores(
        ending_with([0, 1])
    )
    np.testing.assert_array_equal(scores, [[0, 1, 1, 0]] * 2)


def test_known_numbers_of_the_bundled_data():
    split = split_dataset(load_dataset("movietweetings"))
    found = evaluate_baselines(split)
    assert found["popularity"].metrics["HR@10"] == pytest.approx(0.146, abs=5e-4)
    assert found["popularity"].metrics["NDCG@10"] == pytest.approx(0.074, abs=5e-4)
    assert found["markov"].metrics["HR@10"] == pytest.approx(0.174, abs=5e-4)
    assert found["markov"].metrics["NDCG@10"] == pytest.approx(0.099, abs=5e-4)
    cases = ranking_cases(split.test, split.dataset.items)
    lists = ScoreRanker(Popularity(split.item_counts)).top_k(cases.histories, 10, cases.exclude).items
    ranks = found["popularity"].ranks
    place = np.where(ranks <= 10, lists[np.arange(len(ranks)), np.minimum(ranks, 10) - 1], split.test.targets)
    np.testing.assert_array_equal(place, split.test.targets)
    assert ranking_metrics(ranks)["HR@10"] == (lists == split.test.targets[:, None]).any(axis=1).mean()
