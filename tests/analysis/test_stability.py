"""Edits of histories against lists in plain Python, and list similarities against their definitions."""

import dataclasses
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrec.analysis import checks as checks_module
from jaxrec.analysis import stability as stability_module
from jaxrec.analysis.checks import Checks, run_checks
from jaxrec.analysis.stability import (
    DEFAULT_PERTURBATIONS,
    Perturbation,
    StabilityStudy,
    compare_stability,
    jaccard,
    measure_stability,
    perturb,
    rank_biased_overlap,
    run_stability,
    stability,
    stability_figure,
)
from jaxrec.data import split_dataset
from jaxrec.errors import ConfigError
from jaxrec.evaluation.histories import Histories, RankingCases
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.ranking import TopK
from tests.helpers import small_config, small_dataset

N_ITEMS = 30


def log(lengths=(5, 1, 0, 9, 40), seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items, times = rng.integers(1, N_ITEMS + 1, offsets[-1]).astype(np.int32), np.arange(offsets[-1])
    return Histories(items, offsets[:-1], offsets[1:], times)


def histories(log):
    return [log.items[a:b].tolist() for a, b in zip(log.starts, log.stops, strict=True)]


def one_edit_apart(edit, old, new):
    """Can one edit turn the list ``old`` into ``new``? The places where it can."""
    n = len(old)
    if edit == "drop":
        return [i for i in range(n) if old[:i] + old[i + 1 :] == new]
    if edit == "replace":
        return [
            i for i in range(n) if old[:i] == new[:i] and old[i + 1 :] == new[i + 1 :] and old[i] != new[i]
        ]
    if edit == "swap":
        return [i for i in range(1, n) if [*old[: i - 1], old[i], old[i - 1], *old[i + 1 :]] == new]
    return [i for i in range(n + 1) if len(new) == n + 1 and new[:i] + new[i + 1 :] == old]


@pytest.mark.parametrize("edit", ["drop", "replace", "swap", "insert"])
@pytest.mark.parametrize("where", ["last", "random"])
def test_one_edit_in_every_history(edit, where):
    before = log()
    after = perturb(before, Perturbation(edit, where, seed=3), N_ITEMS)
    for old, new in zip(histories(before), histories(after), strict=True):
        if not old or (len(old) == 1 and edit in ("drop", "swap")):
            assert new == old  # never emptied; nothing to change places with
            continue
        places = one_edit_apart(edit, old, new)
        assert places
        if where == "last":
            assert len(old) - (edit != "insert") in places
    assert after.timestamps.shape == after.items.shape
    assert all(
        (np.diff(after.timestamps[a:b]) >= 0).all() for a, b in zip(after.starts, after.stops, strict=True)
    )
    again = perturb(before, Perturbation(edit, where, seed=3), N_ITEMS)
    np.testing.assert_array_equal(after.items, again.items)


@pytest.mark.parametrize("edit", ["drop", "replace", "swap", "insert", "shuffle"])
def test_models_that_read_more_get_the_same_edits(edit):
    """Of what the shorter one reads; the older interactions of the longer one stay as they are."""
    before, edit = log(), Perturbation(edit, "all" if edit == "shuffle" else "random", seed=1)
    short, long = before.compact(7), before.compact(20)
    after = perturb(short, edit, N_ITEMS), perturb(long, edit, N_ITEMS, newest=7)
    for old, one, other in zip(histories(long), *map(histories, after), strict=True):
        assert other == [*old[: max(0, len(old) - 7)], *one]
    for logged in after:
        times = [logged.timestamps[a:b].tolist() for a, b in zip(logged.starts, logged.stops, strict=True)]
        assert times == [sorted(own) for own in times]
    assert any(a != b for a, b in zip(histories(after[1]), histories(long), strict=True))


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_the_rate_is_the_share_of_edited_interactions(rate):
    before = log()
    after = perturb(before, Perturbation("replace", "random", rate), N_ITEMS)
    for old, new in zip(histories(before), histories(after), strict=True):
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        assert changed == min(len(old), max(1, round(rate * len(old))))
    dropped = perturb(before, Perturbation("drop", "random", rate), N_ITEMS)
    assert dropped.lengths.tolist() == [max(n - max(1, round(rate * n)), min(n, 1)) for n in before.lengths]


def test_replacements_are_other_items_of_the_catalogue():
    many = log((4000,))
    after = perturb(many, Perturbation("replace", "random", 0.9), N_ITEMS)
    assert after.items.min() == 1
    assert after.items.max() == N_ITEMS
    assert (after.items != many.items).sum() == 3600


def test_list_similarities_by_their_definitions():
    rng = np.random.default_rng(1)
    a, b = (np.stack([rng.permutation(12)[:6] + 1 for _ in range(9)]) for _ in range(2))
    b[0], p = a[0], 0.8
    want_overlap, want_jaccard = [], []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        shared = [len(set(x[:d]) & set(y[:d])) for d in range(1, 7)]
        terms = sum(shared[d - 1] / d * p**d for d in range(1, 7))
        want_overlap.append(shared[-1] / 6 * p**6 + (1 - p) / p * terms)
        want_jaccard.append(shared[-1] / len(set(x) | set(y)))
    np.testing.assert_allclose(rank_biased_overlap(a, b, p), want_overlap, rtol=1e-12)
    np.testing.assert_allclose(jaccard(a, b), want_jaccard)
    assert rank_biased_overlap(a, a, p) == pytest.approx(1)
    assert jaccard(a * 0, b * 0).tolist() == [1] * 9
    short = np.where(np.arange(6) < 4, a, 0), np.where(np.arange(6) < 4, b, 0)
    np.testing.assert_allclose(rank_biased_overlap(*short, p), rank_biased_overlap(a[:, :4], b[:, :4], p))
    assert rank_biased_overlap(short[0], short[0], p) == pytest.approx(1)
    assert rank_biased_overlap(a * 0, a * 0, p) == pytest.approx(1)
    assert rank_biased_overlap(a, a * 0, p) == pytest.approx(0)


@pytest.mark.parametrize("similarity", [rank_biased_overlap, jaccard])
def test_similarities_of_long_lists_take_memory_for_their_places_not_for_pairs_of_them(similarity):
    lists, rows = np.tile(np.arange(1, 601, dtype=np.int32), (20, 1)), np.arange(20)[:, None]
    other = np.where(np.arange(600) < 30 * rows, lists, lists + 600)
    tracemalloc.start()
    try:
        found = similarity(lists, other)
        assert tracemalloc.get_traced_memory()[1] < 20 * 600 * 600 / 2
    finally:
        tracemalloc.stop()
    assert found[0] == 0
    assert found[-1] > 0.9
    assert (np.diff(found) >= 0).all()


class LastItemModel:
    """A ranker by the scores of the newest item (or of item 0), with plain loops."""

    n_items = N_ITEMS

    def __init__(self, table, constant=False):
        self.table, self.constant = table, constant

    def _orders(self, log):
        for history in histories(log):
            scores = self.table[0 if self.constant else history[-1]]
            yield [item for item in np.argsort(-scores, kind="stable") if item > 0]

    def rank(self, cases):
        orders = list(self._orders(cases.histories))
        return np.array(
            [orders[e].index(t) + 1 for e, t in zip(cases.case_of_target, cases.targets, strict=True)]
        )

    def top_k(self, log, k, exclude=None):
        lists = np.array([order[:k] for order in self._orders(log)])
        return TopK(np.zeros(lists.shape, np.float32), lists)


def test_models_are_measured_and_compared():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, N_ITEMS + 1, N_ITEMS + 1))
    before, targets = log((6,) * 20), rng.integers(1, N_ITEMS + 1, 20).astype(np.int32)
    edits = (Perturbation("drop"), Perturbation("swap", "random"), Perturbation("replace", "random", 0.4))
    cases = RankingCases(before, targets, np.arange(21))
    moving, constant = ([LastItemModel(v, constant) for v in vectors] for constant in (False, True))
    moved = measure_stability(moving, cases, 6, 5, edits)
    still = measure_stability(constant, cases, 6, 5, edits)
    assert [stability.perturbation.name for stability in moved] == [
        "drop last",
        "swap random",
        "replace random 40%",
    ]
    assert all((row.overlap > 1 - 1e-9).all() and (row.jaccard == 1).all() for row in still)
    assert moved[0].overlap.shape == (2, 20)
    assert still[0].summary()["median_rank_change"] == {"mean": 0, "sd": 0, "values": [0, 0]}
    edited = perturb(before, edits[0], N_ITEMS)
    for seed, model in enumerate(moving):
        ranks, old_ranks = model.rank(RankingCases(edited, targets, np.arange(21))), model.rank(cases)
        np.testing.assert_array_equal(moved[0].ranks[seed], ranks)
        lists = [model.top_k(log, 5).items for log in (before, edited)]
        np.testing.assert_allclose(moved[0].overlap[seed], rank_biased_overlap(*lists))
        hits = (ranks <= 5).astype(float) - (old_ranks <= 5)
        np.testing.assert_array_equal(moved[0].change("HR@5")[seed], hits)
    # Seen targets are no candidates before or after, and say nothing about movement.
    seen = np.arange(20) < 15
    ranks, ranks_before = (np.where(seen, MISSED, each) for each in (moved[0].ranks, moved[0].ranks_before))
    half = dataclasses.replace(moved[0], ranks=ranks, ranks_before=ranks_before)
    own = np.abs(moved[0].ranks - moved[0].ranks_before)[:, ~seen]
    assert half.by_seed()["median_rank_change"] == np.median(own, axis=1).tolist() != [0, 0]
    study = StabilityStudy({"a": moved, "b": still}, {"b": compare_stability(moved, still)})
    assert study.effects["b"]["drop last"].low > 0
    assert study.corrected()["b"]["drop last"] == pytest.approx(3 * study.effects["b"]["drop last"].p_value)
    header, rows = study.effect_rows()
    assert len(rows) == 3
    assert header[-1] == "p Holm"
    caption, few = study.notes()
    assert "corrects that p for all 3 comparisons" in caption
    assert few.startswith("Fewer than 5 seeds for a, b: ")
    assert StabilityStudy({"a": moved}, {}).notes() == []
    assert "±" in study.rows()[1][0][2]
    with pytest.raises(ConfigError, match="must be measured under the same perturbations"):
        compare_stability(moved, still[:1])


