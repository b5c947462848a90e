"""Similar histories, lists and futures against loops over pairs; effective ranks against their definition."""

import dataclasses
import json

import numpy as np
import pytest

import jaxrec
from experiments.revisited.personalisation import Options, divide, variants
from jaxrec.analysis import personalisation as personalisation_module
from jaxrec.analysis.checks import Checks
from jaxrec.analysis.personalisation import (
    BOUNDS,
    LayerStates,
    effective_rank,
    measure_personalisation,
    personalisation_figure,
    ranks_by_step,
    run_personalisation,
    similar_pairs,
    state_ranks,
    table_rank,
)
from jaxrec.data.splits import SplitConfig, split_dataset
from jaxrec.errors import ConfigError
from jaxrec.evaluation.encode import Forward, encode_histories
from jaxrec.evaluation.histories import Histories, RankingCases, histories_of, ranking_cases
from jaxrec.evaluation.metrics import metric_values
from jaxrec.evaluation.ranking import TopK
from jaxrec.runs import Run
from jaxrec.sharding import MeshConfig
from tests.helpers import replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset(n_users=24)
CONFIG = small_config(
    encoder={"user": "added", "layers": 2},
    training={"epochs": 2, "seeds": (0, 1), "keep_checkpoints": 9, "select": "last"},
    optimizer={"learning_rate": 0.02},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jaxrec.fit(DATASET, CONFIG, tmp_path_factory.mktemp("pairs") / "run", progress=False).run


@pytest.fixture(scope="module")
def result(run):
    return run_personalisation(run, "test", 5, "HR@5")


def share(a, b):
    """The Jaccard index."""
    a, b = set(a), set(b)
    return len(a & b) / len(a | b)


def cases_of(histories, targets):
    log = np.concatenate(histories).astype(np.int32)
    ends = np.cumsum([len(each) for each in histories])
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in targets])])
    return RankingCases(
        Histories(log, ends - [len(each) for each in histories], ends),
        np.concatenate(targets).astype(np.int32),
        offsets,
    )


def test_pairs_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 12, rng.integers(1, 9)) for _ in range(30)]
    targets = [rng.integers(1, 12, rng.integers(1, 4)) for _ in range(30)]
    pairs = similar_pairs(cases_of(histories, targets), 12, np.random.default_rng(1))
    assert (pairs.first < pairs.second).all()
    assert len(set(zip(pairs.first, pairs.second, strict=True))) == len(pairs.first)
    for a, b, past, future in zip(*vars(pairs).values(), strict=True):
        assert past == pytest.approx(share(histories[a], histories[b]))
        assert future == pytest.approx(share(targets[a], targets[b]))
    for a in range(30):
        best = max(share(histories[a], histories[b]) for b in range(30) if b != a)
        own = (pairs.first == a) | (pairs.second == a)
        assert pairs.histories[own].max() == pytest.approx(best)


class Newest:
    """A ranker whose list begins with the newest item."""

    n_items = DATASET.n_items

    def top_k(self, histories, k, exclude=None):
        newest = histories.last_items()[:, None]
        return TopK(np.zeros((len(newest), k), np.float32), (newest + np.arange(k) - 1) % self.n_items + 1)

    def rank(self, cases):
        newest = cases.histories.last_items()[cases.case_of_target]
        return ((cases.targets - newest) % self.n_items + 1).astype(np.int32)


def test_a_user_with_several_cases_is_paired_with_others(monkeypatch):
    split = split_dataset(
        DATASET, SplitConfig("temporal", target="successive", valid_quantile=0.3, test_quantile=0.5)
    )
    assert len(np.unique(split.test.users)) < len(split.test)
    cases = ranking_cases(split.test, DATASET.items)
    monkeypatch.setattr(personalisation_module, "state_ranks", lambda *_: (["layer 1"], [1.0]))
    monkeypatch.setattr(personalisation_module, "table_rank", lambda *_: 1.0)
    result = measure_personalisation([Newest()], cases, 5, "HR@5")
    number = len(np.unique(split.test.users))
    assert max(result.pairs.second) == number - 1
    alone = metric_values(Newest().rank(cases), "HR@5", cases.target_offsets)
    np.testing.assert_array_equal(result.own[0], alone)
    monkeypatch.setattr(personalisation_module, "MOST_USERS", 6)
    sampled = measure_personalisation([Newest()], cases, 5, "HR@5")
    assert max(sampled.pairs.second) == 5
    np.testing.assert_array_equal(sampled.own, result.own, "the metric is that of all cases")


