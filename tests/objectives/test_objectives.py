"""Properties of every objective: padding, extremes, compilation, precision, batching, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import ConfigError, UnknownNameError
from jaxrec.nn.item_table import EuclideanItemTable, ItemTable
from jaxrec.objectives import (
    OBJECTIVES,
    BinaryCrossEntropyConfig,
    BPRConfig,
    BPRMaxConfig,
    BPRPositiveVersusNegativeConfig,
    CrossEntropyConfig,
    GeneralizedBinaryCrossEntropyConfig,
    InBatchConfig,
    LossInputs,
    ObjectiveConfig,
    SamplingInputs,
    ScalableCrossEntropyConfig,
    TOP1MaxConfig,
)
from tests.objectives.table import ALL, N, compiled, evaluate, inputs, problem, table_of


@pytest.mark.parametrize("name", ALL)
def test_padding_is_worth_nothing(name, key):
    hidden, vectors, bias, _, weights = problem()
    total, weight, gradients = evaluate(ALL[name], hidden, vectors, bias, np.zeros(N, int), weights, key)
    assert total == 0
    assert weight == 0
    assert all(not np.asarray(g).any() for g in gradients)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1e3, 1e-6])
def test_extreme_scores_stay_finite(name, scale, key):
    total, _, gradients = evaluate(ALL[name], *problem(scale), key)
    assert np.isfinite(total)
    assert total >= 0
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", ALL)
def test_positions_without_weight_get_and_give_no_gradient(name, key):
    _, _, gradients = evaluate(ALL[name], *problem(), key)
    assert not np.asarray(gradients[0])[[4, 5]].any()
    assert np.asarray(gradients[0])[0].any() or "scalable" in name
    assert not np.asarray(gradients[1])[0].any()


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_close(name, key):
    full = evaluate(ALL[name], *problem(), key)
    half = evaluate(dataclasses.replace(ALL[name], dtype="bfloat16"), *problem(), key)
    np.testing.assert_allclose(half[0], full[0], rtol=0.03)
    for got, want in zip(half[2], full[2], strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=0.03 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("name", ALL)
def test_compiles_once_whatever_is_real_and_repeats_itself(name, key):
    first = evaluate(ALL[name], *problem(), key)
    programs = compiled._cache_size()
    again = evaluate(ALL[name], *problem(), key)
    evaluate(ALL[name], *problem()[:3], np.zeros(N, int), np.ones(N), jax.random.key(1))
    assert compiled._cache_size() == programs
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("name", ALL)
def test_works_under_vmap(name, key):
    cases = [problem(seed=seed) for seed in range(2)]
    keys = jax.random.split(key, 2)

    def loss(hidden, vectors, bias, targets, weights, key):
        table = table_of(ALL[name], vectors, bias)
        return (
            ALL[name].loss(LossInputs(hidden, table, targets.astype(jnp.int32), weights, key, inputs())).total
        )

    stacked = [jnp.asarray(np.stack(x), jnp.float32) for x in zip(*cases, strict=True)]
    got = jax.jit(jax.vmap(loss))(*stacked, keys)
    want = [evaluate(ALL[name], *case, k)[0] for case, k in zip(cases, keys, strict=True)]
    np.testing.assert_allclose(got, np.array(want), rtol=1e-5)


def test_configurations_survive_json_and_replace():
    for config in ALL.values():
        assert isinstance(config, ObjectiveConfig)
        assert type(config)(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
        assert dataclasses.replace(config, dtype="bfloat16").dtype == "bfloat16"
        assert hash(config) == hash(dataclasses.replace(config))


def test_every_registered_objective_is_tested():
    assert {OBJECTIVES.name_of(type(config)) for config in ALL.values()} == set(OBJECTIVES)
    with pytest.raises(
        UnknownNameError, match=r"unknown objective 'cross-entropi'.*Did you mean 'cross-entropy'"
    ):
        OBJECTIVES["cross-entropi"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CrossEntropyConfig(dtype="float16"),
            r"--objective\.dtype must be one of float32, bfloat16.*; got 'float16'",
        ),
        (
            lambda: CrossEntropyConfig(label_smoothing=1.0),
            r"--objective\.label-smoothing must be a finite number in \[0, 1\); got 1\.0",
        ),
        (lambda: CrossEntropyConfig(temperature=0), r"--objective\.temperature must be .* above 0; got 0"),
        (lambda: CrossEntropyConfig(temperature=float("inf")), r"temperature must be a finite .* got inf"),
        (lambda: CrossEntropyConfig(token_chunk=-1), r"token-chunk must be an integer at least 0; got -1"),
        (lambda: CrossEntropyConfig(item_tile=2.5), r"item-tile must be an integer .* got 2\.5"),
        (
            lambda: BinaryCrossEntropyConfig(n_negatives=0),
            r"n-negatives must be an integer at least 1; got 0",
        ),
        (lambda: BPRConfig(alpha=float("nan")), r"alpha must be a finite number at least 0; got nan"),
        (lambda: BPRConfig(count_smoothing=-1), r"count-smoothing must be a finite number at least 0"),
        (lambda: BPRMaxConfig(regularisation=-1), r"regularisation must be a finite number at least 0"),
        (
            lambda: GeneralizedBinaryCrossEntropyConfig(calibration=1.5),
            r"calibration must be a finite number in \[0, 1\]; got 1\.5",
        ),
        (lambda: TOP1MaxConfig(uniform_share=float("nan")), r"uniform-share must be a finite number"),
        (lambda: ScalableCrossEntropyConfig(bucket_items=0), r"bucket-items must be an integer at least 1"),
        (lambda: InBatchConfig(temperature=-1), r"temperature must be a finite number above 0"),
        (lambda: BPRPositiveVersusNegativeConfig(pvn_weight=-1), r"pvn-weight must be .* at least 0; got -1"),
        (
            lambda: BPRPositiveVersusNegativeConfig(temperature=0.5),
            r"expected --objective\.temperature 1, got 0\.5",
        ),
    ],
)
def test_settings_that_cannot_work_are_rejected(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_unknown_sampler_lists_those_that_exist():
    with pytest.raises(UnknownNameError, match=r"unknown sampler 'popular'.*Did you mean 'popularity'"):
        BPRConfig(sampler="popular")


def test_missing_inputs_are_named(key):
    hidden, vectors, bias, targets, weights = (jnp.asarray(x, jnp.float32) for x in problem())
    given = LossInputs(hidden, ItemTable(vectors, bias), targets.astype(jnp.int32), weights, key)
    with pytest.raises(
        ConfigError, match=r"sampling.item_counts: a sampler by popularity needs it, got None"
    ):
        BinaryCrossEntropyConfig(sampler="popularity").loss(given)
    with pytest.raises(ConfigError, match=r"sampling.item_counts: --objective.log-q needs it"):
        InBatchConfig().loss(given)
    seen = BinaryCrossEntropyConfig(exclude_seen=True)
    assert seen.needs_seen
    assert not BinaryCrossEntropyConfig().needs_seen
    with pytest.raises(ConfigError, match=r"sampling.users: exclude_seen needs it, got None"):
        seen.loss(given._replace(sampling=SamplingInputs()))
    with pytest.raises(NotImplementedError, match="ObjectiveConfig does not define loss"):
        ObjectiveConfig().loss(given)


def test_distances_need_a_table_of_points():
    config, points = BPRPositiveVersusNegativeConfig(), jnp.ones((4, 2))
    assert config.build(EuclideanItemTable.of_points(points)) == config.loss
    assert config.build(jax.eval_shape(EuclideanItemTable.of_points, points)) == config.loss, "shapes suffice"
    with pytest.raises(
        ConfigError, match="needs an encoder whose scores are distances: expected --encoder stosa"
    ):
        config.build(ItemTable(points))
    for name, other in ALL.items():
        if not isinstance(other, BPRPositiveVersusNegativeConfig):
            assert other.build(ItemTable(points)) == other.loss, name
