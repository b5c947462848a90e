"""Reordered ties against loops over users, their borders, and spreads of refitted baselines."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrec.analysis.checks import Checks, run_checks
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.ties import measure_ties, retie, tie_shares, ties_figure
from jaxrec.data import SequenceDataset, split_dataset
from jaxrec.errors import DataError
from jaxrec.evaluation.baselines import baseline_rankers
from jaxrec.evaluation.config import EvaluationConfig


def tied_dataset(times=True, users=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    stamps = np.concatenate([np.sort(rng.integers(0, 5, n)) for n in lengths])
    items = np.concatenate([rng.permutation(20)[:n] + 1 for n in lengths]).astype(np.int32)
    return SequenceDataset(
        items,
        offsets,
        user_ids=[f"u{i}" for i in range(users)],
        item_ids=[f"i{i}" for i in range(20)],
        timestamps=stamps if times else None,
        meta={"name": "tied"},
    )


def runs_of(dataset, borders=None):
    """The places of every run of simultaneous interactions, as sets, by loops."""
    runs = []
    for user, (start, stop) in enumerate(zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)):
        for at in range(start, stop):
            new = at == start or dataset.timestamps[at] != dataset.timestamps[at - 1]
            if new or (borders is not None and at == borders[user]):
                runs.append([])
            runs[-1].append(at)
    return runs


@pytest.mark.parametrize("bordered", [False, True])
def test_items_move_inside_their_run_only(bordered):
    dataset = tied_dataset()
    borders = split_dataset(dataset).train_stops if bordered else None
    moved = np.zeros(dataset.n_interactions, bool)
    for seed in range(20):
        new = retie(dataset, seed, borders)
        np.testing.assert_array_equal(new.timestamps, dataset.timestamps)
        moved |= new.items != dataset.items
        for run in runs_of(dataset, borders):
            assert sorted(new.items[run]) == sorted(dataset.items[run])
    alone = [run[0] for run in runs_of(dataset, borders) if len(run) == 1]
    together = [at for run in runs_of(dataset, borders) if len(run) > 1 for at in run]
    assert not moved[alone].any()
    assert moved[together].mean() > 0.95
    np.testing.assert_array_equal(retie(dataset, 3).items, retie(dataset, 3).items)


def test_every_order_of_a_tie_is_as_likely():
    dataset = tied_dataset(users=2)
    run = max(runs_of(dataset), key=len)
    first = [int(retie(dataset, seed).items[run[0]]) for seed in range(1500)]
    shares = np.unique(first, return_counts=True)[1] / len(first)
    np.testing.assert_allclose(shares, 1 / len(run), atol=0.05)


def test_shares_of_ties_equal_the_loops():
    dataset = tied_dataset()
    split = split_dataset(dataset)
    times, cases = dataset.timestamps, split.test
    tied = sum(len(run) for run in runs_of(dataset) if len(run) > 1) / dataset.n_interactions
    at_target = np.mean([times[stop] == times[stop - 1] for stop in cases.history_stops])
    borders = split.train_stops[cases.users]
    crossing = np.mean([times[border] == times[border - 1] for border in borders])
    assert tie_shares(split, "test") == pytest.approx((tied, at_target, crossing))


def test_the_order_of_equal_scores_is_no_part_of_the_spread():
    """Ties among the two oldest interactions change nothing that popularity counts or that is asked."""
    rng, users, items = np.random.default_rng(0), 40, 90
    dataset = SequenceDataset(
        np.concatenate([rng.permutation(items)[:6] + 1 for _ in range(users)]).astype(np.int32),
        np.arange(users + 1) * 6,
        user_ids=[f"u{i}" for i in range(users)],
        item_ids=[f"i{i}" for i in range(items)],
        timestamps=np.concatenate([np.array([0, 0, 1, 2, 3, 4]) + user for user in range(users)]),
        meta={"name": "tied"},
    )
    split = split_dataset(dataset)
    run = SimpleNamespace(
        setup=SimpleNamespace(split=split, dataset=dataset, timestamps=dataset.timestamps),
        config=SimpleNamespace(metric="NDCG@10", evaluation=EvaluationConfig(ks=(10,))),
        seeds=(0,),
        ranker=lambda seed: baseline_rankers(split)["popularity"],
    )
    ties = run_checks(run, "test", Checks(retie=4), [], {}).ties
    model, popularity = (next(x for x in ties.spreads if x.name == name) for name in ("model", "popularity"))
    assert set(popularity.draws) == {popularity.original} == set(model.draws)
    assert popularity.original > 0


def test_a_model_never_gets_a_training_item_as_target(tmp_path):
    dataset = tied_dataset()
    split = split_dataset(dataset)
    training = [
        set(dataset.items[a:b].tolist()) for a, b in zip(split.train_starts, split.train_stops, strict=True)
    ]
    leaks, refitted = [], []

    def model(drawn):
        leaks.append(any(t in training[u] for t, u in zip(drawn.test.targets, drawn.test.users, strict=True)))
        return float(np.mean(drawn.test.targets <= 10))

    def baselines(drawn):
        refitted.append(drawn.dataset.items.copy())
        return {"constant": 0.25, "first": float(np.mean(drawn.test.targets <= 10))}

    ties = measure_ties(split, "test", "HR@10", ("model", model), baselines, draws=4)
    assert not any(leaks)
    assert len(leaks) == len(refitted) == 5
    assert any(
        (items[a:b] != dataset.items[a:b]).any()
        for items in refitted[1:]
        for a, b in zip(split.train_starts, split.train_stops, strict=True)
    )
    by_name = {spread.name: spread for spread in ties.spreads}
    assert by_name["constant"].draws == (0.25,) * 4
    assert (by_name["model"].refitted, by_name["first"].refitted) == (False, True)
    assert len(set(by_name["first"].draws)) > 1
    _, rows = ties.rows()
    assert [row[0] for row in rows] == ["model", "constant", "first"]
    assert rows[1][3] == "0.0000"
    assert "of interactions share their time" in ties.sentence()
    assert ties.to_dict()["spreads"][0]["name"] == "model"
    save_figure(ties_figure(ties), tmp_path / "ties.png")


def test_a_log_without_ties_is_evaluated_once():
    dataset = tied_dataset()
    times = np.arange(dataset.n_interactions)
    split = split_dataset(dataclasses.replace(dataset, timestamps=times))
    calls = []

    def model(drawn):
        calls.append(drawn)
        return 0.5

    ties = measure_ties(split, "test", "HR@10", ("model", model), lambda _: {"other": 0.25}, draws=3)
    assert len(calls) == 1
    assert [spread.draws for spread in ties.spreads] == [(0.5,) * 3, (0.25,) * 3]
    assert (ties.tied, ties.tied_targets, ties.crossing) == (0, 0, 0)


def test_a_log_without_times_is_refused():
    with pytest.raises(
        DataError, match="--retie: expected a log with timestamps, but dataset 'tied' has none"
    ):
        retie(tied_dataset(times=False), 0)
