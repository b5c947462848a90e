"""Coverage, concentration, novelty and diversity against loops; groups against counts by hand."""

import itertools
import math

import numpy as np
import pytest

from jaxrec.analysis.beyond_accuracy import (
    beyond_accuracy,
    coverage,
    exposure_shift,
    gini,
    head_exposure,
    intra_list_diversity,
    mean_popularity,
    self_information,
)
from jaxrec.analysis.groups import breakdown, history_length_groups, popularity_groups
from jaxrec.data.catalogue import AttributeTable

LISTS = np.array([[1, 2, 3], [2, 3, 5], [3, 2, 0]], np.int32)
COUNTS = np.array([0, 50, 20, 8, 4, 0, 1])


def test_coverage_and_concentration():
    assert coverage(LISTS, 6) == pytest.approx(4 / 6)
    shown = np.array([1, 3, 3, 0, 1, 0])
    pairs = sum(abs(a - b) for a, b in itertools.product(shown, shown))
    assert gini(LISTS, 6) == pytest.approx(pairs / (2 * 6 * shown.sum()))
    assert gini(np.array([[1], [2], [3]]), 3) == pytest.approx(0)
    assert gini(np.ones((50, 1), int), 100) == pytest.approx(0.99)
    assert gini(np.zeros((2, 2), int), 5) == 0


def test_exposure_in_proportion_to_consumption():
    shown, total = {1: 1, 2: 3, 3: 3, 5: 1}, sum(COUNTS)
    shift = sum(abs(shown.get(item, 0) / 8 - COUNTS[item] / total) for item in range(1, 7)) / 2
    assert exposure_shift(LISTS, COUNTS) == pytest.approx(shift)
    proportional = np.repeat(np.arange(7), COUNTS)[:, None]
    assert exposure_shift(proportional, COUNTS) == pytest.approx(0)
    assert exposure_shift(np.array([[5]]), COUNTS) == pytest.approx(1), "an item that nobody consumed"
    # The tenth of six items is one: the first.
    assert head_exposure(LISTS, COUNTS) == pytest.approx((1 / 8) / (50 / total))
    assert head_exposure(proportional, COUNTS) == pytest.approx(1)
    # The tenth of twenty are two: the first, and one of three that are alike.
    counts = np.array([0, 9, 4, 4, 4, *([1] * 16)])
    lists = np.array([[1, 2], [2, 7]])
    assert head_exposure(lists, counts) == pytest.approx((1 + 2 / 3) / 4 / ((9 + 4) / counts.sum()))
    assert math.isnan(exposure_shift(np.zeros((1, 2), int), COUNTS))


def test_nothing_to_measure_is_nan_without_a_warning():
    """As in a catalogue whose items all users have seen."""
    empty = np.zeros((2, 3), int)
    found = beyond_accuracy(empty, np.array([0, 4, 1]), 5)
    assert (found["coverage@3"], found["gini@3"]) == (0, 0)
    for name in ("exposure_shift", "head_exposure", "mean_popularity", "self_information_bits"):
        assert math.isnan(found[f"{name}@3"]), name
    assert math.isnan(head_exposure(LISTS, np.zeros(7, int)))


def test_novelty():
    listed = [1, 2, 3, 2, 3, 5, 3, 2]
    assert mean_popularity(LISTS, COUNTS) == pytest.approx(np.mean([COUNTS[i] for i in listed]))
    bits = [-math.log2(max(COUNTS[i], 1) / 60) for i in listed]
    assert self_information(LISTS, COUNTS, 60) == pytest.approx(np.mean(bits))


def test_diversity_equals_the_loop():
    rng = np.random.default_rng(0)
    sets = [set(), *({int(a) for a in rng.integers(0, 9, rng.integers(0, 4))} for _ in range(20))]
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in sets])])
    values = np.array([a for own in sets for a in sorted(own)], np.int32)
    table = AttributeTable(offsets, values, [str(a) for a in range(9)])
    lists = np.array([rng.choice(21, 5, replace=False) for _ in range(11)], np.int32)
    means = []
    for row in lists:
        own = [
            1 - len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            for i, j in itertools.combinations(row[row > 0], 2)
            if sets[i] | sets[j]
        ]
        means += [np.mean(own)] if own else []
    assert intra_list_diversity(lists, table, rows_at_once=4) == pytest.approx(np.mean(means))
    found = beyond_accuracy(lists, np.arange(21), 30, table)
    assert found["intra_list_diversity@5"] == pytest.approx(np.mean(means))
    assert set(found) == {
        "coverage@5",
        "gini@5",
        "exposure_shift@5",
        "head_exposure@5",
        "mean_popularity@5",
        "self_information_bits@5",
        "intra_list_diversity@5",
    }
    bare = AttributeTable(np.zeros(22, np.int64), np.zeros(0, np.int32), [])
    assert math.isnan(intra_list_diversity(lists, bare))


def test_popularity_thirds():
    counts = np.array([999, 10, 30, 30, 0, 10, 10])
    groups, names = popularity_groups(np.arange(1, 7), counts)
    assert [names[g] for g in groups] == [
        "tail third",
        "head third",
        "middle third",
        "unseen in training",
        "tail third",
        "tail third",
    ]


def test_history_lengths():
    groups, names = history_length_groups(np.array([0, 5, 6, 10, 11, 900]), edges=(5, 10))
    assert [names[g] for g in groups] == ["0 to 5", "0 to 5", "6 to 10", "6 to 10", "over 10", "over 10"]


def test_breakdown():
    found = breakdown(np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 0, 2]), ["a", "b", "c"])
    assert [(g.name, g.cases) for g in found] == [("a", 3), ("b", 0), ("c", 1)]
    assert found[0].mean == pytest.approx(2 / 3)
    assert found[0].low < 2 / 3 < found[0].high
    assert math.isnan(found[1].mean)
    assert found[2].mean == 1
    assert math.isnan(found[2].low)
