"""Shuffled histories against plain lists, and models whose use of order is known."""

import dataclasses

import numpy as np
import pytest

from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.sequentiality import measure_sequentiality, sequentiality_figure
from jaxrec.analysis.significance import paired_bootstrap
from jaxrec.analysis.stability import Perturbation, perturb
from jaxrec.errors import ConfigError
from jaxrec.evaluation.histories import Histories, RankingCases
from jaxrec.evaluation.metrics import metric_values
from jaxrec.evaluation.ranking import TopK

N_ITEMS = 30


def log(lengths=(5, 1, 0, 9, 40), seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, N_ITEMS + 1, offsets[-1]).astype(np.int32)
    return Histories(items, offsets[:-1], offsets[1:], np.arange(offsets[-1]))


def lists_of(histories):
    return [histories.items[a:b].tolist() for a, b in zip(histories.starts, histories.stops, strict=True)]


@pytest.mark.parametrize("where", ["all", "all-but-last"])
def test_a_shuffle_permutes_each_history(where):
    before = log((5, 1, 0, 9, 400))
    after = perturb(before, Perturbation("shuffle", where, seed=1), N_ITEMS)
    for old, new in zip(lists_of(before), lists_of(after), strict=True):
        assert sorted(old) == sorted(new)
        if where == "all-but-last":
            assert old[-1:] == new[-1:]
    assert lists_of(before)[-1] != lists_of(after)[-1]
    np.testing.assert_array_equal(after.timestamps, before.timestamps)
    again = perturb(before, Perturbation("shuffle", where, seed=1), N_ITEMS)
    np.testing.assert_array_equal(again.items, after.items)


@pytest.mark.parametrize("where", ["all", "all-but-last"])
def test_every_permutation_is_as_likely(where):
    """Histories 1, 2, 3, 4: each item at each free place alike."""
    n = 6000
    histories = Histories(np.tile(np.arange(1, 5, dtype=np.int32), n), np.arange(n) * 4, np.arange(n) * 4 + 4)
    after = perturb(histories, Perturbation("shuffle", where), N_ITEMS).items.reshape(n, 4)
    free = 4 if where == "all" else 3
    for place in range(free):
        share = np.bincount(after[:, place], minlength=5)[1 : free + 1] / n
        np.testing.assert_allclose(share, 1 / free, atol=0.025)


class Model:
    """Recommends by the vector of one item of the history, with plain loops."""

    n_items = N_ITEMS

    def __init__(self, reads, seed=0):
        self.reads, self.table = reads, np.random.default_rng(seed).normal(size=(N_ITEMS + 1, N_ITEMS + 1))

    def _orders(self, histories):
        for history in lists_of(histories):
            scores = self.table[self.reads(history) if history else 0]
            yield [item for item in np.argsort(-scores, kind="stable") if item > 0]

    def rank(self, cases):
        orders = list(self._orders(cases.histories))
        return np.array(
            [orders[e].index(t) + 1 for e, t in zip(cases.case_of_target, cases.targets, strict=True)]
        )

    def top_k(self, histories, k, exclude=None):
        lists = np.array([order[:k] for order in self._orders(histories)])
        return TopK(np.zeros(lists.shape, np.float32), lists)


def cases_for(model, n=150):
    """Histories whose target is the model's first answer."""
    histories = log((8,) * n)
    targets = model.top_k(histories, 1).items[:, 0].astype(np.int32)
    return RankingCases(histories, targets, np.arange(n + 1))


def test_recency_and_order_are_told_apart():
    newest, second, bag = (Model(reads) for reads in (lambda h: h[-1], lambda h: h[-2], max))
    for model, order_matters, recency_matters in (
        (newest, False, True),
        (second, True, None),
        (bag, False, False),
    ):
        result = measure_sequentiality([model], cases_for(model), 8, "HR@1", k=5)
        change = {row.shuffle: row.relative for row in result.shuffles}
        assert (change["all-but-last"] < -0.5) == order_matters
        if recency_matters is not None:
            assert (change["all"] - change["all-but-last"] < -0.5) == recency_matters
    still = measure_sequentiality([bag], cases_for(bag), 8, "HR@1", k=5).shuffles[0]
    assert (still.before, still.after, still.overlap, still.jaccard) == (1, 1, pytest.approx(1), 1)


def test_the_change_equals_the_metric_of_the_shuffled_histories():
    models = [Model(lambda h: h[-2], seed) for seed in (0, 1)]
    cases = cases_for(models[0])
    (row,) = measure_sequentiality(models, cases, 8, "HR@5", "all-but-last", 5, seed=3).shuffles
    edited = perturb(cases.histories, Perturbation("shuffle", "all-but-last", seed=3), N_ITEMS)
    after = [
        np.mean(model.rank(RankingCases(edited, cases.targets, cases.target_offsets)) <= 5)
        for model in models
    ]
    before = [np.mean(model.rank(cases) <= 5) for model in models]
    assert row.after == pytest.approx(np.mean(after))
    assert row.effect.difference == pytest.approx(np.mean(after) - np.mean(before))
    ranks = [
        np.stack([metric_values(model.rank(asked), "HR@5", asked.target_offsets) for model in models])
        for asked in (cases, RankingCases(edited, cases.targets, cases.target_offsets))
    ]
    assert row.effect == paired_bootstrap(*ranks, paired_seeds=True), "before and after are the same models"


def test_table_sentence_and_figure(tmp_path):
    model = Model(lambda h: h[-1])
    result = measure_sequentiality([model], cases_for(model), 8, "HR@1", k=5)
    header, rows = result.rows()
    assert [row[0] for row in rows] == ["all", "all-but-last"]
    assert header[1] == "HR@1 before"
    assert "place of the newest (recency): a further -" in result.sentence()
    assert set(result.to_dict()["shuffles"]) == {"all", "all-but-last"}
    save_figure(sequentiality_figure(result), tmp_path / "figure.png")
    cases = cases_for(model)
    worst = model.top_k(cases.histories, N_ITEMS).items[:, -1].astype(np.int32)
    nothing = measure_sequentiality([model], dataclasses.replace(cases, targets=worst), 8, "HR@1", k=5)
    assert [row[5] for row in nothing.rows()[1]] == ["-", "-"], "a share of nothing"
    assert nothing.sentence() == ""
    one = measure_sequentiality([model], cases_for(model), 8, "HR@1", "all", 5)
    assert one.sentence() == ""
    with pytest.raises(ConfigError, match="shuffle of all or all-but-last"):
        Perturbation("shuffle", "last")
