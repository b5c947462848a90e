"""Baselines against plain loops over dictionaries, and against known numbers of the bundled data."""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest

from jaxrec.data import load_dataset, split_dataset
from jaxrec.errors import DataError
from jaxrec.evaluation import baselines
from jaxrec.evaluation import ranker as ranker_module
from jaxrec.evaluation.baselines import (
    ItemKNN,
    MarkovChain,
    Popularity,
    RecentPopularity,
    TransitionGraph,
    baseline_rankers,
    dense_order,
    evaluate_baselines,
)
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.histories import Histories, RankingCases, ranking_cases
from jaxrec.evaluation.metrics import MISSED, ranking_metrics
from jaxrec.evaluation.ranker import ScoreRanker
from jaxrec.evaluation.ranking import rank_targets, score_table
from jaxrec.evaluation.seen import SeenHistories
from tests.helpers import small_dataset


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


def test_windows_of_recent_popularity_are_not_laid_side_by_side():
    """Every window holds half the log: together they would be 20,000 interactions for each history."""
    generator = np.random.default_rng(0)
    times = np.sort(generator.integers(0, 14 * 86_400, 40_000))
    model = RecentPopularity(generator.integers(1, 101, 40_000), times, 100, 7, "history")
    stops = np.sort(generator.integers(20_000, 40_000, 500))
    histories = Histories(np.ones(40_000, np.int32), stops - 1, stops, times)
    tracemalloc.start()
    try:
        scores = model.scores(histories)
        assert tracemalloc.get_traced_memory()[1] < 20 * scores.nbytes
    finally:
        tracemalloc.stop()
    assert model.scores(histories.select(np.arange(0))).shape == (0, 101)


@pytest.mark.parametrize("exact", [1 << 24, 0])
def test_markov_orders_by_transitions_and_then_by_popularity(exact, monkeypatch):
    monkeypatch.setattr(baselines, "_EXACT", exact)
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


class Log:
    """A random log with its training parts as Python lists."""

    def __init__(self, n_items=15, users=25, seed=2):
        rng = np.random.default_rng(seed)
        self.n_items, self.rng = n_items, rng
        lengths = rng.integers(1, 14, users)
        self.stops = np.cumsum(lengths)
        self.starts = self.stops - lengths
        self.items = rng.zipf(1.4, lengths.sum()).astype(np.int32) % n_items + 1
        self.times = np.concatenate([np.sort(rng.integers(0, 30 * 86_400, n)) for n in lengths])
        self.train_stops = np.maximum(self.stops - 2, self.starts)
        self.train = [self.items[a:b].tolist() for a, b in zip(self.starts, self.train_stops, strict=True)]
        self.arguments = (self.items, self.starts, self.train_stops, n_items)
        self.histories = Histories(
            self.items, self.starts, self.stops - rng.integers(0, 2, users), self.times
        )
        self.lists = [
            self.items[a:b].tolist() for a, b in zip(self.starts, self.histories.stops, strict=True)
        ]
        self.counts = np.zeros(n_items + 1)
        for sequence in self.train:
            for item in sequence:
                self.counts[item] += 1

    def assert_ordered(self, scores, evidence):
        """Items with evidence in its order, above all others in the order of popularity."""
        for got, own in zip(scores, evidence, strict=True):
            want = np.array([own[i] if own[i] > 0 else self.counts[i] - 1e6 for i in range(len(own))])
            np.testing.assert_array_equal(dense_order(got[1:]), dense_order(np.round(want[1:], 9)))


@pytest.mark.parametrize("exact", [1 << 24, 0])
@pytest.mark.parametrize("end", ["training", "history"])
def test_recent_popularity_counts_the_window(end, exact, monkeypatch):
    monkeypatch.setattr(baselines, "_EXACT", exact)  # both ways of computing
    log = Log()
    events = [
        (int(log.times[at]), int(log.items[at]))
        for start, stop in zip(log.starts, log.train_stops, strict=True)
        for at in range(start, stop)
    ]
    model = RecentPopularity(
        np.array([item for _, item in events]), np.array([time for time, _ in events]), log.n_items, 5, end
    )
    evidence = np.zeros((len(log.lists), log.n_items + 1))
    latest = max(time for time, _ in events)
    for row, stop in enumerate(log.histories.stops):
        moment = latest
        if end == "history" and stop > log.starts[row]:
            moment = int(log.times[stop - 1])
        for time, item in events:
            if moment - 5 * 86_400 < time <= moment:
                evidence[row, item] += 1
        evidence[row] += (evidence[row] > 0) * log.counts / 1e4  # equal counts by popularity
    log.assert_ordered(model.scores(log.histories), evidence)


