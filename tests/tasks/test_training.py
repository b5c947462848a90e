"""Runs of the tasks: held-out items never matter; resumed, streamed and split over a mesh they are the same run."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from jaxrec.attention import (
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
)
from jaxrec.errors import ConfigError, Interrupted
from jaxrec.sharding import MeshConfig
from jaxrec.tasks import ConsistencyConfig, MaskedItemConfig, NextItemConfig, S3RecConfig
from jaxrec.training import loop
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from tests.helpers import StopAfter, assert_same_run, small_config
from tests.tasks.data import described_dataset, poisoned

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = described_dataset(n_users=30)
TASKS = {
    "masked-item": {"task": MaskedItemConfig()},
    "exposure": {"task": NextItemConfig(exposure=0.5)},
    "consistency": {"task": ConsistencyConfig(weight=1.0, stop="none", newest=5, items_per_step=16)},
    "s3rec": {"task": S3RecConfig(), "batches.mode": "prefix", "batches.prefixes_per_sequence": 4},
}


def config(task, **options):
    """A run of two epochs that keeps its last parameters."""
    base = small_config(training={"epochs": 2, "select": "last"}, encoder={"block": "post-norm"})
    return base.updated({**TASKS[task], **options})


def quiet(settings, workdir=None, dataset=DATASET, **options):
    return train(settings, dataset, workdir, progress=False, **options)


@functools.cache
def whole(task):
    """The run that the others are compared with."""
    return quiet(config(task))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "masked-item",
            {"batches.targets": "last"},
            r"--batches\.targets last chooses .* MaskedItemConfig makes",
        ),
        (
            "s3rec",
            {"batches.prefix_targets": "all"},
            r"--batches\.prefix-targets all chooses .* S3RecConfig makes",
        ),
    ],
)
def test_targets_that_a_task_does_not_read_are_refused(task, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config(task, **options), DATASET)


@pytest.mark.parametrize("task", TASKS)
def test_held_out_items_do_not_enter_training(task):
    chex.assert_trees_all_equal(whole(task).params, quiet(config(task), dataset=poisoned(DATASET)).params)


@pytest.mark.parametrize("task", TASKS)
def test_training_items_do_enter_it(task):
    """The newest training interaction is learned from: another one gives other parameters."""
    items = DATASET.items.copy()
    items[DATASET.offsets[1] - 3] = items[DATASET.offsets[1] - 3] % DATASET.n_items + 1
    other = quiet(config(task), dataset=dataclasses.replace(DATASET, items=items))
    assert not np.array_equal(other.params["items"]["table"], whole(task).params["items"]["table"])


@pytest.mark.parametrize("task", TASKS)
def test_streamed_run_is_the_resident_one(task):
    chex.assert_trees_all_equal(
        whole(task).params, quiet(config(task, **{"training.feed": "streamed"})).params
    )


@pytest.mark.parametrize("task", TASKS)
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(task, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "StopRequest", StopAfter(0))
    with pytest.raises(Interrupted):
        quiet(config(task), tmp_path / "run")
    monkeypatch.undo()
    assert_same_run(whole(task), quiet(config(task), tmp_path / "run", resume=True))


@pytest.mark.parametrize("task", TASKS)
def test_mesh_of_eight_devices_trains_as_one_device(task, tmp_path):
    few = {"training.epochs": 0.5, "training.evaluate_every": 0.5, "batches.batch_size": 8}
    one = quiet(config(task, **few), tmp_path / "one")
    many = quiet(config(task, mesh=MeshConfig(4, 2), **few), tmp_path / "many")

    def losses(run):
        return [line["loss"] for line in read_metrics(run.workdir / "log.jsonl") if "loss" in line]

    np.testing.assert_allclose(losses(one), losses(many), rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_loss_falls(task, tmp_path):
    longer = {"training.epochs": 20, "training.evaluate_every": 5, "optimizer.learning_rate": 1e-2}
    run = quiet(config(task, **longer), tmp_path / "run")
    losses = [line["loss"][0] for line in read_metrics(run.workdir / "log.jsonl") if "loss" in line]
    assert losses[-1] < 0.95 * losses[0]
    if task == "masked-item":
        assert run.test[0].metrics["HR@10"] > 1.3 * 10 / DATASET.n_items


ATTENTION = {
    "miq": MultiItemQueryAttentionConfig(query_window=3, heads=2),
    "awrsr": RefinedAttentionConfig(heads=2),
    "kernel": KernelAttentionConfig(heads=2),
    "softmax": SoftmaxAttentionConfig(heads=2),
}


@pytest.mark.parametrize("attention", ATTENTION)
def test_fine_tuning_starts_from_pretraining_with_any_attention(attention, tmp_path):
    chosen = {
        "encoder.attention": ATTENTION[attention],
        "training.epochs": 0.5,
        "training.evaluate_every": 0.5,
    }
    before = quiet(config("s3rec", **chosen), tmp_path / "pre")
    first = small_config(encoder={"block": "post-norm"}).updated(chosen)
    fine = first.updated({"training.init_from": str(tmp_path / "pre"), "optimizer.learning_rate": 1e-30})
    after = quiet(fine, tmp_path / "fine")
    for name in ("layer_0", "positions"):
        if name in after.params:
            chex.assert_trees_all_close(after.params[name], before.params[name], atol=1e-6)
    np.testing.assert_allclose(after.params["items"]["table"], before.params["items"]["table"], atol=1e-6)
    assert "task" in before.params
    assert "task" not in after.params
    if attention == "softmax":
        monkey = dataclasses.replace(fine, optimizer=first.optimizer)
        again = [quiet(monkey) for _ in range(2)]
        chex.assert_trees_all_equal(again[0].params, again[1].params)


def test_data_without_attributes_is_refused_before_any_compute():
    with pytest.raises(ConfigError, match=r"--task\.aap-weight and --task\.map-weight need attributes"):
        quiet(config("s3rec"), dataset=dataclasses.replace(DATASET, attributes=None))


@pytest.mark.slow
def test_data_without_attributes_train_the_objectives_of_items():
    only_items = {"task": S3RecConfig(aap_weight=0.0, map_weight=0.0), "training.epochs": 0.5}
    run = quiet(config("s3rec").updated(only_items), dataset=dataclasses.replace(DATASET, attributes=None))
    assert "attributes" not in run.params["task"]
    assert jax.tree.leaves(run.params["task"])
