"""Runs on disk: a directory of the first format, what evaluation does not load, and edits that are rejected."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrec
from jaxrec.errors import CheckpointError, ConfigError, DataError
from jaxrec.runs import Run
from jaxrec.serving import Recommender
from tests.helpers import small_dataset
from tests.runs import jaxrec as command

pytestmark = pytest.mark.usefixtures("standard_promotion")

OLD = Path(__file__).parent / "fixtures" / "run_format_1"
DATASET = small_dataset()


@pytest.fixture(scope="module")
def trained(two_seeds):
    return two_seeds


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained.workdir, tmp_path / "copy"))


class TestFirstFormat:
    @pytest.fixture
    def old(self, tmp_path, monkeypatch):
        shutil.copytree(OLD, tmp_path / "old")
        monkeypatch.chdir(tmp_path / "old")
        return Path("run")

    def test_evaluates_to_the_same_ranks(self, old):
        run = Run(old)
        assert run.seeds == (0, 1)
        for split in ("valid", "test"):
            saved = [evaluation for evaluation, _ in run.ranks(split)]
            for again, before in zip(run.evaluate(split), saved, strict=True):
                np.testing.assert_array_equal(again.ranks, before.ranks)
        assert run.metrics == pytest.approx(
            {name: value["mean"] for name, value in run.results["metrics"].items()}
        )

    def test_recommends_the_same_items(self, old):
        expected = json.loads((OLD / "recommended.json").read_text())
        for seed, before in expected["answers"].items():
            answer = Recommender.load(old, int(seed)).recommend([expected["history"]], expected["k"])[0]
            assert answer.items == before["items"]
            np.testing.assert_allclose(answer.scores, before["scores"], rtol=1e-5)

    def test_its_best_parameters_are_read_alone(self, old, monkeypatch):
        from orbax.checkpoint import v1 as ocp

        asked = []
        load = ocp.load_checkpointables
        monkeypatch.setattr(
            ocp, "load_checkpointables", lambda path, target: asked.append(target) or load(path, target)
        )
        Run(old).params(0)
        assert {name.split("/")[0] for target in asked for name in target["state"]} == {"1"}


def test_a_run_says_what_it_is(trained):
    run = Run(trained.workdir)
    assert repr(run) == f"Run({str(trained.workdir)!r}, 2 seeds, finished)"
    assert len(repr(trained)) < 200
    assert run.name in repr(trained)
    assert run.metrics == trained.metrics
    assert run.fingerprint == DATASET.fingerprint
    assert (run.catalogue.n_items, run.catalogue.n_users) == (40, 0)
    jax.tree.map(np.testing.assert_array_equal, run.params(1), trained.fit.seed_params(1))
    for evaluation, (saved, meta) in zip(trained.fit.test, run.ranks("test"), strict=True):
        np.testing.assert_array_equal(evaluation.ranks, saved.ranks)
        assert meta["part"] == "test"
    with pytest.raises(ConfigError, match=r"--seed must be one of the run's \(3, 1\), got 7"):
        run.params(7)
    with pytest.raises(ConfigError, match="trained in memory"):
        _ = jaxrec.api.FittedRun(trained.results, trained.fit, None).run


def test_data_that_moved_are_told_from_an_option_that_is_wrong(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    told = "from which run .*run was trained: if it has moved, give its new place \\(--data, in Python dataset=\\)"
    run = tmp_path / "old" / "run"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=told):
        _ = Run(run).dataset
    absent = command("evaluate", run)
    assert (absent.status, "from which run" in absent.err) == (1, True)
    wrong = command("evaluate", run, "--data", "nowhere.csv")
    assert "no file 'nowhere.csv': give an existing file" in wrong.err
    assert "was trained" not in wrong.err


def test_evaluation_builds_nothing_for_training(copy, monkeypatch):
    """No optimiser, no row stream, no training state."""
    from jaxrec.optim import OptimizerConfig
    from jaxrec.training import setup, state, state_sharding

    def forbidden(*_, **__):
        raise AssertionError("only training needs this")

    monkeypatch.setattr(OptimizerConfig, "build", forbidden)
    monkeypatch.setattr(setup, "RowStream", forbidden)
    for module in (state, state_sharding):
        monkeypatch.setattr(module, "initial_state", forbidden)
    answer = Recommender.load(copy).recommend([["i1", "i3"]], k=5)[0]
    assert len(answer.items) == 5
    results = jaxrec.evaluate(copy, "test", DATASET)
    assert results["metrics"] == Run(copy).results["metrics"]


def test_recommending_loads_no_interactions(copy, monkeypatch):
    from jaxrec import runs
    from jaxrec.training import setup

    for module in (runs, setup):
        monkeypatch.setattr(module, "load_dataset", lambda *_: pytest.fail("the dataset was loaded"))
    assert Recommender.load(copy).recommend([["i1"]], k=3)
    with pytest.raises(pytest.fail.Exception, match="was loaded"):
        Run(copy).dataset  # noqa: B018


def test_evaluation_reports_the_mesh_of_the_run(trained):
    from jaxrec.sharding import MeshConfig

    results = jaxrec.evaluate(trained.workdir, "test", DATASET, mesh=MeshConfig(2, 2))
    assert results["config"]["mesh"] == {"data": 1, "item": 1}
    assert results["mesh"] == {"data": 2, "item": 2}


@pytest.mark.parametrize(
    ("section", "field", "value", "named"),
    [
        ("encoder", "norm_epsilon", 0.5, r"encoder\.norm_epsilon: 0\.5, the checkpoint has 1e-06"),
        ("split", "min_length", 10, r"split\.min_length: 10, the checkpoint has 0"),
        ("evaluation", "remove_seen", False, r"evaluation\.remove_seen: False, the checkpoint has True"),
    ],
)
def test_an_edited_configuration_is_rejected(copy, section, field, value, named):
    config = json.loads((copy / "config.json").read_text())
    config[section][field] = value
    (copy / "config.json").write_text(json.dumps(config))
    for refused in (command("recommend", copy, "--history", "i1"), command("evaluate", copy)):
        assert refused.status == 1
    with pytest.raises(ConfigError, match=rf"config\.json was changed after training: {named}"):
        Run(copy)


def test_when_a_run_stops_may_be_edited(copy):
    config = json.loads((copy / "config.json").read_text())
    config["training"]["epochs"] = 9
    (copy / "config.json").write_text(json.dumps(config))
    assert Run(copy).params(3)


@pytest.mark.parametrize("name", ["item_ids_bytes.npy", "item_titles_bytes.npy"])
def test_a_changed_catalogue_is_rejected(copy, name):
    file = copy / "catalogue" / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 4
    file.write_bytes(content)
    with pytest.raises(DataError, match="has changed since it was saved"):
        Recommender.load(copy)


def test_a_catalogue_replaced_in_place_does_not_change_what_a_loaded_run_answers(copy):
    loaded = Recommender.load(copy)
    before = loaded.recommend([["i1", "i2"]], k=5)
    for name in ("item_ids_bytes.npy", "item_titles_bytes.npy"):
        file = copy / "catalogue" / name
        length = len(np.load(file))
        with file.open("r+b") as opened:  # the same file, as after cp
            opened.seek(-length, 2)
            opened.write(b"?" * length)
    assert loaded.recommend([["i1", "i2"]], k=5) == before


def test_unfinished_and_damaged_runs(copy):
    (copy / "ranks" / "test_seed1.npz").unlink()
    with pytest.raises(DataError, match=r"ranks/test_seed1\.npz is missing; finish it"):
        Run(copy).ranks("test")
    (copy / "ranks" / "test_seed3.npz").write_bytes(b"PK" + bytes(40))
    (copy / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json is damaged"):
        _ = Run(copy).results
    (copy / "results.json").unlink()
    with pytest.raises(ConfigError, match="is not finished: finish it with jaxrec train"):
        _ = Run(copy).results
    spaced = copy.rename(copy.with_name("my copy"))
    with pytest.raises(ConfigError, match=f"finish it with jaxrec train --workdir '{spaced}' --resume"):
        _ = Run(spaced).results
    spaced.rename(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoints in .*copy"):
        Run(copy).params()