@pytest.mark.parametrize("neighbours", [3, 50])
def test_item_knn_sums_cosines_of_the_last_items(neighbours, monkeypatch):
    log = Log()
    users = [{user for user, own in enumerate(log.train) if item in own} for item in range(log.n_items + 1)]
    similarity = np.zeros((log.n_items + 1, log.n_items + 1))
    for a in range(1, log.n_items + 1):
        for b in range(1, log.n_items + 1):
            if a != b and users[a] and users[b]:
                similarity[a, b] = len(users[a] & users[b]) / np.sqrt(len(users[a]) * len(users[b]))
        if (similarity[a] > 0).sum() > neighbours:
            least = sorted(similarity[a], reverse=True)[neighbours - 1]
            similarity[a][similarity[a] < least - 1e-9] = 0
    evidence = np.zeros((len(log.lists), log.n_items + 1))
    for row, own in enumerate(log.lists):
        for age, item in enumerate(own[::-1][:4]):
            evidence[row] += similarity[item] / (age + 1)
    dense = ItemKNN(*log.arguments, neighbours=neighbours, last=4).scores(log.histories)
    np.testing.assert_allclose(np.maximum(dense, 0), evidence, atol=1e-6)
    nothing = evidence == 0
    assert (
        dense[nothing] == (dense_order(log.counts) - dense_order(log.counts).max() - 1)[nothing.nonzero()[1]]
    ).all()
    monkeypatch.setattr(baselines, "_DENSE_SPEED", 1e-9)  # the other product
    sparse = ItemKNN(*log.arguments, neighbours=neighbours, last=4).scores(log.histories)
    np.testing.assert_allclose(sparse, dense, atol=1e-6)


def test_similarities_of_a_large_catalogue_are_few_products(monkeypatch):
    """Each product passes over all items: as many of them as items would be the square."""
    items = np.arange(1, 60_001, dtype=np.int32)
    stops = np.arange(3, 60_001, 3)
    products, strongest = [], baselines._strongest

    def counted(*arguments):
        products.append(arguments[0].shape[0])
        return strongest(*arguments)

    monkeypatch.setattr(baselines, "_strongest", counted)
    model = ItemKNN(items, stops - 3, stops, 60_000)
    assert products == [60_001]
    found = model.evidence(Histories(items, stops[:2] - 3, stops[:2] - 1))
    np.testing.assert_allclose(found.toarray()[:, :7], [[0, 1, 0.5, 1.5, 0, 0, 0], [0] * 4 + [1, 0.5, 1.5]])
    monkeypatch.setattr(baselines, "_ENTRIES_AT_ONCE", 90_000)  # of nine for each user
    again = ItemKNN(items, stops - 3, stops, 60_000)
    assert products[1:] == [30_001, 30_000]
    assert (again._similarity != model._similarity).nnz == 0


def test_one_user_of_the_whole_catalogue_makes_no_table_of_all_pairs():
    """Items that only this user had are all as similar as can be; those of other users keep their neighbours."""
    own = np.arange(1, 301, dtype=np.int32)
    log = np.concatenate([own, [1, 2, 3], [1, 2]]).astype(np.int32)
    starts = np.array([0, 300, 303])
    model = ItemKNN(log, starts, np.array([300, 303, 305]), 300, neighbours=5)
    sizes = np.diff(model._similarity.indptr)
    assert sizes[1:4].tolist() == [2, 2, 2]
    assert sizes.sum() == 6
    few = ItemKNN(log[:20], starts[:1], np.array([20]), 300, neighbours=5)
    assert (np.diff(few._similarity.indptr)[1:21] == 19).all()


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_the_transition_graph_walks_from_the_last_items(hops):
    log = Log()
    step = np.zeros((log.n_items + 1, log.n_items + 1))
    for own in log.train:
        for a, b in itertools.pairwise(own):
            step[a, b] += 1
    step = np.log1p(step)
    step /= np.maximum(step.sum(axis=1, keepdims=True), 1e-12)
    evidence = np.zeros((len(log.lists), log.n_items + 1))
    for row, own in enumerate(log.lists):
        for age, item in enumerate(own[::-1][:2]):
            walk = np.eye(log.n_items + 1)[item]
            for hop in range(hops):
                walk = walk @ step
                evidence[row] += 0.3**age * 0.3**hop * walk
    scores = TransitionGraph(*log.arguments, hops=hops, decay=0.3).scores(log.histories)
    np.testing.assert_allclose(np.maximum(scores, 0), evidence, atol=1e-6)


