"""Runs that diverge: the first tensor that is not finite, the likely setting, and a command that goes on."""

import json
import shlex

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.cli.main import main
from jaxrec.errors import CheckpointError, NonFiniteError
from jaxrec.training import divergence, loop
from jaxrec.training.divergence import Finding, how_to_go_on, likely_setting, smaller_rate
from jaxrec.training.logging import read_metrics
from jaxrec.training.setup import prepare
from tests.helpers import replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

GROWING = {"learning_rate": 0.01, "weight_decay": 1000.0}


def command_of(message):
    """Arguments of the command at the end of a message."""
    words = shlex.split(message[message.rindex("jaxrec train") :])
    return words[1:]


@pytest.fixture(scope="module")
def saved_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "walks"
    small_dataset().save(folder)
    return folder


def test_the_largest_parameter_is_a_trained_one():
    params = {
        "items": {"codes": jnp.full((3, 2), 200.0), "code_table": jnp.array([-2.0, jnp.inf])},
        "task": {"memory": {"steps": jnp.float32(5000)}, "places": jnp.zeros(2)},
    }
    assert float(divergence.largest_size(params)) == 2.0


@pytest.mark.slow
def test_weight_decay_is_named_and_the_command_continues(saved_data, tmp_path, capsys):
    run = tmp_path / "a run"
    options = ["--data", str(saved_data), "--workdir", str(run), "--preset", "smoke", "--quiet", "--json"]
    options += ["--encoder.width", "16", "--batches.max-length", "16", "--batches.batch-size", "4"]
    options += [
        "--training.epochs",
        "4",
        "--training.evaluate-every",
        "1",
        "--training.checkpoint-seconds",
        "0",
    ]
    options += ["--evaluation.ks", "5", "10", "--training.patience", "0"]
    options += ["--optimizer.learning-rate", "0.01", "--optimizer.weight-decay", "1000"]
    assert main(["train", *options]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the first tensor that is not finite is " in message
    assert "--optimizer.weight-decay 1000: times the learning rate 0.01 it is above 2" in message
    assert "the last good checkpoint is that of step" in message
    assert "--optimizer.learning-rate 0.0001" in message
    assert main([*command_of(message), "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out.splitlines()[-1])
    step, before, after = results["training"]["rate_changes"][0]
    assert (before, after) == (0.01, 0.0001)
    assert f"that of step {step:.0f};" in message
    assert f"from step {step:.0f} on with --optimizer.learning-rate 0.0001, until then 0.01" in captured.err
    lines = read_metrics(run / "log.jsonl")
    assert {"step": step, "learning_rate_before": 0.01, "learning_rate": 0.0001} in lines
    assert all(np.isfinite(line["loss"]).all() for line in lines if "loss" in line)
    assert json.loads((run / "config.json").read_text())["optimizer"]["learning_rate"] == 0.0001


@pytest.mark.slow
def test_without_a_checkpoint_the_command_begins_anew(saved_data, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--data", str(saved_data), "--workdir", str(run), "--preset", "smoke", "--quiet", "--json"]
    options += ["--encoder.width", "16", "--batches.max-length", "16", "--batches.batch-size", "4"]
    options += ["--training.epochs", "1", "--evaluation.ks", "5", "10", "--objective.temperature", "1e-39"]
    assert main(["train", *options]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "in step 1; likely behind it is --objective.temperature 1e-39: with 1 the same step is finite"
        in message
    )
    assert "no checkpoint was written yet; start again" in message
    words = command_of(message)
    assert words[:5] == ["train", "--preset", str(run), "--workdir", str(run)]
    assert main([*words, "--objective.temperature", "1", "--quiet", "--json"]) == 0


@pytest.fixture(scope="module")
def prepared():
    config = small_config(encoder={"dropout": 0.0}, training={"chunk_steps": 4})
    setup = prepare(config, small_dataset())
    begun, _ = loop._begin(setup, None, None)
    with loop._feed(setup, begun, False) as feed:
        inputs = feed.take().inputs
    return setup, begun.state, inputs


def examined(prepared, state=None):
    setup, start, inputs = prepared
    return divergence.examine(setup, start if state is None else state, inputs, 0, 100)


@pytest.mark.slow
def test_a_healthy_chunk_has_no_finding(prepared):
    assert examined(prepared) is None


@pytest.mark.slow
def test_a_planted_parameter_is_found(prepared):
    _, state, _ = prepared
    names = list(divergence.flatten(state.params))
    broken = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[..., 0].set(jnp.nan) if "kernel" in str(path[-1]) else x, state.params
    )
    finding = examined(prepared, state._replace(params=broken))
    assert finding is not None
    assert (finding.step, finding.kind) == (101, "parameter")
    assert finding.name.endswith("kernel")
    assert finding.others == sum("kernel" in name.rsplit("/", 1)[-1] for name in names) - 1


@jax.custom_vjp
def _poison(x):
    return x


_poison.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent * jnp.inf,))


def test_an_activation_that_overflows_is_found(prepared):
    _, state, _ = prepared
    params = jax.tree.map(lambda x: x, state.params)
    kernel = params["layer_0"]["feed_forward"]["inner"]["kernel"]
    params["layer_0"]["feed_forward"]["inner"]["kernel"] = jnp.full_like(kernel, 3e38)
    finding = examined(prepared, state._replace(params=params))
    assert finding is not None
    assert (finding.step, finding.kind, finding.name) == (101, "activation", "layer_0/feed_forward/inner")
    assert finding.largest == pytest.approx(3e38)


def test_a_planted_gradient_is_found(prepared):
    """A module in the middle of the network whose output has a good value and a broken derivative."""
    target = "layer_0/attention/output/dense"

    def break_target(call, args, kwargs, context):
        output = call(*args, **kwargs)
        scope = context.module.scope
        return _poison(output) if scope is not None and "/".join(scope.path) == target else output

    with nn.intercept_methods(break_target):
        finding = examined(prepared)
    assert finding is not None
    assert (finding.step, finding.kind) == (101, "gradient")
    assert finding.name.rsplit("/", 1)[0] == target


@pytest.mark.parametrize(
    ("options", "finding", "expected"),
    [
        ({"learning_rate": 0.5}, Finding(9, "loss"), r"-rate 0.5, without --optimizer.clip-norm: parameters"),
        (
            {"learning_rate": 0.5, "clip_norm": 1.0},
            Finding(9, "loss", largest=1e20),
            r"^--optimizer.learning-rate 0.5: par",
        ),
        (GROWING, Finding(9, "update", "a/kernel"), r"^--optimizer.weight-decay 1000"),
        ({"beta1": 0.99, "beta2": 0.5}, Finding(9, "gradient", "a"), r"^--optimizer.beta2 0.5"),
        ({"epsilon": 1e-30}, Finding(9, "update", "a"), r"^--optimizer.epsilon 1e-30"),
        ({"algorithm": "sgd", "beta1": 0.999}, Finding(9, "loss"), r"^--optimizer.beta1 0.999"),
        ({"learning_rate": 9.0}, Finding(1, "loss"), r"^--objective or the data"),
        ({"learning_rate": 9.0}, Finding(1, "update", "a"), r"^--optimizer.learning-rate 9"),
        (
            {},
            Finding(7, "activation", "a", cures=("encoder.dtype",)),
            r"^--encoder.dtype float32: with float32 the same",
        ),
    ],
)
def test_the_likely_setting(options, finding, expected):
    import re

    text = likely_setting(small_config(optimizer=options), finding, 100)
    assert re.search(expected, text), text


def test_a_large_first_scale_is_named():
    config = replace(small_config(), encoder={"init_scale": 1e30})
    assert likely_setting(config, Finding(1, "activation", "x"), 9).startswith("--encoder.init-scale 1e+30")


def test_the_smaller_rate_fits_the_weight_decay():
    assert smaller_rate(small_config(optimizer={"learning_rate": 0.003})) == 0.0003
    assert smaller_rate(small_config(optimizer={"learning_rate": 1e30})) == 1e-3
    assert smaller_rate(small_config(optimizer=GROWING)) == 1e-4
    assert "start again with --optimizer.learning-rate" in how_to_go_on(small_config(), None, None)


def test_only_the_rate_may_change_on_resume(tmp_path):
    config = small_config(training={"epochs": 1})
    loop.train(config, small_dataset(), tmp_path / "run", progress=False)
    with pytest.raises(
        CheckpointError, match=r"another configuration: optimizer\.beta1: saved 0\.9, given 0\.8"
    ):
        loop.train(
            replace(config, optimizer={"beta1": 0.8, "learning_rate": 1e-4}),
            small_dataset(),
            tmp_path / "run",
            resume=True,
            progress=False,
        )


def test_a_validation_of_broken_parameters_is_explained(prepared):
    setup, state, _ = prepared
    broken = jax.tree.map(lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x, state.params)
    run = loop._Progress(state._replace(params=broken), broken, loop.HostState.start(1), 12)
    with pytest.raises(
        NonFiniteError,
        match=r"validation after step 12 failed.*the first tensor that is not finite is the parameter",
    ):
        loop._scores(setup, run, None, np.array([True]))
