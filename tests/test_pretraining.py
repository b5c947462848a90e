"""Runs of two stages: what they share, what each has of its own, and that they are the two runs one after the other."""

import signal

import chex
import jax.numpy as jnp
import pytest

import jaxrec
from jaxrec.config import PretrainingConfig, RunConfig, from_dict, save_config, to_dict
from jaxrec.errors import ConfigError, Interrupted
from jaxrec.presets import PRESETS
from jaxrec.pretraining import first_stage, pretrain
from jaxrec.tasks import MaskedItemConfig, S3RecConfig
from jaxrec.training import loop
from jaxrec.training.checkpoint import CheckpointStore
from jaxrec.training.logging import read_metrics
from tests.helpers import StopAfter, assert_same_run, small_config
from tests.tasks.data import described_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = described_dataset(n_users=16)
OPTIONS = (
    *("training.epochs=2", "training.evaluate-every=1"),
    *("batches.prefixes-per-sequence=2", "batches.batch-size=4"),
)


def two_stages(*options, **sections):
    """A small run of two stages."""
    training = {"epochs": 3, **sections.pop("training", {})}
    base = small_config(encoder={"block": "post-norm"}, training=training, **sections)
    return base.updated({"pretraining": PretrainingConfig("s3rec-pretrain", (*OPTIONS, *options))})


def test_stages_share_data_encoder_and_lengths():
    config = two_stages("task.aap-weight=0", training={"seeds": (3, 5)}, evaluation={"ks": (3,)})
    stage = first_stage(config)
    for section in ("data", "split", "encoder", "evaluation", "mesh"):
        assert getattr(stage, section) == getattr(config, section)
    assert (stage.batches.max_length, stage.batches.position_origin) == (16, config.batches.position_origin)
    assert (stage.training.seeds, stage.training.epochs, stage.training.select) == ((3, 5), 2, "last")
    assert (stage.batches.mode, stage.batches.batch_size) == ("prefix", 4)
    assert isinstance(stage.task, S3RecConfig)
    assert (stage.task.aap_weight, stage.task.map_weight) == (0, S3RecConfig().map_weight)
    assert stage.pretraining == PretrainingConfig()
    assert from_dict(to_dict(config)) == config


def test_the_preset_is_the_two_presets():
    config = PRESETS["s3rec-two-stage"]()
    assert config.updated({"pretraining": PretrainingConfig()}) == PRESETS["s3rec"]()
    alone = PRESETS["s3rec-pretrain"]().updated({"training.metric": config.training.metric})
    assert first_stage(config) == alone


def test_another_task_for_the_first_stage():
    assert first_stage(two_stages("task=masked-item")).task == MaskedItemConfig()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: PretrainingConfig("s3rec-pretrain", ("epochs",)),
            r"must be like training\.epochs=20; got 'epochs'",
        ),
        (lambda: PretrainingConfig(options=("training.epochs=2",)), r"expected --pretraining\.preset too"),
        (
            lambda: two_stages(training={"init_from": "runs/a"}),
            r"preset s3rec-pretrain and --init-from runs/a exc",
        ),
        (
            lambda: first_stage(two_stages("encoder.width=8")),
            r"cannot set encoder\.width, which both stages share",
        ),
        (lambda: first_stage(two_stages("training.seeds=[1]")), r"cannot set training\.seeds"),
        (lambda: first_stage(two_stages("training.epoch=2")), r"unknown option 'training\.epoch'"),
        (lambda: first_stage(two_stages("training.epochs=two")), r"--training\.epochs must be .*; got 'two'"),
        (
            lambda: first_stage(RunConfig(pretraining=PretrainingConfig("s3rec-two-stage"))),
            r"a preset of one stage; got 's3rec-two-stage'",
        ),
        (lambda: first_stage(RunConfig(pretraining=PretrainingConfig("s3"))), r"unknown preset 's3'"),
        (lambda: jaxrec.fit(DATASET, two_stages(), progress=False), r"s3rec-pretrain needs a workdir"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return jaxrec.fit(DATASET, two_stages(), tmp_path_factory.mktemp("two") / "run", progress=False)


@pytest.mark.slow
def test_two_stages_are_two_runs_one_after_the_other(whole, tmp_path):
    """The same bits as pretraining and ``--init-from`` in commands of their own."""
    config = two_stages()
    pre = jaxrec.fit(DATASET, first_stage(config), tmp_path / "pre", progress=False)
    plain = config.updated({"pretraining": PretrainingConfig(), "training.init_from": str(tmp_path / "pre")})
    fine = jaxrec.fit(DATASET, plain, tmp_path / "fine", progress=False)
    assert_same_run(whole.fit, fine.fit)
    first = jaxrec.Run(whole.workdir / "pretraining", whole.fit.setup.dataset)
    chex.assert_trees_all_equal(first.best_params, pre.fit.params)
    assert read_metrics(whole.workdir / "log.jsonl")[0]["init_from"] == str(whole.workdir / "pretraining")


@pytest.mark.slow
def test_what_exists_is_not_overwritten_unasked(whole):
    before = (whole.workdir / "pretraining/results.json").read_bytes()
    with pytest.raises(jaxrec.errors.RunExistsError, match="is not empty"):
        jaxrec.fit(DATASET, two_stages(), whole.workdir, progress=False)
    assert (whole.workdir / "pretraining/results.json").read_bytes() == before


def test_a_run_with_a_checkpoint_needs_no_first_stage(tmp_path):
    """Neither where the first stage was deleted to save space, nor in an extended run, which never had one."""
    config, run = two_stages(), tmp_path / "run"
    run.mkdir()
    save_config(config, run / "config.json")
    store = CheckpointStore(run / "checkpoints")
    store.save(4, {"state": {"x": jnp.zeros(2)}}, {"step": 4}, 0.5)
    store.close()
    pretrain(config, DATASET, run, resume=True, overwrite=False, progress=False)
    assert not (tmp_path / "run/pretraining").exists()


def test_what_the_second_stage_refuses_costs_no_first_one(tmp_path):
    config = two_stages(evaluation={"ks": (5, 1000)})
    with pytest.raises(jaxrec.errors.JaxrecError, match="1000"):
        jaxrec.fit(DATASET, config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run/pretraining/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("second", [False, True])
def test_interrupted_in_either_stage(whole, tmp_path, monkeypatch, second):
    """The signal's message names the whole run, and a resume continues the stage that it stopped."""
    workdir = tmp_path / "my run"
    finished = workdir / "pretraining/results.json"

    class Stop(StopAfter):
        @property
        def signal_number(self):
            return signal.SIGTERM if finished.exists() == second else None

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", Stop(0))
        with pytest.raises(Interrupted, match=rf"--workdir '{workdir}' --resume") as stopped:
            jaxrec.fit(DATASET, two_stages(), workdir, progress=False)
    assert finished.exists() == second
    assert str(stopped.value).startswith("the first stage") == (not second)
    resumed = jaxrec.fit(DATASET, two_stages(), workdir, resume=True, progress=False)
    assert_same_run(whole.fit, resumed.fit)
