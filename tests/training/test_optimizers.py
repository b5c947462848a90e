"""The rule for weight decay, over all registered encoders and mechanisms, and what a step of each algorithm does."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models import ENCODERS
from jaxrec.nn.spec import DataSpec
from jaxrec.optim import OptimizerConfig, decay_mask, is_item_table, is_kernel
from jaxrec.training.setup import prepare
from tests.helpers import small_config, small_dataset


def shapes(config, n_items=7, max_length=6):
    """Path -> shape of every parameter."""
    blank = jnp.zeros((1, 4), jnp.int32)
    batch = Batch(blank, blank, blank, blank, jnp.zeros((1, 4)), blank, blank)
    spec = DataSpec(n_items, max_length, n_users=3, has_timestamps=True)
    params = jax.eval_shape(config.build(spec).init, jax.random.key(0), batch)["params"]
    return {
        tuple(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def variants():
    """Every registered encoder with every mechanism that it accepts; every mechanism in each of its choices, once.

    Read off the registries and the options' types: a new part is covered when it is registered.
    """
    chosen = set()
    for name, kind in ENCODERS.items():
        plain = kind(width=4, layers=1)
        if not hasattr(plain, "attention"):
            yield name, plain
            continue
        for mechanism, attention in ATTENTION.items():
            options = [{}]
            if mechanism not in chosen:
                fields = [field.name for field in dataclasses.fields(attention)]
                options += [{field: choice} for field in fields for choice in choices(attention, field)]
            for option in options:
                try:
                    config = dataclasses.replace(plain, attention=attention(**option))
                    config.build(DataSpec(7, 6, has_timestamps=True))
                except ConfigError:
                    continue
                chosen.add(mechanism)
                yield f"{name}, {mechanism} {option}", config


def choices(kind, field):
    """Values of a ``Literal`` or boolean option."""
    hint = typing.get_type_hints(kind)[field]
    if hint is bool:
        return (False, True)
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


@pytest.fixture(scope="module")
def everything():
    """Name -> (shapes, shapes with one more item, shapes with one more position)."""
    return {
        name: (shapes(config), shapes(config, n_items=8), shapes(config, max_length=7))
        for name, config in variants()
    }


def test_every_registered_part_is_covered(everything):
    assert {name.split(",")[0] for name in everything} == set(ENCODERS)
    mechanisms = {name.split(", ")[1].split(" ")[0] for name in everything if ", " in name}
    assert mechanisms == set(ATTENTION)


def test_item_tables_are_the_parameters_that_grow_with_the_catalogue(everything):
    for name, (small, more_items, _) in everything.items():
        growing = {path for path in small if small[path] != more_items[path]}
        assert growing == {path for path in small if is_item_table(list(path))}, name
        assert growing, name


def test_kernels_are_matrices_between_features(everything):
    """A kernel has two axes of features at least, and none that counts items or positions; a bias is beside it."""
    for name, (small, more_items, longer) in everything.items():
        kernels = {path for path in small if is_kernel(list(path))}
        assert kernels, name
        for path in kernels:
            assert len(small[path]) >= 2, (name, path)
            assert small[path] == more_items[path] == longer[path], (name, path)
        for path in small:
            if (*path[:-1], "kernel") in kernels and path[-1] != "kernel":
                assert path[-1] == "bias", (name, path)


def test_matrices_that_are_no_kernels_belong_to_positions_items_or_tokens(everything):
    """What a name hides from decay: each such matrix is indexed by positions, items, times, heads or dummies."""
    #: Last names of parameters that are no maps between features though their shape depends on no length.
    others = {"vectors", "bias", "time_bias", "table", "vector", "gate", "maps"}
    for name, (small, more_items, longer) in everything.items():
        for path, shape in small.items():
            fixed = shape == more_items[path] == longer[path]
            if len(shape) >= 2 and fixed and not is_kernel(list(path)):
                assert path[-1] in others, (name, path, shape)


def test_mask_follows_the_options():
    params = {
        "items": {"table": 0},
        "output_table": 0,
        "layer_0": {"attention": {"kernel": 0, "query_level_kernel": 0, "bias": 0}, "items": {"table": 0}},
    }
    kernels = {"kernel": True, "query_level_kernel": True, "bias": False}
    want = {
        "items": {"table": False},
        "output_table": False,
        "layer_0": {"attention": kernels, "items": {"table": False}},
    }
    assert decay_mask(params, "kernels") == want
    assert decay_mask(params, "kernels-and-items") == want | {"items": {"table": True}, "output_table": True}
    assert all(jax.tree.leaves(decay_mask(params, "all")))


PARAMS = {
    "layer": {"kernel": np.array([[1.0, -2.0]], np.float32), "bias": np.array([0.5], np.float32)},
    "items": {"table": np.array([[3.0]], np.float32)},
}


@pytest.mark.parametrize("algorithm", ["adamw", "adagrad", "sgd"])
def test_decay_is_decoupled_and_on_the_mask_alone(algorithm):
    """Over several steps, decay changes an update by learning rate x decay x parameter: no moment sees it."""
    config = OptimizerConfig(algorithm=algorithm, learning_rate=0.1, clip_norm=1.0)
    plain, decaying = config.build(10), dataclasses.replace(config, weight_decay=0.5).build(10)
    states = plain.init(PARAMS), decaying.init(PARAMS)
    generator = np.random.default_rng(0)
    for _ in range(4):
        gradients = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), PARAMS)
        without, first = plain.update(gradients, states[0], PARAMS)
        withal, second = decaying.update(gradients, states[1], PARAMS)
        states = first, second
        change = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), withal, without)
        np.testing.assert_allclose(
            change["layer"]["kernel"], -0.1 * 0.5 * PARAMS["layer"]["kernel"], rtol=1e-5
        )
        np.testing.assert_array_equal(change["layer"]["bias"], 0)
        np.testing.assert_array_equal(change["items"]["table"], 0)


def formula(algorithm, gradients):
    """Updates of one parameter over steps of learning rate 0.1, in plain NumPy."""
    first, second, sums, out = 0.0, 0.0, 0.1, []
    for step, g in enumerate(gradients, 1):
        if algorithm == "adamw":
            first, second = 0.8 * first + 0.2 * g, 0.95 * second + 0.05 * g**2
            direction = first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-6)
        elif algorithm == "adagrad":
            sums = sums + g**2
            direction = g / np.sqrt(sums + 1e-6)
        else:
            first = 0.8 * first + g
            direction = first
        out.append(-0.1 * direction)
    return out


@pytest.mark.parametrize("algorithm", ["adamw", "adagrad", "sgd"])
def test_updates_equal_the_formula(algorithm):
    optimizer = OptimizerConfig(
        algorithm=algorithm, learning_rate=0.1, beta1=0.8, beta2=0.95, epsilon=1e-6
    ).build(9)
    param = {"bias": np.array([1.0], np.float32)}
    state, got, gradients = optimizer.init(param), [], [0.3, -1.0, 2.0, 0.1]
    for g in gradients:
        update, state = optimizer.update({"bias": np.array([g], np.float32)}, state, param)
        got.append(float(update["bias"][0]))
    np.testing.assert_allclose(got, formula(algorithm, gradients), rtol=1e-5)


def test_schedules():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1, schedule="linear")
    rate = config.learning_rate_schedule(14)
    np.testing.assert_allclose(
        [rate(0), rate(2), rate(4), rate(9), rate(14)], [0, 0.5, 1, 0.55, 0.1], rtol=1e-6
    )
    cosine = dataclasses.replace(config, schedule="cosine").learning_rate_schedule(14)
    np.testing.assert_allclose([cosine(4), cosine(9), cosine(14)], [1, 0.55, 0.1], rtol=1e-6)


def test_a_warmup_that_never_ends_is_named():
    config = small_config(optimizer={"warmup_steps": 100_000})
    with pytest.warns(
        UserWarning, match=r"--optimizer\.warmup-steps 100,000 is not below the .* never reaches"
    ):
        setup = prepare(config, small_dataset())
    assert setup.schedule.total_steps < 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, r"--optimizer\.epsilon must be a finite number above 0; got -1"),
        ({"epsilon": 0.0}, r"--optimizer\.epsilon must be"),
        ({"beta1": 1.0}, r"--optimizer\.beta1 must be a finite number in \[0, 1\); got 1"),
        ({"beta2": 2.0}, r"--optimizer\.beta2 must be"),
        (
            {"learning_rate": float("nan")},
            r"--optimizer\.learning-rate must be a finite number above 0; got nan",
        ),
        ({"learning_rate": 0.0}, r"--optimizer\.learning-rate must be"),
        ({"weight_decay": float("inf")}, r"--optimizer\.weight-decay must be a finite number"),
        ({"clip_norm": -1.0}, r"--optimizer\.clip-norm must be"),
        ({"warmup_steps": 1.5}, r"--optimizer\.warmup-steps must be an integer"),
        ({"final_fraction": 1.5}, r"--optimizer\.final-fraction must be"),
        ({"algorithm": "lion"}, r"--optimizer\.algorithm must be one of adamw, adagrad, sgd"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_rejected(options, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**options)