@pytest.mark.parametrize(("users", "bars"), [([5], 0), ([5, 5], 0), ([5, 6], 1)])
def test_the_figure_of_a_single_user_has_no_intervals(users, bars):
    count = len(users)
    before = dataclasses.replace(log((6,) * count), users=np.array(users, np.int32))
    cases = RankingCases(before, np.arange(1, count + 1, dtype=np.int32), np.arange(count + 1))
    model = LastItemModel(np.random.default_rng(0).normal(size=(N_ITEMS + 1, N_ITEMS + 1)))
    measured = measure_stability([model], cases, 6, 5, (Perturbation("drop"), Perturbation("swap")))
    (container,) = stability_figure({"a": measured}).axes[0].containers
    points, _, intervals = container
    assert points.get_ydata().tolist() == [row.overlap.mean() for row in measured]
    assert len(intervals) == bars


@pytest.mark.parametrize("remove_seen", [True, False])
def test_a_run_is_measured_under_its_own_rule_of_seen_items(monkeypatch, remove_seen):
    dataset = small_dataset(n_users=20)
    run = SimpleNamespace(
        setup=SimpleNamespace(split=split_dataset(dataset), dataset=dataset, timestamps=None),
        config=small_config(evaluation={"remove_seen": remove_seen}),
        seeds=(0,),
        ranker=lambda seed: SimpleNamespace(encoding=SimpleNamespace(max_length=16, longest_history=15)),
    )
    monkeypatch.setattr(stability_module, "measure_stability", lambda rankers, *rest, newest: rest)
    cases, longest, k = run_stability(run, "test", 5)
    assert (cases.exclude is not None) == remove_seen
    assert (longest, k) == (15, 5)  # a model that appends a token reads an interaction less