def test_baselines_read_the_training_part_and_the_history_only():
    """Other held-out items and other times of questions change no score."""
    dataset = load_dataset("movietweetings")
    split = split_dataset(dataset)
    histories = ranking_cases(
        split.test, dataset.items, baselines.relative_seconds(dataset.timestamps)
    ).histories
    part = histories.select(np.arange(50))
    held_out = np.setdiff1d(
        np.arange(dataset.n_interactions),
        np.concatenate([np.arange(a, b) for a, b in zip(split.train_starts, split.train_stops, strict=True)]),
    )
    items, times = np.array(dataset.items), np.array(part.timestamps)
    at_test = split.test.history_stops[:50]
    items[at_test] = 1
    times[at_test] += 10**6
    for name, ranker in baseline_rankers(split).items():
        before = ranker.scorer.scores(part)
        changed = Histories(items, part.starts, part.stops, times, part.users)
        np.testing.assert_array_equal(ranker.scorer.scores(changed), before, err_msg=name)
        assert before.shape == (50, dataset.n_items + 1)
    items[held_out] = 1
    poisoned = dataclasses.replace(split, dataset=dataclasses.replace(dataset, items=items))
    for name, ranker in baseline_rankers(poisoned).items():
        np.testing.assert_array_equal(
            ranker.scorer.scores(part), baseline_rankers(split)[name].scorer.scores(part), err_msg=name
        )


def test_baselines_asked_for_are_ranked_and_shown_where_they_take_long(capsys, monkeypatch):
    split = split_dataset(small_dataset())
    every = evaluate_baselines(split, progress=True)
    assert list(every) == ["popularity", "popularity-7d", "markov", "item-knn", "graph"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(baselines, "PATIENCE_SECONDS", 0)
    two = evaluate_baselines(split, config=EvaluationConfig(baselines=("graph", "markov")), progress=True)
    assert {name: each.metrics for name, each in two.items()} == {
        name: every[name].metrics for name in ("markov", "graph")
    }
    assert "graph" in capsys.readouterr().err


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


@pytest.mark.parametrize("excluded", [True, False])
@pytest.mark.parametrize("seed", [0, 12345])
def test_ranks_from_evidence_are_those_of_all_scores(excluded, seed):
    """Repeated and excluded targets, empty histories, equal scores and cases of several targets."""
    log = Log(n_items=40, users=60)
    users, evidences = len(log.lists), 0
    stops = np.where(np.arange(users) % 7, log.histories.stops, log.starts)
    histories = dataclasses.replace(log.histories, stops=stops)
    exclude = SeenHistories(log.items, log.starts, stops) if excluded else None
    targets = np.concatenate([log.rng.permutation(log.n_items)[:3] + 1 for _ in range(users)]).astype(
        np.int32
    )
    cases = RankingCases(histories, targets, np.arange(users + 1) * 3, exclude)
    for scorer in (
        Popularity(log.counts),
        RecentPopularity(log.items, log.times, log.n_items, 3, "history"),
        RecentPopularity(log.items, log.times, log.n_items, 3, "training"),
        MarkovChain(*log.arguments),
        ItemKNN(*log.arguments, neighbours=5, last=2),
        TransitionGraph(*log.arguments, last=2),
    ):
        found = ScoreRanker(scorer, tie_seed=seed, row_chunk=50).rank(cases)
        rows = cases.case_of_target
        table = score_table(log.n_items, tie_seed=seed)
        seen = None if exclude is None else exclude.select(rows)
        want = rank_targets(scorer.scores(histories.select(rows)), table, targets, seen)
        np.testing.assert_array_equal(found, want, err_msg=type(scorer).__name__)
        evidences += scorer.evidence(histories).nnz
        with pytest.raises(DataError, match="item ids from 1 to 40, got 0 to 0"):
            ScoreRanker(scorer).rank(
                RankingCases(histories.select(np.arange(1)), targets[:1] * 0, np.arange(2))
            )
    assert evidences
    assert (want == MISSED).any() == excluded


def test_baselines_rank_without_the_scores_of_all_items(monkeypatch):
    """Users times items would take longer than the model itself."""
    split = split_dataset(load_dataset("movietweetings"))
    for scorer in (Popularity, RecentPopularity, MarkovChain, ItemKNN, TransitionGraph):
        monkeypatch.delattr(scorer, "scores")
    cases = ranking_cases(split.test.select(np.arange(20)), split.dataset.items, split.dataset.timestamps)
    for ranker in baseline_rankers(split).values():
        assert ranker.rank(cases).shape == (20,)


def test_few_histories_are_scored_at_a_time_in_a_large_catalogue(monkeypatch):
    """Their scores of all items would not fit; ranks and lists do not depend on it."""
    log = Log()
    targets = np.arange(len(log.lists)) % log.n_items + 1
    cases = RankingCases(log.histories, targets.astype(np.int32), np.arange(len(targets) + 1))
    at_once = []

    class Watched:
        n_items = log.n_items

        def scores(self, histories):
            at_once.append(len(histories))
            return MarkovChain(*log.arguments).scores(histories)

    def answers():
        ranker = ScoreRanker(Watched())
        return ranker.rank(cases), *ranker.top_k(log.histories, 5)

    whole = answers()
    assert at_once == [25, 25]
    monkeypatch.setattr(ranker_module, "SCORES_AT_ONCE", 10 * (log.n_items + 1))
    for one, other in zip(whole, answers(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert at_once[2:] == [10, 10, 5] * 2
