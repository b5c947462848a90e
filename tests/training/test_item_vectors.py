"""Vectors of items: what an encoder makes of them, cold items, and runs that start from a grown catalogue."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxrec
from jaxrec.analysis.checks import Checks
from jaxrec.data import load_dataset
from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.readers.vectors import attribute_vectors, unit_rows
from jaxrec.errors import CheckpointError, ConfigError, DataError
from jaxrec.models import DataSpec, GRU4RecConfig, SRGNNConfig, STOSAConfig, TransformerConfig
from jaxrec.nn.embedding import ItemEmbedding, content_vectors
from jaxrec.runs import Run
from jaxrec.training import initialize
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_params
from jaxrec.training.trees import flatten
from tests.helpers import replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

COLD = "i39"


def with_vectors(dataset, width=6, seed=1):
    vectors = np.random.default_rng(seed).normal(size=(dataset.n_items, width)).astype(np.float32)
    return dataclasses.replace(dataset, item_vectors=vectors)


def without_item(dataset, name):
    """The log without one item, which stays in the catalogue; its vector is that of its neighbour."""
    keep = dataset.items != dataset.item_index(name)
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths)[keep]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=dataset.n_users))]).astype(np.int64)
    return dataclasses.replace(
        dataset, items=dataset.items[keep], timestamps=dataset.timestamps[keep], offsets=offsets
    )


DATASET = with_vectors(without_item(small_dataset(), COLD))
CONFIG = small_config(training={"epochs": 3}, optimizer={"learning_rate": 0.01})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vectors") / "run"
    jaxrec.fit(DATASET, CONFIG, workdir, progress=False)
    return Run(workdir, DATASET)


def oracle(items, bound):
    """Vectors of all items, one after the other."""
    out = np.zeros((len(items["content"]), items["content_kernel"].shape[1]), np.float64)
    for row in range(len(out)):
        change = np.asarray(items["table"][row], np.float64)
        length = np.sqrt((change**2).sum())
        if length > bound:
            change = change * bound / length
        out[row] = np.asarray(items["content"][row], np.float64) @ np.asarray(items["content_kernel"])
        out[row] += change if items["known"][row] else 0.0
    return out


def test_candidates_are_content_plus_a_bounded_change(run):
    items = run.params()["items"]
    table = run.encoder.item_table(run.params()).vectors
    np.testing.assert_allclose(table, oracle(items, 0.5), atol=1e-5)
    unit = DATASET.item_vectors / np.linalg.norm(DATASET.item_vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(items["content"][1:], unit, atol=1e-6)
    known = np.asarray(run.setup.split.item_counts) > 0
    np.testing.assert_array_equal(items["known"], known)
    assert not known[DATASET.item_index(COLD)]
    change = np.linalg.norm(table - items["content"] @ items["content_kernel"], axis=1)
    assert change[known].max() <= 0.5 + 1e-5
    assert change[known].max() > 0.05, "trained"
    assert not change[~known].any()


@pytest.mark.parametrize("config", [TransformerConfig, GRU4RecConfig, SRGNNConfig])
@pytest.mark.parametrize("bound", [0.0, 0.3])
def test_inputs_and_candidates_share_the_vectors(config, bound):
    encoder = config(width=8, item_delta=bound).build(DataSpec(40, 16, vector_width=6))
    assert encoder.config.reads_item_vectors
    task = CONFIG.task.build(encoder, CONFIG.objective)
    shapes = jax.eval_shape(lambda: initial_params(task, jnp.uint32(0)))
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), jnp.float32), shapes)
    assert sum(x.size for x in jax.tree.leaves(params)) == encoder.parameter_count()
    assert ("table" in params["items"]) == (bound > 0)
    vectors = np.asarray(encoder.item_table(params).vectors)
    if bound:
        params["items"]["known"] = jnp.ones_like(params["items"]["known"])
        items = params["items"]
        vectors = np.asarray(encoder.item_table(params).vectors)
        np.testing.assert_allclose(vectors, oracle(items, bound), atol=1e-4)

    ids = jnp.array([[0, 1, 7, 40]])
    expected = vectors[np.asarray(ids)]
    expected[:, 0] = 0.0
    embedding = ItemEmbedding(encoder.spec, 8, jax.nn.initializers.zeros, None, bound)
    np.testing.assert_allclose(embedding.apply({"params": params["items"]}, ids), expected, atol=1e-5)


def test_a_long_change_is_shortened_and_has_a_finite_gradient():
    items = {
        "content": jnp.zeros((3, 2)),
        "known": jnp.array([1.0, 1.0, 0.0]),
        "content_kernel": jnp.ones((2, 2)),
        "table": jnp.array([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]]),
    }
    np.testing.assert_allclose(content_vectors(items, 1.0), [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-6)
    gradient = jax.grad(lambda table: content_vectors({**items, "table": table}, 1.0).sum())(items["table"])
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[1], [1.0, 1.0])
    assert not gradient[2].any()


@pytest.mark.slow
def test_the_dataset_s_arrays_have_no_moments_and_do_not_decay():
    config = replace(CONFIG, optimizer={"weight_decay": 0.5, "decay_on": "all"}, training={"epochs": 1})
    fitted = jaxrec.fit(DATASET, config, progress=False)
    content = flatten(fitted.fit.params)["items/content"]
    np.testing.assert_allclose(content[0, 1:], unit_rows(DATASET.item_vectors), atol=1e-7)
    setup = prepare(config, DATASET)
    moments = flatten(jax.eval_shape(setup.optimizer.init, jax.tree.map(lambda x: x[0], fitted.fit.params)))
    assert not [name for name in moments if "content" in name and "kernel" not in name]
    assert [name for name in moments if name.endswith("items/table")]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "item"), [(2, 1), (2, 2)])
def test_a_mesh_trains_and_ranks_the_same(run, data, item):
    config = replace(CONFIG, mesh={"data": data, "item": item})
    fitted = jaxrec.fit(DATASET, config, progress=False)
    ours, theirs = (flatten(jax.tree.map(np.asarray, tree)) for tree in (fitted.fit.params, run.params()))
    for name, one in theirs.items():
        if not name.endswith("projections/bias"):  # a bias of all keys has a gradient of rounding alone
            np.testing.assert_allclose(ours[name][0][: len(one)], one, atol=2e-4, err_msg=name)
    assert fitted.metrics == pytest.approx(
        {m: s["mean"] for m, s in run.results["metrics"].items()}, abs=0.05
    )


@pytest.mark.slow
def test_a_cold_item_follows_its_vector(run, tmp_path):
    """The item that training never saw has the vector of another: the two are ranked beside each other."""
    twin = DATASET.item_index("i7")
    vectors = DATASET.item_vectors.copy()
    vectors[DATASET.item_index(COLD) - 1] = vectors[twin - 1]
    dataset = dataclasses.replace(DATASET, item_vectors=vectors)
    jaxrec.fit(dataset, CONFIG, tmp_path / "run", progress=False)
    recommender = jaxrec.Recommender.load(tmp_path / "run")
    answer = recommender.recommend([["i4", "i5", "i6"]], k=recommender.items.n_items, remove_seen=False)[0]
    places = {name: place for place, name in enumerate(answer.items)}
    table = np.asarray(recommender.ranker.forward.encoder.item_table(recommender.params).vectors)
    cold, known = table[DATASET.item_index(COLD)], table[twin]
    assert np.linalg.norm(cold - known) <= 0.5 + 1e-5
    assert places[COLD] < len(answer.items)
    assert len(answer.items) == DATASET.n_items


def test_cold_and_warm_targets_are_reported_apart(run):
    results = jaxrec.evaluate(run.path, "test", DATASET, checks=Checks(breakdown=True))
    text = str(results["breakdown"])
    assert "cold (never in training)" in text
    assert "20 or more" in text


# ---- files


LOG = {"user_id": ["a", "a", "b", "b"], "item_id": ["x", "y", "y", "z"], "timestamp": [1, 2, 3, 4]}


def write_parquet(path, ids, lists, column="embedding"):
    pl.DataFrame({"item_id": ids, column: lists}).write_parquet(path)
    return str(path)


def test_vectors_are_found_by_id(tmp_path):
    lists = [[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [9.0, 9.0]]
    parquet = write_parquet(tmp_path / "v.parquet", ["z", "y", "x", "unknown"], lists)
    expected = [[3, 3], [0, 2], [1, 0]]
    dataset = load_dataset(LOG, item_vectors=parquet)
    np.testing.assert_array_equal(dataset.item_vectors, expected)
    np.save(tmp_path / "v.npy", np.array(lists, np.float64))
    (tmp_path / "ids.txt").write_text("z\ny\nx\nunknown\n")
    same = load_dataset(LOG, item_vectors=str(tmp_path / "v.npy"), vector_ids=str(tmp_path / "ids.txt"))
    np.testing.assert_array_equal(same.item_vectors, expected)
    dataset.save(tmp_path / "saved")
    opened = load_dataset(str(tmp_path / "saved"))
    np.testing.assert_array_equal(opened.item_vectors, expected)
    assert opened.fingerprint == dataset.fingerprint
    kept = load_dataset(str(tmp_path / "saved"), filter="k-core", min_interactions=1)
    np.testing.assert_array_equal(kept.item_vectors, expected)


def test_attributes_make_vectors():
    dataset = load_dataset(
        LOG, item_attributes={"x": ["a", "b"], "y": ["b"], "z": ["c"]}, item_vectors="attributes"
    )
    np.testing.assert_array_equal(dataset.item_vectors, [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(DataError, match="needs attributes of the items"):
        load_dataset(LOG, item_vectors="attributes")


@pytest.mark.parametrize(
    ("ids", "lists", "options", "message"),
    [
        (["x", "y"], [[1.0], [2.0]], {}, r"1 of 3 items have no vector .* first 'z'.*--data.missing-vectors"),
        (["x", "y", "z"], [[1.0], [2.0, 1.0], [1.0]], {}, r"1 numbers for item 'x' and 2 for item 'y'"),
        (["x", "y", "z"], [[1.0], [float("nan")], [1.0]], {}, r"NaN or infinity for item 'y'"),
        (["x", "y", "y"], [[1.0], [1.0], [1.0]], {}, r"1 repeated ids"),
        (["x", "y", "z"], [["a"], ["b"], ["c"]], {}, r"must hold numbers"),
        (["x", "y", "z"], [[], [], []], {}, r"width 0"),
        (["x", "y", "z"], [[1.0]] * 3, {"vector_column": "text"}, r"named by --data.vector-column 'text'"),
    ],
)
def test_unusable_vectors_are_named(tmp_path, ids, lists, options, message):
    path = write_parquet(tmp_path / "v.parquet", ids, lists)
    with pytest.raises(DataError, match=message):
        load_dataset(LOG, item_vectors=path, **options)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_dataset(LOG, item_vectors=str(tmp_path / "absent.npy"))
    np.save(tmp_path / "v.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match=r"needs --data\.vector-ids"):
        load_dataset(LOG, item_vectors=str(tmp_path / "v.npy"))
    (tmp_path / "ids.txt").write_text("x\n")
    with pytest.raises(DataError, match=r"each of the 2 rows .* got 1 ids"):
        load_dataset(LOG, item_vectors=str(tmp_path / "v.npy"), vector_ids=str(tmp_path / "ids.txt"))
    with pytest.raises(DataError, match=r"--data.vector-column needs --data.item-vectors"):
        load_dataset(LOG, vector_column="embedding")
    with pytest.raises(ConfigError, match="needs an encoder that reads them"):
        prepare(dataclasses.replace(CONFIG, encoder=STOSAConfig(width=8)), DATASET)
    with pytest.raises(ConfigError, match="needs an encoder that reads them"):
        prepare(replace(CONFIG, encoder={"separate_output": True}), DATASET)
    path = write_parquet(tmp_path / "v.parquet", ["x"], [[1.0, 2.0]])
    zeros = load_dataset(LOG, item_vectors=path, missing_vectors="zero")
    np.testing.assert_array_equal(zeros.item_vectors, [[1, 2], [0, 0], [0, 0]])


# ---- a grown catalogue


@pytest.mark.slow
def test_items_are_matched_by_id(run):
    """Another log with items in another order, some of them new: each known item starts from its own vector."""
    other = small_dataset(n_items=45, seed=3)
    order = np.random.default_rng(0).permutation(45)
    other = with_vectors(dataclasses.replace(other, item_ids=[f"i{i}" for i in order]))
    config = replace(
        CONFIG,
        training={"init_from": str(run.path), "init_items": "match", "epochs": 1},
        optimizer={"learning_rate": 1e-30},
    )
    started = jaxrec.fit(other, config, progress=False)
    before, after = run.params()["items"]["table"], started.fit.seed_params(0)["items"]["table"]
    for row, name in enumerate(other.item_ids, start=1):
        number = DATASET.item_index(name)
        expected = 0.0 if number is None else before[number]
        np.testing.assert_allclose(after[row], np.broadcast_to(expected, after[row].shape), atol=1e-25)
    vectors = started.fit.seed_params(0)["items"]["content"]
    np.testing.assert_allclose(vectors[1:], unit_rows(other.item_vectors), atol=1e-7)


def test_data_without_a_common_item_is_refused(run):
    other = with_vectors(dataclasses.replace(small_dataset(), item_ids=[f"other{i}" for i in range(40)]))
    config = replace(CONFIG, training={"init_from": str(run.path), "init_items": "match"})
    with pytest.raises(CheckpointError, match="found no item"):
        jaxrec.fit(other, config, progress=False)


def made_of_genres(order, extra=()):
    """Items made of attributes, which are numbered as they appear: in the order of the items."""
    genres = [["odd" if i % 2 else "even", *(["third"] if i % 3 == 0 else []), *extra] for i in order]
    attributes = AttributeTable.from_lists(genres)
    return dataclasses.replace(
        small_dataset(n_items=len(order)),
        item_ids=[f"i{i}" for i in order],
        attributes=attributes,
        item_vectors=attribute_vectors(attributes),
    )


def test_attributes_are_matched_by_name():
    there, here = made_of_genres(range(40)), made_of_genres(range(39, -1, -1), extra=["new"])
    assert list(there.attributes.names) == ["even", "third", "odd"]
    content = jnp.asarray(np.pad(unit_rows(there.item_vectors), ((1, 0), (0, 0))))[None]
    rows = initialize._matching_attributes(there, {"items/content": content}, SimpleNamespace(dataset=here))
    assert list(here.attributes.names) == ["odd", "third", "new", "even"]
    assert rows.tolist() == [2, 1, -1, 0]
    other = SimpleNamespace(dataset=with_vectors(here))
    assert initialize._matching_attributes(there, {"items/content": content}, other) is None


@pytest.mark.slow
def test_a_run_of_attributes_starts_another_log_whatever_their_order(tmp_path):
    """Rows of the map went to other attributes, silently, and a new attribute was another encoder."""
    there, here = made_of_genres(range(40)), made_of_genres(range(39, -1, -1), extra=["new"])
    before = jaxrec.fit(there, CONFIG, tmp_path / "run", progress=False)
    config = replace(
        CONFIG,
        training={"init_from": str(tmp_path / "run"), "init_items": "match", "epochs": 1},
        optimizer={"learning_rate": 1e-30},
    )
    after = jaxrec.fit(here, config, progress=False).fit.seed_params(0)["items"]["content_kernel"]
    kernel = before.fit.seed_params(0)["items"]["content_kernel"]
    np.testing.assert_allclose(after[np.array([0, 1, 3])], kernel[np.array([2, 1, 0])], atol=1e-25)
