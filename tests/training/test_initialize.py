"""Runs that start from the parameters of a finished one."""

import dataclasses
import shutil

import chex
import jax
import numpy as np
import pytest

import jaxrec
from jaxrec.config import save_config
from jaxrec.errors import CheckpointError, ConfigError, Interrupted, RunExistsError
from jaxrec.presets import named_config
from jaxrec.tasks import ConsistencyConfig
from jaxrec.training import loop
from jaxrec.training.initialize import initialize_from
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_params
from tests.helpers import StopAfter, assert_same_run, replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
#: Of the source.
CONFIG = small_config(training={"epochs": 2, "seeds": (3, 1)})


@pytest.fixture(scope="module")
def source(two_seeds):
    return two_seeds


def started_from(source, **sections):
    sections["training"] = {"epochs": 1, "init_from": str(source.workdir), **sections.get("training", {})}
    return replace(CONFIG, **sections)


def first_parameters(source, dataset, **sections):
    """Of one seed, without training."""
    sections["training"] = {"seeds": (0,), **sections.get("training", {})}
    setup = prepare(started_from(source, **sections), dataset)
    params = jax.vmap(lambda seed: initial_params(setup.task, seed))(np.array([0], np.uint32))
    return jax.tree.map(lambda x: np.asarray(x[0]), initialize_from(source.workdir, params, setup).params)


def test_parameters_are_those_of_the_source_seed_by_seed(source, capsys):
    """With a learning rate of next to nothing the best parameters stay where they began."""
    config = started_from(source, training={"seeds": (1, 9)}, optimizer={"learning_rate": 1e-30})
    run = jaxrec.fit(DATASET, config, progress=True)
    chex.assert_trees_all_equal(run.fit.seed_params(0), source.fit.seed_params(1))
    chex.assert_trees_all_equal(run.fit.seed_params(1), source.fit.seed_params(0))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("initialised: "))
    assert "arrays copied from" in line
    assert "(seeds 1, 3)" in line


def test_other_dropout_is_no_other_encoder(source):
    config = started_from(source, encoder={"dropout": 0.5}, training={"seeds": (0,)})
    assert np.isfinite(jaxrec.fit(DATASET, config, progress=False).metrics["NDCG@10"])


def test_a_refused_source_leaves_no_run_and_deletes_none(source, tmp_path):
    """Neither in a new directory, which the corrected command then takes, nor beside --overwrite."""
    wider = started_from(source, encoder={"width": 24})
    with pytest.raises(CheckpointError, match="has another encoder"):
        jaxrec.fit(DATASET, wider, tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()
    old = shutil.copytree(source.workdir, tmp_path / "old")
    before = sorted(old.rglob("*"))
    with pytest.raises(CheckpointError, match="has another encoder"):
        jaxrec.fit(DATASET, wider, old, overwrite=True, progress=False)
    from_itself = replace(CONFIG, training={"init_from": str(old)})
    with pytest.raises(
        RunExistsError, match=r"--init-from .* is in the workdir .*which --overwrite would empty"
    ):
        jaxrec.fit(DATASET, from_itself, old, overwrite=True, progress=False)
    assert sorted(old.rglob("*")) == before


@pytest.mark.parametrize("lose_checkpoints", [False, True])
def test_interrupted_run_resumes_to_the_same_bits(source, tmp_path, monkeypatch, lose_checkpoints):
    config = started_from(source, training={"epochs": 4, "seeds": (0,)})
    whole = jaxrec.fit(DATASET, config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", StopAfter(2))
        with pytest.raises(Interrupted):
            jaxrec.fit(DATASET, config, tmp_path / "parts", progress=False)
    if lose_checkpoints:  # as if killed before the first one
        shutil.rmtree(tmp_path / "parts/checkpoints")
    parts = jaxrec.fit(DATASET, config, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(whole.fit, parts.fit)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"encoder": {"width": 8}},
            r"has another encoder than this run: .*items/table: saved 41x16, needed 41x8",
        ),
        ({"encoder": {"layers": 2}}, r"layer_1/.*: saved absent, needed"),
        ({"batches": {"max_length": 12}}, r"positions/table: saved 16x16, needed 12x16"),
    ],
)
def test_another_encoder_is_refused(source, sections, message):
    with pytest.raises(CheckpointError, match=message):
        jaxrec.fit(DATASET, started_from(source, **sections), progress=False)


def test_another_dataset_or_no_run_is_refused(source, tmp_path):
    with pytest.raises(CheckpointError, match="trained on a dataset with fingerprint"):
        jaxrec.fit(small_dataset(seed=5), started_from(source), progress=False)
    with pytest.raises(ConfigError, match=r"config\.json not found"):
        jaxrec.fit(DATASET, replace(CONFIG, training={"init_from": str(tmp_path)}), progress=False)


def test_source_that_trained_on_held_out_interactions_is_refused(source):
    """The source holds out one interaction of each user in each part, these two, or those from a moment on."""
    for split in ({"strategy": "leave-last-n", "n": 2}, {"strategy": "temporal"}):
        with pytest.raises(
            CheckpointError, match=r"another split, with \d+ interactions that are held out here"
        ):
            jaxrec.fit(DATASET, started_from(source, split=split), progress=False)


def test_source_that_trained_on_less_is_accepted(source):
    """Another split with the same training part will do."""
    params = first_parameters(source, DATASET, split={"drop_unseen_targets": True})
    np.testing.assert_array_equal(params["items"]["table"], source.fit.seed_params(0)["items"]["table"])


@pytest.mark.slow
def test_the_source_may_have_another_task_and_groups_of_rows(tmp_path):
    """What its encoder was trained beside, and how it was computed, is no matter: on other data, and on a mesh."""
    config = replace(CONFIG, training={"epochs": 1, "seeds": (0,)}, attention={"rows_per_group": 2})
    config = dataclasses.replace(config, task=ConsistencyConfig(items_per_step=8))
    source = jaxrec.fit(DATASET, config, tmp_path / "source", progress=False)
    table = np.asarray(source.fit.seed_params(0)["items"]["table"])
    on_mesh = first_parameters(source, DATASET, mesh={"data": 2})
    np.testing.assert_array_equal(on_mesh["items"]["table"], table)
    matched = first_parameters(source, small_dataset(seed=5), training={"init_items": "match"})
    np.testing.assert_array_equal(matched["items"]["table"][1:], table[1:])


def test_matching_without_a_run_is_refused_and_not_inherited(tmp_path):
    config = replace(CONFIG, training={"init_items": "match"})
    with pytest.raises(ConfigError, match=r"init-items match has no run .* expected --init-from RUN too"):
        prepare(config, DATASET)
    save_config(replace(config, training={"init_from": "runs/a"}), tmp_path / "config.json")
    assert named_config(str(tmp_path)) == CONFIG


def test_last_parameters_are_kept_where_asked():
    config = replace(CONFIG, training={"epochs": 3, "select": "last", "seeds": (0,), "patience": 1})
    run = jaxrec.fit(DATASET, config, progress=False)
    assert run.fit.steps == run.fit.host_state.best_step[0]