def test_effective_rank_is_its_definition():
    rng = np.random.default_rng(0)
    assert effective_rank(np.outer(rng.normal(size=20), rng.normal(size=5))) == pytest.approx(1.0)
    assert effective_rank(np.ones((20, 5))) == 0.0
    signs = np.concatenate([np.eye(5), -np.eye(5)])
    assert effective_rank(signs + 7.0) == pytest.approx(5.0), "the mean is no direction"
    vectors = rng.normal(size=(40, 6)) * [1, 1, 2, 3, 0.1, 0]
    centred = vectors - vectors.mean(axis=0)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(centred.T @ centred), 0))
    p = values / values.sum()
    assert effective_rank(vectors) == pytest.approx(
        np.exp(-sum(x * np.log(x) for x in p if x > 1e-12)), rel=1e-6
    )


def test_similarities_equal_loops_over_cases(run, result):
    cases, names = run.setup.split.test, range(len(run.seeds))
    histories = histories_of(cases, DATASET.items)
    for seed in names:
        ranker = run.ranker(run.seeds[seed])

        def asked(rows, users, ranker=ranker):
            some = dataclasses.replace(histories.select(np.array(rows)), users=np.array(users))
            return ranker.top_k(some, 5).items

        for place, (a, b) in enumerate(zip(result.pairs.first[:3], result.pairs.second[:3], strict=True)):
            assert result.lists[seed, place] == pytest.approx(share(*asked([a, b], cases.users[[a, b]])))
        for row in range(3):
            own, new = asked([row, row], [cases.users[row], -1])
            assert result.as_new[seed, row] == pytest.approx(share(own, new))
            others = np.delete(cases.users, row)
            possible = [share(own, items) for items in asked([row] * len(others), others)]
            assert min(abs(result.as_other[seed, row] - x) for x in possible) < 1e-9
    assert result.own.mean(axis=1).tolist() == pytest.approx(
        [e.metrics["HR@5"] for e in run.evaluate("test")]
    )
    assert not np.array_equal(result.own, result.new)
    groups = sum(mask.sum() for _, mask in result.groups)
    assert groups == len(result.pairs.first), "every pair is in one group"
    assert len(BOUNDS) - 1 >= len(result.groups)
    json.dumps(result.to_dict(), allow_nan=False)
    header, rows = result.rows()
    assert [row[0] for row in rows] == [name for name, _ in result.groups]
    for row, (_, mask) in zip(rows, result.groups, strict=True):
        assert row[header.index("pairs")] == mask.sum()
        assert row[header.index("list similarity@5")] == pytest.approx(np.mean(result.lists[:, mask]))
    header, (row,) = result.whole_rows()
    assert len(row) == len(header)
    assert row[header.index("HR@5")] == pytest.approx(result.own.mean())
    assert row[header.index("rank, items")] == pytest.approx(result.table_rank.mean())
    assert len(personalisation_figure({"a": result}, {"a": ranks_by_step(run, seeds=1)}).axes) == 3
    shallow = dataclasses.replace(result, layers=result.layers[-1:], state_ranks=result.state_ranks[:, -1:])
    lines = personalisation_figure({"a": result, "b": shallow}).axes[1].lines
    ends = [line.get_xydata()[-1] for line in lines]
    np.testing.assert_array_equal(ends[0], ends[1], "last states have one place, whatever the depth")


def test_reflection_compares_inside_groups(result):
    """Lists that copy the futures differ by one; lists that copy the histories' group differ by nothing."""
    pairs = result.pairs
    rng = np.random.default_rng(0)
    futures = (rng.random(len(pairs.first)) < 0.5).astype(float)
    groups = np.zeros(len(pairs.first))
    for number, (_, mask) in enumerate(result.groups):
        groups[mask] = 0.1 * number
    changed = dataclasses.replace(
        result, pairs=dataclasses.replace(pairs, futures=futures), lists=np.stack([futures, groups])
    )
    np.testing.assert_allclose(changed.reflection(), [1.0, 0.0], atol=1e-12)
    none = dataclasses.replace(result, pairs=dataclasses.replace(pairs, futures=np.zeros_like(futures)))
    assert np.isnan(none.reflection()).all()
    assert none.to_dict()["lists_with_common_future"] is None


