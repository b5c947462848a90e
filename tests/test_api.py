"""The calls that a script makes, and every registered part through them."""

import json

import numpy as np
import pytest

import jaxrec
from jaxrec.attention import ATTENTION
from jaxrec.config import load_config
from jaxrec.data.readers.config import IN_MEMORY
from jaxrec.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from jaxrec.models import ENCODERS
from jaxrec.objectives import OBJECTIVES
from tests.helpers import replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
#: One chunk of steps: what is asked is whether the parts fit together. Shapes are those of other tests' runs.
ONE_CHUNK = small_config(training={"epochs": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jaxrec.fit(DATASET, ONE_CHUNK, tmp_path_factory.mktemp("api") / "run", progress=False)


def assert_trained(run):
    assert run.results["training"]["steps"] > 0
    assert all(0.0 <= value <= 1.0 for value in run.metrics.values())
    assert len(run.fit.test[0].ranks) == DATASET.n_users
    json.dumps(run.results, allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_every_attention_mechanism_trains(name):

    assert_trained(
        jaxrec.fit(DATASET, ONE_CHUNK.updated({"encoder.attention": ATTENTION[name]()}), progress=False)
    )


def with_encoder(config, name):
    """``config`` with a small encoder, and the attention that STOSA needs."""

    return config.updated({"encoder": ENCODERS[name](width=8, layers=1)})


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name):
    import dataclasses

    objective = OBJECTIVES[name]()
    config = dataclasses.replace(ONE_CHUNK, objective=objective)
    if name == "bpr-pvn":
        config = with_encoder(config, "stosa")
    assert_trained(jaxrec.fit(DATASET, config, progress=False))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_trains(name):
    assert_trained(jaxrec.fit(DATASET, with_encoder(ONE_CHUNK, name), progress=False))


def test_run_directory_and_memory_agree(run):
    in_memory = jaxrec.fit(DATASET, ONE_CHUNK, progress=False)
    assert in_memory.workdir is None
    assert in_memory.metrics == run.metrics
    assert json.loads((run.workdir / "results.json").read_text()) == run.results
    assert load_config(run.workdir / "config.json") == replace(
        ONE_CHUNK, data={"source": IN_MEMORY, "name": "walks"}
    )


def test_evaluate_reproduces_the_results(run):
    again = jaxrec.evaluate(run.workdir, "test", DATASET)
    for key in ("metrics", "baselines", "dataset", "split", "protocol", "counts", "seeds", "config"):
        assert again[key] == run.results[key], key
    valid = jaxrec.evaluate(run.workdir, "valid", DATASET, ks=(1, *ONE_CHUNK.evaluation.ks))
    expected = run.results["valid_metrics"]
    assert {name: valid["metrics"][name] for name in expected} == expected
    for metrics in (valid["metrics"], *valid["baselines"].values()):
        assert metrics["HR@1"] == metrics["NDCG@1"]


def test_refusals(run, tmp_path):
    with pytest.raises(CheckpointError, match="trained on a dataset with fingerprint"):
        jaxrec.evaluate(run.workdir, "test", small_dataset(seed=9))
    with pytest.raises(ConfigError, match=r"ks must be cutoffs from 1 to the catalogue's 40 items, got 41"):
        jaxrec.evaluate(run.workdir, "test", DATASET, ks=(41,))
    with pytest.raises(ConfigError, match=r"config\.json not found"):
        jaxrec.evaluate(tmp_path)
    with pytest.raises(UnknownNameError, match=r"unknown preset 'sasrek'.*Did you mean 'sasrec'"):
        jaxrec.fit(DATASET, "sasrek")
    longer = replace(ONE_CHUNK, evaluation={"ks": (10, 41)})
    before = sorted(run.workdir.rglob("*"))
    with pytest.raises(DataError, match=r"lists of 41, but the catalogue has 40 items"):
        jaxrec.fit(DATASET, longer, run.workdir, overwrite=True, progress=False)
    assert sorted(run.workdir.rglob("*")) == before, "a refused call deletes nothing"


def test_public_names():
    assert set(jaxrec.__all__) <= set(dir(jaxrec))
    for name in jaxrec.__all__:
        assert getattr(jaxrec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxrec.nothing  # noqa: B018


def test_metrics_are_means_over_seeds():
    done = jaxrec.fit(DATASET, replace(ONE_CHUNK, training={"seeds": (0, 1)}), progress=False)
    values = done.results["metrics"]["HR@10"]["values"]
    assert done.metrics["HR@10"] == pytest.approx(np.mean(values))
    assert len(done.fit.test) == 2


def test_a_run_on_own_data_opens_again(tmp_path):
    """The run records the file and its options, not the bundled data."""
    from tests.cli.shared import interactions

    interactions().rename({"user_id": "who"}).write_csv(tmp_path / "own.csv", separator=";")
    data = jaxrec.load_dataset(tmp_path / "own.csv", separator=";", user_column="who")
    run = jaxrec.fit(data, ONE_CHUNK, tmp_path / "run", progress=False)
    assert run.results["config"]["data"]["source"] == str(tmp_path / "own.csv")
    assert jaxrec.evaluate(tmp_path / "run")["metrics"] == run.results["metrics"]