def test_runs_are_edited_where_all_of_them_read(monkeypatch):
    dataset, edited = small_dataset(n_users=20), []

    def run(path, dataset_):
        setup = SimpleNamespace(split=split_dataset(dataset), dataset=dataset)
        token = 0 if path == "masked" else None
        return SimpleNamespace(setup=setup, config=small_config(), task=SimpleNamespace(query_token=token))

    monkeypatch.setattr(stability_module, "Run", run)
    monkeypatch.setattr(
        stability_module, "run_stability", lambda run, split, k, newest: edited.append(newest) or []
    )
    for k in (0, dataset.n_items + 1):
        with pytest.raises(ConfigError, match=rf"-k must be from 1 to the catalogue's .* got {k}"):
            stability(["next"], k=k)
    stability(["next", "masked"])
    stability(["next"])
    length = small_config().batches.max_length
    assert edited == [length - 1, length - 1, length]


def test_a_shuffle_moves_what_the_model_reads(monkeypatch):
    """A model that appends a token reads an interaction less; lists are no longer than a small catalogue."""
    dataset = small_dataset(n_users=20, n_items=7)
    run = SimpleNamespace(
        setup=SimpleNamespace(split=split_dataset(dataset), dataset=dataset, timestamps=None),
        config=small_config(),
        seeds=(0,),
        ranker=lambda seed: SimpleNamespace(encoding=SimpleNamespace(max_length=16, longest_history=15)),
    )
    calls = []

    def measure(rankers, cases, longest, metric, shuffle, k):
        calls.append((longest, metric, shuffle, k))

    monkeypatch.setattr(checks_module, "measure_sequentiality", measure)
    run_checks(run, "test", Checks(shuffle="all", metric="MRR"), [], {})
    run_checks(run, "test", Checks(shuffle="all", metric="HR@5"), [], {})
    assert calls == [(15, "MRR", "all", 7), (15, "HR@5", "all", 5)]


def test_bad_perturbations_are_refused():
    with pytest.raises(ConfigError, match=r"drop, replace, swap or insert .* got edit='erase'"):
        Perturbation("erase")
    with pytest.raises(ConfigError, match=r"rate must be in \[0, 1\), got 1"):
        Perturbation("drop", rate=1)
    with pytest.raises(ConfigError, match="p must be between 0 and 1, got 1"):
        rank_biased_overlap(np.ones((1, 1)), np.ones((1, 1)), 1.0)
    names = [each.name for each in DEFAULT_PERTURBATIONS]
    assert len(set(names)) == len(names) == 11
    assert Perturbation("replace", "random", 0.125, seed=3).name == "replace random 12.5%, seed 3"