def test_states_of_layers_are_those_of_shorter_encoders(run):
    """The first layer of a pre-norm encoder is an encoder of one layer without the final norm."""
    ranker = run.ranker()
    histories = histories_of(run.setup.split.test, DATASET.items)
    names, ranks = state_ranks(ranker, histories)
    assert names == ["layer 1", "layer 2", "last states"]
    assert ranks[-1] == pytest.approx(effective_rank(np.asarray(ranker.encode(histories))), rel=1e-4)
    encoder = ranker.forward.encoder
    short = encoder.clone(config=dataclasses.replace(encoder.config, layers=1, final_norm="off"))
    params = {name: value for name, value in ranker.params.items() if name not in ("layer_1", "final_norm")}
    states = encode_histories(Forward(short), params, histories, ranker.encoding)
    every = encode_histories(LayerStates(ranker.forward), ranker.params, histories, ranker.encoding)
    np.testing.assert_allclose(every[:, :16], states, atol=1e-5)
    assert ranks[0] == pytest.approx(effective_rank(np.asarray(states)), rel=1e-4)


def test_course_ends_where_the_run_ended(run, result):
    course = ranks_by_step(run)
    assert course.names == ["layer 1", "layer 2", "last states", "items"]
    assert course.values.shape == (2, len(course.steps), 4)
    assert json.loads(json.dumps(course.to_dict()))["values"] == course.values.tolist()
    assert len(course.steps) >= 2
    assert not np.allclose(course.values[:, 0], course.values[:, -1]), "other parameters at every step"
    np.testing.assert_allclose(course.values[:, -1, :3], result.state_ranks, rtol=1e-4)
    np.testing.assert_allclose(course.values[:, -1, 3], result.table_rank, rtol=1e-4)


@pytest.mark.slow
def test_course_of_a_run_on_a_mesh(tmp_path):
    config = dataclasses.replace(replace(CONFIG, training={"seeds": (0,)}), mesh=MeshConfig(1, 2))
    jaxrec.fit(DATASET, config, tmp_path / "run", progress=False)
    run = Run(tmp_path / "run", DATASET)
    course = ranks_by_step(run)
    assert len(course.steps) >= 2
    np.testing.assert_allclose(course.values[0, -1, 3], table_rank(run.ranker()), rtol=1e-4)


@pytest.mark.slow
def test_without_vectors_and_as_a_check(tmp_path):
    config = replace(CONFIG, encoder={"user": "none"}, training={"seeds": (0,), "epochs": 1})
    jaxrec.fit(DATASET, config, tmp_path / "run", progress=False)
    results = jaxrec.evaluate(
        tmp_path / "run", "test", DATASET, checks=Checks(personal=True), out=tmp_path / "checks"
    )
    values = results["personalisation"]
    assert values["same_history_as_another_user"] is None
    assert values["NDCG@10 as new users"] is None
    assert values["effective_rank_of_states"]["last states"][0] > 1
    assert "history similarity" in results["check_tables"]
    assert (tmp_path / "checks" / "personalisation.png").exists()
    few = Run(tmp_path / "run", DATASET)
    few.setup.split.test.history_stops[:] = few.setup.split.test.history_starts
    with pytest.raises(ConfigError, match="pairs of users need two histories"):
        run_personalisation(few)


def test_users_set_apart_take_no_part_in_training():
    divided = divide(DATASET, 0.25)
    training, new = divided
    assert training.n_users == 18
    assert len(new) == 6
    kept = [DATASET.user_ids[u] for u in range(24) if DATASET.user_ids[u] in set(training.user_ids)]
    assert list(training.user_ids) == kept
    for user, name in enumerate(training.user_ids):
        np.testing.assert_array_equal(training.history(user), DATASET.history(int(name[1:])))
    apart = [u for u in range(24) if f"u{u}" not in set(training.user_ids)]
    histories = new.histories
    assert (histories.users == -1).all()
    for row, user in enumerate(apart):
        own = DATASET.history(user)
        np.testing.assert_array_equal(histories.items[histories.starts[row] : histories.stops[row]], own[:-1])
        assert new.targets[row] == own[-1]
        removed = new.exclude.items[new.exclude.offsets[row] : new.exclude.offsets[row + 1]]
        assert set(removed) == set(own[:-1])
    names = [each.name for each in variants(Options())]
    assert len(set(names)) == len(names) == 9
