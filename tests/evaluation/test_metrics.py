"""Metrics against `ir_measures` (TREC evaluation) and against sums written out."""

import math

import ir_measures
import numpy as np
import pytest

from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.metrics import check_metrics, metric_values, ranking_metrics
from jaxrec.evaluation.ranking import rank_targets, score_table
from tests.evaluation import oracle

K = 10
MEASURES = {
    f"HR@{K}": ir_measures.Success @ K,
    f"Precision@{K}": ir_measures.P @ K,
    f"Recall@{K}": ir_measures.R @ K,
    f"NDCG@{K}": ir_measures.nDCG @ K,
    f"MRR@{K}": ir_measures.RR @ K,
    f"MAP@{K}": ir_measures.AP @ K,
    "MRR": ir_measures.RR,
    "NDCG": ir_measures.nDCG,
    "MAP": ir_measures.AP,
}


def reference(scores, targets):
    """Each measure of each case, by `ir_measures` on the whole list. It breaks ties in its own way, so it is
    given the list that the declared rule makes, with scores that fall by one a place."""
    lists = oracle.order(scores)
    run = [
        ir_measures.ScoredDoc(str(row), str(item), float(-place))
        for row, items in enumerate(lists)
        for place, item in enumerate(items)
        if item
    ]
    relevant = [ir_measures.Qrel(str(row), str(item), 1) for row, own in enumerate(targets) for item in own]
    values = {}
    for name, measure in MEASURES.items():
        found = {m.query_id: m.value for m in ir_measures.iter_calc([measure], relevant, run)}
        values[name] = np.array([found[str(row)] for row in range(len(targets))])
    return values


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_ir_measures(several, ties):
    rng = np.random.default_rng(11)
    rows, n_items = 12, 30
    scores = rng.integers(0, 4 if ties else 1_000_000, (rows, n_items + 1)).astype(np.float32)
    targets = [
        rng.choice(np.arange(1, n_items + 1), rng.integers(1, 15) if several else 1, False)
        for _ in range(rows)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in targets])])
    owner = np.repeat(np.arange(rows), np.diff(offsets))
    ranks = rank_targets(scores[owner], score_table(n_items), np.concatenate(targets))
    scores[:, 0] = -1
    for name, want in reference(scores, targets).items():
        np.testing.assert_allclose(metric_values(ranks, name, offsets), want, atol=1e-6, err_msg=name)


def test_one_target_by_hand():
    ranks = np.array([1, 2, 11, 400])
    want = {
        "HR@10": 0.5,
        "NDCG@10": (1 + 1 / math.log2(3)) / 4,
        "MRR@10": 1.5 / 4,
        "MRR": (1.5 + 1 / 11 + 1 / 400) / 4,
    }
    got = ranking_metrics(ranks, ks=(10,))
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-12)
    np.testing.assert_array_equal(metric_values(ranks, "Precision@10"), [0.1, 0.1, 0, 0])
    np.testing.assert_array_equal(metric_values(ranks, "Recall@10"), metric_values(ranks, "HR@10"))


def test_several_targets_by_hand():
    """Two targets at places 1 and 3, three at 2, 5 and 50; lists of five."""
    got = ranking_metrics(np.array([3, 1, 50, 2, 5]), ks=(5,), offsets=np.array([0, 2, 5]))
    assert got["Precision@5"] == pytest.approx(2 / 5)
    assert got["Recall@5"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["MAP@5"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 5) / 3) / 2)
    first = (1 + 1 / 2) / (1 + 1 / math.log2(3))
    second = (1 / math.log2(3) + 1 / math.log2(6)) / (1 + 1 / math.log2(3) + 1 / 2)
    assert got["NDCG@5"] == pytest.approx((first + second) / 2)
    assert got["MRR"] == pytest.approx((1 + 1 / 2) / 2)


def test_metrics_to_compare_are_known_and_named_once():
    check_metrics(["MRR", "HR@10", "HR@5"])
    for metrics, came in (
        ([], "got none: name one"),
        (["MRR", "HR@5", "MRR"], "got MRR twice"),
        (["AUC"], "'AUC'"),
    ):
        with pytest.raises(ConfigError, match=came):
            check_metrics(metrics)


def test_no_case_has_no_mean():
    assert math.isnan(ranking_metrics(np.zeros(0, np.int32), ks=(5,))["HR@5"])


def test_bad_requests_are_refused():
    with pytest.raises(ConfigError, match="unknown metric 'HIT@5': expected one of HR, Recall"):
        metric_values(np.array([1]), "HIT@5")
    for name in ("HR", "NDCG@0", "NDCG@", "MRR@x"):
        with pytest.raises(ConfigError, match="unknown metric"):
            metric_values(np.array([1]), name)
    with pytest.raises(DataError, match=r"ranks must be at least 1 .* got 0"):
        metric_values(np.array([0, 3]), "MRR")
    with pytest.raises(DataError, match="every case needs a target, got 1 without"):
        metric_values(np.array([1, 2, 3]), "NDCG@5", np.array([0, 2, 2, 3]))
