"""Candidate sets and ranks of each protocol, against sorted score lists in plain NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from jaxrec.analysis import protocols as protocols_module
from jaxrec.analysis.protocols import (
    SIDE_BY_SIDE,
    Candidates,
    ProtocolStudy,
    fewest_negatives,
    protocol_ranks,
    rank_among,
    sample_negatives,
    side_by_side,
)
from jaxrec.data import SequenceDataset, split_dataset
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.ranking import candidate_table
from jaxrec.evaluation.seen import as_seen, seen_items
from jaxrec.nn.item_table import ItemTable
from tests.evaluation import oracle


def problem(n_rows=20, n_items=60, seed=0):
    rng = np.random.default_rng(seed)
    hidden, vectors, bias = oracle.whole_numbers(rng, n_rows, n_items, 4)
    targets = rng.integers(1, n_items + 1, n_rows).astype(np.int32)
    seen = rng.integers(0, n_items + 1, (n_rows, 8)).astype(np.int32)
    return hidden, ItemTable(vectors, bias), targets, seen


@pytest.mark.parametrize("negatives", [3, 15, 51])
def test_negatives_are_different_unseen_and_not_the_target(negatives):
    _, _, targets, seen = problem()
    weights = np.ones(61)
    weights[0] = 0
    drawn = sample_negatives(negatives, targets, as_seen(seen, 20, 60), weights, seed=1)
    assert drawn.shape == (20, negatives)
    for row in range(20):
        own = set(drawn[row].tolist())
        assert len(own) == negatives
        assert not own & {0, int(targets[row]), *seen[row].tolist()}
    again = sample_negatives(negatives, targets, as_seen(seen, 20, 60), weights, seed=1)
    np.testing.assert_array_equal(drawn, again)
    assert (sample_negatives(negatives, targets, as_seen(seen, 20, 60), weights, seed=2) != drawn).any()


def test_negatives_follow_the_weights():
    """One negative a row: frequencies against the weights by a chi-square test."""
    weights = np.array([0, 1, 2, 3, 4, 0, 10], float)
    rows = 20_000
    drawn = sample_negatives(1, np.full(rows, 6), as_seen(None, rows, 6), weights, seed=0)
    found = np.bincount(drawn[:, 0], minlength=7)
    assert found[[0, 5, 6]].sum() == 0
    assert stats.chisquare(found[1:5], rows * weights[1:5] / 10).pvalue > 0.001


def test_as_many_negatives_as_the_busiest_user_leaves_can_be_drawn():
    _, _, targets, seen = problem()
    log, counts = as_seen(seen, 20, 60), np.arange(61) % 4
    for sampler in ("uniform", "popularity"):
        least = fewest_negatives(Candidates("sampled", sampler=sampler), targets, log, counts)
        weights = np.r_[0, np.ones(60)] if sampler == "uniform" else counts.astype(float)
        assert sample_negatives(least, targets, log, weights).shape == (20, least)
        with pytest.raises(DataError, match=f"{least} of"):
            sample_negatives(least + 1, targets, log, weights)


def test_a_busy_user_leaves_out_a_protocol_and_not_all(monkeypatch, tmp_path):
    rng, items = np.random.default_rng(0), 220
    rows = [rng.permutation(items)[:n] + 1 for n in (*[6] * 20, 200)]
    dataset = SequenceDataset(
        np.concatenate(rows).astype(np.int32),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
        user_ids=[f"u{i}" for i in range(21)],
        item_ids=[f"i{i}" for i in range(items)],
        meta={"name": "busy"},
    )
    counts = np.r_[0, np.ones(items, int)]
    split = split_dataset(dataset)
    setup = SimpleNamespace(split=split, dataset=dataset, timestamps=None)
    table = candidate_table(ItemTable(rng.normal(size=(items + 1, 3)).astype(np.float32)))
    ranker = SimpleNamespace(
        table=table, encode=lambda log: rng.normal(size=(len(log), 3)).astype(np.float32)
    )
    run = SimpleNamespace(
        setup=setup,
        seeds=(0,),
        config=SimpleNamespace(evaluation=EvaluationConfig()),
        ranker=lambda seed: ranker,
    )
    monkeypatch.setattr(protocols_module, "Run", lambda *_: run)
    study = protocols_module.protocols("run", out=tmp_path)
    assert (tmp_path / "protocols.md").read_text().splitlines()[-1] == study.note
    assert len(study.results) == 5
    assert len(study.omitted) == 3
    assert "left out, since a user has too few unseen items to draw: sampled: 99 uniform" in study.note
    assert (
        fewest_negatives(SIDE_BY_SIDE[5], split.test.targets, seen_items(split.test, dataset.items), counts)
        == 20
    )
    study = protocols_module.protocols("run", negatives=(3, 21), ks=(1, 5))
    sampled = [row["protocol"] for row in study.results[5:]]
    assert sampled == [f"sampled: 3 {sampler} negatives, seed 0" for sampler in ("uniform", "popularity")]
    assert len(study.omitted) == 2
    header, rows = study.rows()
    assert header == ["protocol", "HR@1", "NDCG@1", "HR@5", "NDCG@5", "MRR"]
    assert set(study.results[0]["metrics"]) >= {"HR@1", "NDCG@5", "MRR"}
    assert len(rows) == 7
    with pytest.raises(ConfigError, match=r"--negatives must be numbers of at least 1, got 5 0"):
        protocols_module.protocols("run", negatives=(5, 0))
    with pytest.raises(ConfigError, match="ks must be cutoffs from 1 to the catalogue's"):
        protocols_module.protocols("run", ks=(0,))


def test_too_few_unseen_items_are_refused():
    _, _, targets, seen = problem()
    with pytest.raises(DataError, match=r"negatives=60 exceeds the unseen items of row \d+: 5\d of 60"):
        sample_negatives(60, targets, as_seen(seen, 20, 60), np.r_[0, np.ones(60)])


def test_rank_among_drawn_items_equals_the_oracle():
    hidden, table, targets, seen = problem()
    negatives = sample_negatives(9, targets, as_seen(seen, 20, 60), np.r_[0, np.ones(60)])
    scores = oracle.score_matrix(hidden, table.vectors, table.bias)
    want = []
    for row, target in enumerate(targets):
        among = np.array(sorted([*negatives[row], target], key=lambda item: oracle.tie_key(int(item))))
        listed = among[np.argsort(-scores[row, among], kind="stable")]
        want.append(int(np.flatnonzero(listed == target)[0]) + 1)
    np.testing.assert_array_equal(rank_among(hidden, table, targets, negatives), want)


def listed_ranks(hidden, table, targets, seen, *, seen_rule, padding):
    """Rank of each target by sorting a whole list of scores, with plain loops."""
    scores = oracle.score_matrix(hidden, table.vectors, table.bias)
    ranks = []
    for row, target in enumerate(targets):
        own = scores[row].astype(float).copy()
        history = [item for item in seen[row] if item > 0]
        if seen_rule == "remove":
            own[history] = -np.inf
        elif seen_rule == "zero":
            own[history] = 0.0
        order = sorted(range(len(own)), key=lambda item: (-own[item], oracle.tie_key(item)))
        place = [item for item in order if item > 0 or padding].index(target) + 1
        ranks.append(place if own[target] > -np.inf else MISSED)
    return ranks


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("rule", ["remove", "keep", "zero"])
def test_each_full_protocol_equals_a_sorted_list(rule, padding):
    hidden, table, targets, seen = problem()
    got = protocol_ranks(Candidates(seen=rule, rank_padding=padding), hidden, table, targets, seen)
    want = listed_ranks(hidden, table, targets, seen, seen_rule=rule, padding=padding)
    np.testing.assert_array_equal(got, want)


def test_all_unseen_items_as_negatives_give_the_full_rank_among_them():
    """With every unseen item drawn the sampled rank is the full rank of the protocol "remove"."""
    hidden, table, targets, seen = problem(n_items=12)
    unseen = [
        12 - len({int(i) for i in row if i > 0} | {int(t)}) for row, t in zip(seen, targets, strict=True)
    ]
    rows = [row for row in range(20) if unseen[row] == min(unseen) and targets[row] not in seen[row]]
    assert rows
    part = (hidden[rows], table, targets[rows], seen[rows])
    sampled = protocol_ranks(Candidates("sampled", negatives=min(unseen)), *part, np.arange(13))
    np.testing.assert_array_equal(sampled, listed_ranks(*part, seen_rule="remove", padding=False))


def test_names_of_protocols():
    names = [protocol.name for protocol in SIDE_BY_SIDE]
    assert len(set(names)) == len(names)
    assert names[0] == "full corpus; seen items removed"
    assert (
        Candidates("sampled", sampler="popularity", seed=3).name == "sampled: 99 popularity negatives, seed 3"
    )


def test_a_report_says_what_each_choice_does():
    hidden, table, targets, seen = problem()
    protocols = (
        Candidates(),
        Candidates(seen="keep"),
        Candidates("sampled", negatives=20, sampler="popularity"),
    )
    rows = side_by_side(hidden, table, targets, seen, np.arange(61), protocols, ks=(5,))
    assert [row.name for row in rows] == [protocol.name for protocol in protocols]
    assert rows[0].difference["HR@5"] == 0
    assert rows[2].difference["HR@5"] == pytest.approx(rows[2].metrics["HR@5"] - rows[0].metrics["HR@5"])


def test_targets_in_their_own_history_are_counted_and_told():
    study = ProtocolStudy([], 1, targets=40, repeated=30)
    assert study.note.startswith("30 of 40 targets (75.0%) are in the history of their own case")
    assert ProtocolStudy([], 1, targets=40, repeated=0).note == ""


def test_bad_protocols_are_refused():
    with pytest.raises(ConfigError, match=r"candidates\.seen must be one of remove, keep, zero, got 'drop'"):
        Candidates(seen="drop")
    with pytest.raises(ConfigError, match=r"candidates\.negatives must be at least 1, got 0"):
        Candidates(negatives=0)
    hidden, table, targets, seen = problem()
    with pytest.raises(ConfigError, match="needs item_counts"):
        protocol_ranks(Candidates("sampled", sampler="popularity"), hidden, table, targets, seen)


@pytest.mark.parametrize(("ks", "k"), [((5, 10, 20), 10), ((1, 7), 7)])
def test_the_table_has_hits_and_gains_of_the_lists_that_the_run_has(ks, k):
    names = [f"{name}@{length}" for length in ks for name in ("HR", "NDCG", "MRR")] + ["MRR"]
    row = {"protocol": "all", "metrics": dict.fromkeys(names, 0.5), "difference": dict.fromkeys(names, 0.0)}
    study = ProtocolStudy([row], seeds=1, targets=9, repeated=0)
    assert study.rows()[0] == ["protocol", f"HR@{k}", f"NDCG@{k}", "MRR"]
