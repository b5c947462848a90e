"""Items composed of codes: quantisation against loops, and runs that train, resume, reopen and answer with them."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec.data.quantisation import cooccurrence_factors, item_codes, k_means, nearest_centres
from jaxrec.data.splits import SplitConfig, split_dataset
from jaxrec.errors import CheckpointError, ConfigError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.seen import SeenItems
from jaxrec.extend import extend_run
from jaxrec.models import STOSAConfig
from jaxrec.nn.item_codes import ItemCodesConfig, composed_vectors
from jaxrec.runs import Run
from jaxrec.serving.composed import ComposedIndex
from jaxrec.serving.export import export_run
from jaxrec.serving.runtime import Artefact
from jaxrec.sharding import MeshConfig
from jaxrec.training.item_codes import trained_vectors, with_codes
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from jaxrec.training.trees import flatten
from tests.helpers import StopAfter, assert_same_run, replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
V = DATASET.n_items


def composed_config(method, count=4, size=6, run="", **sections):
    sections = {"training": {"epochs": 3}, "optimizer": {"learning_rate": 0.01}, **sections}
    factors = {} if method == "hashed" else {"factors": 8}
    codes = ItemCodesConfig(method, count, size, run=run, **factors)
    return replace(small_config(**sections), encoder={"item_codes": codes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("codes") / "run"
    jaxrec.fit(
        DATASET, composed_config("product", training={"epochs": 3, "seeds": (0, 1)}), workdir, progress=False
    )
    return Run(workdir, DATASET)


# ---- vectors of codes


@pytest.mark.parametrize("side_by_side", [False, True])
def test_vectors_and_gradients_equal_loops(side_by_side):
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 6, (7, 3)).astype(np.float32)
    codes[0] = 0
    tables, weights = rng.normal(size=(3, 5, 2)), rng.normal(size=(7, 6 if side_by_side else 2))
    expected, gradient = np.zeros(weights.shape), np.zeros(tables.shape)
    for item, column in itertools.product(range(1, 7), range(3)):
        place = slice(2 * column, 2 * column + 2) if side_by_side else slice(0, 2)
        row = int(codes[item, column]) - 1
        expected[item, place] += tables[column, row]
        gradient[column, row] += weights[item, place]

    def total(tables, codes):
        vectors = composed_vectors(codes, tables, side_by_side)
        return (vectors * weights.astype(np.float32)).sum(), vectors

    arguments = jnp.asarray(tables, jnp.float32), jnp.asarray(codes)
    (pulled, of_codes), vectors = jax.jit(jax.grad(total, (0, 1), has_aux=True))(*arguments)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(pulled, gradient, atol=1e-5)
    assert not of_codes.any()
    unknown = composed_vectors(jnp.full((1, 3), jnp.nan), arguments[0], side_by_side)
    assert np.isnan(unknown).all(), "an item outside the catalogue is no item"


# ---- quantisation


def test_nearest_centres_and_means_equal_loops():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(60, 3)).astype(np.float32)
    centres, nearest = k_means(points, 5, rng)
    distances = np.array([[((p - c) ** 2).sum() for c in centres] for p in points.astype(np.float64)])
    np.testing.assert_array_equal(nearest, distances.argmin(axis=1))
    np.testing.assert_allclose(nearest_centres(points, centres)[1], distances.min(axis=1), atol=1e-5)
    for number in range(5):  # converged: every centre is the mean of its points
        np.testing.assert_allclose(centres[number], points[nearest == number].mean(axis=0), atol=1e-5)


def test_as_many_centres_as_points_are_the_points():
    points = np.repeat(np.arange(4.0), 3)[:, None].astype(np.float32)
    centres, nearest = k_means(points, 4, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(centres[:, 0]), np.arange(4.0))
    np.testing.assert_array_equal(centres[nearest], points)


def test_residual_codes_leave_ever_less():
    vectors = np.random.default_rng(2).normal(size=(80, 5)).astype(np.float32)
    codes = item_codes(vectors, "residual", 3, 8, seed=4)
    assert codes.shape == (81, 3)
    assert not codes[0].any()
    assert codes[1:].min() == 1
    assert codes[1:].max() == 8
    left, sizes = vectors.astype(np.float64), [np.square(vectors).sum()]
    for column in range(3):  # what the mean of an item's companions leaves
        for code in range(1, 9):
            members = codes[1:, column] == code
            left[members] -= left[members].mean(axis=0) if members.any() else 0.0
        sizes.append(np.square(left).sum())
    assert all(b < 0.8 * a for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize("method", ["product", "residual"])
def test_codes_follow_from_vectors_and_seed(method):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(4, 3)).astype(np.float32)
    vectors = centres[np.arange(40) % 4]
    first, again, other = (item_codes(vectors, method, 5, 4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    for row in range(1, 41):  # equal vectors have equal codes, different ones differ in some code
        same = (first[1:] == first[row]).all(axis=1)
        np.testing.assert_array_equal(same, np.arange(40) % 4 == (row - 1) % 4)


def test_factors_reproduce_cooccurrence_of_training_alone():
    split = split_dataset(DATASET, SplitConfig())
    has = np.zeros((DATASET.n_users, V))
    for user in range(DATASET.n_users):
        for place in range(split.train_starts[user], split.train_stops[user]):
            has[user, DATASET.items[place] - 1] = 1
    together = has.T @ has
    norms = np.sqrt(np.maximum(np.diag(together), 1))
    factors = cooccurrence_factors(split, V)
    assert factors.shape == (V, V - 1)
    np.testing.assert_allclose(factors @ factors.T, together / norms[:, None] / norms, atol=0.05)
    poisoned = DATASET.items.copy()
    poisoned[~split.training_mask] = 1
    other = split_dataset(dataclasses.replace(DATASET, items=poisoned), SplitConfig())
    np.testing.assert_array_equal(cooccurrence_factors(other, 8), cooccurrence_factors(split, 8))


def test_an_item_without_training_interactions_has_zero_factors():
    few = small_dataset(n_users=4, n_items=200)
    split = split_dataset(few, SplitConfig())
    unseen = split.item_counts[1:] == 0
    factors = cooccurrence_factors(split, 64)
    assert factors.shape == (200, 3)
    assert not factors[unseen].any()
    np.testing.assert_allclose(np.linalg.norm(factors[~unseen], axis=1), 1.0, atol=1e-5)


# ---- runs


def test_each_seed_has_its_codes_and_they_are_the_saved_ones(run):
    setup = prepare(run.config, DATASET)
    factors = cooccurrence_factors(setup.split, 8)
    for seed in (0, 1):
        params = run.params(seed)["items"]
        np.testing.assert_array_equal(params["codes"], item_codes(factors, "product", 4, 6, seed))
        assert params["code_table"].shape == (4, 6, 4)
    assert (run.params(0)["items"]["codes"] != run.params(1)["items"]["codes"]).any()
    sizes = sum(x.size for x in jax.tree.leaves(run.params(0)))
    assert sizes == run.encoder.parameter_count() == run.results["training"]["parameters"]


def test_optimiser_keeps_nothing_for_codes_and_decay_leaves_them(run):
    config = replace(run.config, optimizer={"weight_decay": 0.5, "decay_on": "all"}, training={"epochs": 1})
    setup = prepare(config, DATASET)
    params = jax.eval_shape(lambda: run.params(0))
    moments = flatten(jax.eval_shape(setup.optimizer.init, params))
    assert not [name for name in moments if name.endswith("/codes")]
    assert [name for name in moments if name.endswith("items/code_table")]


def test_a_reopened_run_answers_as_the_trained_one(run):
    saved, _ = run.ranks("test")[0]
    np.testing.assert_array_equal(saved.ranks, run.evaluate("test")[0].ranks)
    recommender = jaxrec.Recommender.load(run.path)  # without the log
    answer = recommender.recommend([["i4", "i5", "i6"]], k=3)[0]
    items = run.params(0)["items"]
    table = np.asarray(run.encoder.item_table(run.params(0)).vectors)
    for item in (1, 17, V):
        rows = [items["code_table"][c][int(items["codes"][item][c]) - 1] for c in range(4)]
        np.testing.assert_array_equal(table[item], np.concatenate(rows))
    assert not table[0].any()
    assert len(set(answer.items)) == 3


@pytest.mark.parametrize("method", ["sum", "prune"])
def test_an_index_of_codes_gives_the_lists_of_the_ranker(run, method):
    recommender = jaxrec.Recommender(run)
    log = np.array([3, 4, 5, 9, 11, 30], np.int32)
    histories = Histories(log, np.array([0, 3, 5]), np.array([3, 5, 6]))
    removed = SeenItems(np.array([0, 3, 5, 5]), log[:5])
    expected = recommender.lists.top_k(histories, 8, removed)
    found = ComposedIndex(recommender, method).top_k(histories, 8, removed)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert (found.items == expected.items).mean() > 0.8, "near ties may swap places"


@pytest.mark.slow
def test_an_exported_run_answers_the_same(run, tmp_path):
    pytest.importorskip("flatbuffers", reason="jaxrec export writes with it")
    recommender = jaxrec.Recommender(run)
    export_run(recommender, tmp_path / "artefact", ["cpu"])
    answer = Artefact(tmp_path / "artefact").recommend([["i4", "i5", "i6"]], k=5)[0]
    assert answer["items"] == recommender.recommend([["i4", "i5", "i6"]], k=5)[0].items


def test_codes_of_a_trained_run_s_vectors(run):
    config = composed_config("residual", run=str(run.path), training={"epochs": 1})
    setup = prepare(config, DATASET)
    vectors = trained_vectors(run.path, setup, 1)
    np.testing.assert_array_equal(vectors, run.encoder.item_table(run.params(1)).vectors[1:])
    like = {"items": {"codes": jnp.zeros((1, V + 1, 4)), "code_table": jnp.zeros((1, 4, 6, 16))}}
    codes = with_codes(like, setup)["items"]["codes"]
    of_seed = item_codes(trained_vectors(run.path, setup, 0), "residual", 4, 6, 0)
    np.testing.assert_array_equal(codes[0], of_seed)
    other = replace(config, split={"strategy": "leave-last-n", "n": 2})
    with pytest.raises(ConfigError, match=r"--encoder.item-codes.run .* another split"):
        with_codes(like, prepare(other, DATASET))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hashed", "residual"])
def test_resumed_run_is_the_uninterrupted_one(method, tmp_path, monkeypatch):
    config = composed_config(method)
    whole = train(config, DATASET, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("jaxrec.training.loop.StopRequest", StopAfter(1))
        with pytest.raises(jaxrec.errors.Interrupted):
            train(config, DATASET, tmp_path / "cut", progress=False)
    assert_same_run(whole, train(config, DATASET, tmp_path / "cut", progress=False, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hashed", "product"])
def test_a_mesh_trains_the_same_model(method):
    config = composed_config(method)
    one = train(config, DATASET, progress=False)
    split = train(dataclasses.replace(config, mesh=MeshConfig(2, 2)), DATASET, progress=False)
    for name in ("codes", "code_table"):
        a, b = one.params["items"][name], split.params["items"][name]
        np.testing.assert_allclose(a, np.asarray(b)[:, : a.shape[1]], atol=2e-5, err_msg=name)
    assert (one.test[0].ranks != split.test[0].ranks).mean() <= 0.02


@pytest.mark.slow
def test_a_run_that_starts_from_another_has_its_codes(run):
    config = replace(run.config, training={"init_from": str(run.path), "epochs": 1, "seeds": (0,)})
    started = jaxrec.fit(DATASET, replace(config, optimizer={"learning_rate": 1e-30}), progress=False)
    for name, value in run.params(0)["items"].items():
        np.testing.assert_array_equal(started.fit.seed_params(0)["items"][name], value)
    other = replace(config, encoder={"item_codes": ItemCodesConfig("residual", 4, 6)})
    with pytest.raises(CheckpointError, match="composes its items by another rule"):
        jaxrec.fit(DATASET, other, progress=False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"encoder": {"separate_output": True}},
            "needs an encoder that composes its items.* got transformer with --encoder.separate-output",
        ),
        (
            {"encoder": {"width": 6, "attention.heads": 1}},
            r"--encoder.item-codes.count must divide --encoder.width 6",
        ),
        (
            {"training": {"init_from": "x", "init_items": "match"}},
            "cannot match items that are composed of codes",
        ),
        ({"encoder": {"item_codes.size": 41}}, r"--encoder.item-codes.size must be at most .* got 41 for 40"),
    ],
)
def test_what_cannot_work_is_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        prepare(replace(composed_config("product"), **sections), DATASET)


def test_other_mistakes_are_named(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--encoder.item-codes.run needs"):
        ItemCodesConfig("hashed", run="runs/a")
    with pytest.raises(ConfigError, match=r"--encoder.item-codes.method must be one of"):
        ItemCodesConfig("haszed")
    stosa = dataclasses.replace(
        composed_config("hashed"), encoder=STOSAConfig(width=8, item_codes=ItemCodesConfig("hashed"))
    )
    with pytest.raises(ConfigError, match="needs an encoder that composes its items"):
        prepare(stosa, DATASET)
    vectors = dataclasses.replace(DATASET, item_vectors=np.ones((V, 3), np.float32))
    with pytest.raises(ConfigError, match="exclude each other"):
        prepare(composed_config("hashed"), vectors)
    with pytest.raises(ConfigError, match="composes its items of codes"):
        extend_run(run, [{"item_id": "new"}], tmp_path / "grown")
