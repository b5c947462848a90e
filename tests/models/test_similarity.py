"""Cosines as scores: training, ranks, lists and exports use the same ones."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec.config import RunConfig, from_dict, to_dict
from jaxrec.data import load_dataset
from jaxrec.errors import ConfigError
from jaxrec.evaluation.histories import Histories
from jaxrec.models import TransformerConfig
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.nn.layers import unit_rows
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig, LossInputs
from jaxrec.runs import Run
from jaxrec.serving import Recommender
from jaxrec.serving.composed import ComposedIndex
from jaxrec.training.setup import prepare
from tests.helpers import small_config, small_dataset
from tests.objectives import oracles

COSINE = {"encoder": {"similarity": "cosine"}, "objective": {"temperature": 0.1}}


def test_unit_rows_leave_zeros_and_pass_gradients():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]])
    np.testing.assert_allclose(unit_rows(x), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(unit_rows(x) @ jnp.asarray([1.0, 2.0])))(x)
    # Derivative of (x + 2 y) / r: (y^2 - 2 x y, 2 x^2 - x y) / r^3.
    np.testing.assert_allclose(gradient[0], [(16 - 24) / 125, (18 - 12) / 125], rtol=1e-5)
    assert not gradient[1].any()


def test_the_loss_is_that_of_tempered_cosines():
    encoder = TransformerConfig(width=4, layers=1, similarity="cosine", item_bias=True).build(DataSpec(9, 4))
    rng = np.random.default_rng(0)
    table, bias, hidden = (rng.normal(size=shape).astype(np.float32) for shape in ((10, 4), (10,), (6, 4)))
    items = encoder.item_table({"items": {"table": table}, "item_bias": bias})
    targets = np.array([1, 4, 9, 2, 2, 7], np.int32)
    inputs = LossInputs(unit_rows(jnp.asarray(hidden)), items, jnp.asarray(targets), jnp.ones(6))
    got = CrossEntropyConfig(temperature=0.2).build()(inputs)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    rows = oracles.scores(unit(np.float64(hidden)), unit(np.float64(table)), np.float64(bias), 0.2)
    assert float(got.total) == pytest.approx(oracles.cross_entropy(rows, targets).sum(), rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directory of a run that learned by cosines; items of many lengths, so that products order them otherwise."""
    folder = tmp_path_factory.mktemp("cosine")
    small_dataset().save(folder / "data")
    config = small_config(**COSINE, training={"epochs": 3}, optimizer={"learning_rate": 0.02})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder / "data")))
    with jax.numpy_dtype_promotion("standard"):
        jaxrec.fit(load_dataset(config.data), config, folder / "run", progress=False)
    return folder / "run"


def test_ranks_and_lists_are_those_of_cosines(trained):
    """By hand, from the raw item vectors and the states."""
    recommender = Recommender.load(trained)
    run, dataset = Run(trained), recommender.run.dataset
    raw = np.asarray(recommender.params["items"]["table"], np.float64)
    lengths = np.linalg.norm(raw, axis=1)
    assert lengths[1:].max() > 1.2 * lengths[1:].min(), "products and cosines differ"
    units = raw / np.maximum(lengths, 1e-12)[:, None]
    evaluation, _ = run.ranks("test")[0]
    ends = np.asarray(dataset.offsets)[1:][evaluation.users]
    starts = np.asarray(dataset.offsets)[:-1][evaluation.users]
    log = np.asarray(dataset.items)
    states = np.asarray(run.ranker().encode(Histories(log, starts, ends - 1)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(states, axis=1), 1, atol=1e-5)
    differs = 0
    for state, rank, start, end in zip(states, evaluation.ranks, starts, ends, strict=True):
        seen, target = log[start : end - 1], log[end - 1]
        scores = units @ state
        candidates = np.setdiff1d(np.arange(1, len(raw)), seen)
        want = (scores[candidates] > scores[target]).sum() + 1
        differs += want != ((raw @ state)[candidates] > (raw @ state)[target]).sum() + 1
        if target not in seen:
            assert rank == want
        history = [dataset.item_ids[item - 1] for item in seen]
        answer = recommender.recommend([history], k=5)[0]
        best = candidates[np.argsort(-scores[candidates], kind="stable")[:5]]
        assert list(answer.items) == [dataset.item_ids[item - 1] for item in best]
        np.testing.assert_allclose(answer.scores, scores[best], atol=1e-5)
    assert differs > len(states) / 10


def test_a_temperature_of_one_is_advised_against():
    with pytest.warns(UserWarning, match=r"--objective\.temperature 1 makes nearly equal .* such as 0\.05"):
        prepare(small_config(encoder={"similarity": "cosine"}), small_dataset())


def test_what_cannot_score_cosines_says_so():
    codes = {"similarity": "cosine", "item_codes": ItemCodesConfig("hashed", 2, 4)}
    with pytest.raises(ConfigError, match=r"expected a run with --encoder\.similarity dot, got 'cosine'"):
        ComposedIndex(SimpleNamespace(config=small_config(encoder=codes)))


def test_configurations_of_earlier_versions():
    """An objective had ``cosine``: false is today's only way; true ranked otherwise than it trained."""
    values = to_dict(RunConfig())
    values["objective"]["cosine"] = False
    assert from_dict(values) == RunConfig()
    values["objective"]["cosine"] = True
    with pytest.raises(ConfigError, match=r"train again with --encoder\.similarity cosine"):
        from_dict(values)
