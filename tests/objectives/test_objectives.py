"""One table of all objectives drives the same checks: formula, padding, extremes, compilation, precision."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import ConfigError, UnknownNameError
from jaxrec.models.base import ItemTable
from jaxrec.objectives import (
    OBJECTIVES,
    BinaryCrossEntropyConfig,
    BPRConfig,
    BPRMaxConfig,
    BPRPositiveVersusNegativeConfig,
    CrossEntropyConfig,
    GeneralizedBinaryCrossEntropyConfig,
    InBatchConfig,
    ObjectiveConfig,
    SampledSoftmaxConfig,
    SamplingInputs,
    ScalableCrossEntropyConfig,
    TOP1MaxConfig,
)
from jaxrec.objectives import sampled as sampled_module
from jaxrec.objectives.samplers import Request, draw
from tests.objectives import oracles

N, V, D = 6, 9, 3

# Objectives with sampled negatives: configuration and the oracle of one position.
SAMPLED = {
    "bce": (BinaryCrossEntropyConfig(n_negatives=3), oracles.bce),
    "gbce": (GeneralizedBinaryCrossEntropyConfig(n_negatives=4, calibration=0.75), oracles.gbce(0.75, 4)),
    "bpr": (BPRConfig(n_negatives=2, sampler="popularity", shared=True), oracles.bpr),
    "bpr-max": (BPRMaxConfig(n_negatives=4, regularisation=0.5), oracles.bpr_max(0.5)),
    "top1-max": (TOP1MaxConfig(n_negatives=4, sampler="mixed"), oracles.top1_max),
    "sampled-softmax": (SampledSoftmaxConfig(n_negatives=5, sampler="popularity"), oracles.sampled_softmax),
    "sampled-softmax, own": (SampledSoftmaxConfig(n_negatives=5, shared=False), oracles.sampled_softmax),
    "sampled-softmax, seen": (
        SampledSoftmaxConfig(n_negatives=5, exclude_seen=True, temperature=0.5, cosine=True),
        oracles.sampled_softmax,
    ),
}
PVN = {
    "bpr-pvn": BPRPositiveVersusNegativeConfig(n_negatives=2, pvn_weight=0.7),
    "bpr-pvn, shared": BPRPositiveVersusNegativeConfig(n_negatives=4, pvn_weight=0.2, shared=True),
}
ALL = (
    {name: config for name, (config, _) in SAMPLED.items()}
    | PVN
    | {
        "cross-entropy": CrossEntropyConfig(),
        "in-batch": InBatchConfig(),
        "in-batch, plain": InBatchConfig(log_q=False, temperature=0.5, cosine=True),
        "scalable-cross-entropy": ScalableCrossEntropyConfig(n_buckets=3, bucket_positions=3, bucket_items=4),
        "hard bce": BinaryCrossEntropyConfig(n_negatives=2, sampler="hard"),
    }
)


def problem(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    hidden = scale * rng.normal(size=(N, D))
    vectors, bias = rng.normal(size=(V + 1, D)), rng.normal(size=V + 1)
    targets = np.array([1, 4, 4, 9, 0, 2])
    weights = np.array([1.0, 0.5, 2.0, 1.0, 1.0, 0.0])
    return hidden, vectors, bias, targets, weights


def inputs():
    return SamplingInputs(
        item_counts=jnp.asarray([0, 5, 1, 2, 9, 3, 1, 4, 2, 7], jnp.float32),
        users=jnp.asarray([0, 1, 1, 0, -1, -1], jnp.int32),
        seen_items=jnp.asarray([1, 3, 4, 2, 8, 9], jnp.int32),
        seen_offsets=jnp.asarray([0, 3, 6], jnp.int32),
    )


@partial(jax.jit, static_argnums=0)
def _evaluate(config, hidden, vectors, bias, *rest):
    def loss(hidden, vectors, bias):
        return config(hidden, ItemTable(vectors, bias), *rest)

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(hidden, vectors, bias)


def evaluate(config, hidden, vectors, bias, targets, weights, key):
    """(sum, weight sum, gradients); compiled once for each configuration, whatever test asks."""
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, vectors, bias)]
    rest = (jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32), key, inputs())
    (total, weight), gradients = _evaluate(config, *arrays, *rest)
    return total, weight, gradients


@partial(jax.jit, static_argnums=0)
def _draw(config, hidden, vectors, bias, targets, weights, key):
    options = (config.n_negatives, config.shared, config.alpha, config.uniform_share)
    request = Request(hidden, ItemTable(vectors, bias), targets, weights, key, inputs(), *options)
    return draw(config.sampler, request, config.exclude_seen)


def negatives_of(config, case, key):
    hidden, vectors, bias, targets, weights = (jnp.asarray(x, jnp.float32) for x in case)
    drawn = _draw(config, hidden, vectors, bias, targets.astype(jnp.int32), weights, key)
    return [np.asarray(np.broadcast_to(x, drawn.valid.shape)) for x in drawn]


def sampled_oracle(config, of_position, drawn, hidden, vectors, bias, targets, weights):
    rows = oracles.scores(hidden, vectors, bias, config.temperature, config.cosine)
    items, log_expected, valid = drawn
    total = 0.0
    for i in range(N):
        if targets[i] > 0 and weights[i] > 0:
            chosen = items[i][valid[i]]
            total += weights[i] * of_position(
                rows[i, targets[i]], rows[i, chosen], log_expected[i][valid[i]], V
            )
    return total


def compare(config, function, case, key):
    """Value and gradients of ``config`` against ``function(hidden, vectors, bias)`` in float64."""
    total, weight, gradients = evaluate(config, *case, key)
    np.testing.assert_allclose(total, function(*case[:3]), rtol=1e-5)
    for k, got in enumerate(gradients):
        want = oracles.numeric_gradient(lambda x, k=k: function(*case[:k], x, *case[k + 1 : 3]), case[k])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * max(1.0, np.abs(want).max()))
    return weight


# Constants of `jaxrec.objectives.sampled` that choose how it computes the same.
ROUTES = {
    "gathered": {"ITEMS_PER_GATHERED_ROW": 0},
    "gathered, chunks": {"ITEMS_PER_GATHERED_ROW": 0, "CHUNK_BYTES": 200},
    "all scored": {},
    "all scored, chunks": {"CACHED_BYTES": 80},
}


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    """Each way to compute sampled objectives; what was compiled for another is forgotten."""
    for constant, value in ROUTES[request.param].items():
        monkeypatch.setattr(sampled_module, constant, value)
    _evaluate.clear_cache()
    yield request.param
    _evaluate.clear_cache()


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_objectives_equal_their_formula(name, route, key):
    config, of_position = SAMPLED[name]
    case = problem()
    drawn = negatives_of(config, case, key)

    def function(hidden, vectors, bias):
        return sampled_oracle(config, of_position, drawn, hidden, vectors, bias, *case[3:])

    assert compare(config, function, case, key) == 4.5


@pytest.mark.parametrize("name", PVN)
def test_bpr_pvn_equals_its_formula(name, route, key):
    config, case = PVN[name], problem()
    targets, weights = case[3], case[4] * (case[3] > 0)
    items, _, valid = negatives_of(config, case, key)

    def function(hidden, vectors, bias):
        return sum(
            weights[i]
            * oracles.bpr_pvn(config.pvn_weight, hidden[i], vectors, bias, targets[i], items[i][valid[i]])
            for i in np.flatnonzero(weights)
        )

    without = dataclasses.replace(config, pvn_weight=0.0)
    compare(config, function, case, key)
    assert evaluate(config, *case, key)[0] > evaluate(without, *case, key)[0], "pvn is at work"


def test_bpr_pvn_is_stosa_s_loss_on_gaussians(key):
    """From means and covariances, without the common form of scores: STOSA's equations."""
    rng = np.random.default_rng(1)
    means, deviations = rng.normal(size=(V + 1, 2)), rng.uniform(0.2, 2.0, (V + 1, 2))
    states = rng.normal(size=(N, 2)), rng.uniform(0.2, 2.0, (N, 2))
    points, hidden = np.hstack([means, deviations]), np.hstack(states)
    case = (hidden, 2 * points, -(points**2).sum(1), *problem()[3:])
    config = BPRPositiveVersusNegativeConfig(pvn_weight=0.5)
    (items, _, _), targets, weights = negatives_of(config, case, key), case[3], case[4] * (case[3] > 0)

    def wasserstein(mean, deviation, j):
        return ((mean - means[j]) ** 2).sum() + ((deviation - deviations[j]) ** 2).sum()

    total = 0.0
    for i in np.flatnonzero(weights):
        y, j = targets[i], items[i, 0]
        near, far = (wasserstein(states[0][i], states[1][i], item) for item in (y, j))
        pvn = max(0.0, near - wasserstein(means[y], deviations[y], j))
        total += weights[i] * (-np.log(oracles.sigmoid(far - near)) + 0.5 * pvn)
    np.testing.assert_allclose(evaluate(config, *case, key)[0], total, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sampler", ["uniform", "popularity", "mixed", "hard"])
def test_sampled_softmax_is_exact_when_the_sample_is_the_catalogue(sampler, shared, key):
    case = problem()
    sampled = evaluate(SampledSoftmaxConfig(n_negatives=V, sampler=sampler, shared=shared), *case, key)
    exact = evaluate(CrossEntropyConfig(), *case, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sampled, exact)


def test_sampled_softmax_normaliser_is_unbiased(key):
    case = problem()
    config = SampledSoftmaxConfig(n_negatives=4, sampler="popularity", alpha=0.5)
    rows = oracles.scores(*case[:3])
    estimates = []
    for k in jax.random.split(key, 300):
        items, log_expected, valid = negatives_of(config, case, k)
        estimates.append((np.exp(rows[0][items[0]] - log_expected[0]) * valid[0]).sum())
    want = np.exp(rows[0, 1:]).sum() - np.exp(rows[0, 1])
    np.testing.assert_allclose(np.mean(estimates), want, atol=4 * np.std(estimates) / np.sqrt(300))


@pytest.mark.parametrize("copies", [1, 2], ids=["fewer positions than items", "more positions"])
@pytest.mark.parametrize("name", ["in-batch", "in-batch, plain"])
def test_in_batch_equals_its_formula(name, copies, key):
    config = ALL[name]
    case = problem()
    case = (np.tile(case[0], (copies, 1)), *case[1:3], *(np.tile(x, copies) for x in case[3:]))
    targets, weights = case[3], case[4] * (case[3] > 0)
    counts = np.asarray(inputs().item_counts, np.float64)

    def function(hidden, vectors, bias):
        rows = oracles.scores(hidden, vectors, bias, config.temperature, config.cosine)
        if config.log_q:
            rows = rows - np.log(np.maximum(counts, 1) / counts[1:].sum())[None, :]
        total = 0.0
        for i in np.flatnonzero(weights):
            others = [rows[i, y] for j, y in enumerate(targets) if weights[j] > 0 and y != targets[i]]
            total += weights[i] * oracles.sampled_softmax(rows[i, targets[i]], np.array(others), 0.0, V)
        return total

    compare(config, function, case, key)


def test_scalable_cross_entropy_with_one_bucket_of_everything_is_exact(key):
    case = problem()
    config = ScalableCrossEntropyConfig(n_buckets=2, bucket_positions=N, bucket_items=V)
    got, want = evaluate(config, *case, key), evaluate(CrossEntropyConfig(), *case, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("mix", [True, False])
def test_scalable_cross_entropy_equals_its_formula(mix, key):
    config = ScalableCrossEntropyConfig(n_buckets=2, bucket_positions=2, bucket_items=4, mix=mix)
    case = problem()
    weights = case[4] * (case[3] > 0)
    hidden, vectors, _, _ = (jnp.asarray(x, jnp.float32) for x in case[:4])
    chosen = config._buckets(hidden, ItemTable(vectors), jnp.asarray(weights, jnp.float32), key, 2, 4)
    positions, items = (np.asarray(x) for x in chosen)

    def function(hidden, vectors, bias):
        rows = oracles.scores(hidden, vectors, bias)
        worst = {}
        for bucket, candidates in zip(positions, items, strict=True):
            for i in (i for i in bucket if weights[i] > 0):
                others = np.array([rows[i, j] for j in candidates if j != case[3][i]])
                loss = oracles.sampled_softmax(rows[i, case[3][i]], others, 0.0, V)
                worst[i] = max(worst.get(i, 0.0), loss)
        function.covered = sum(weights[i] for i in worst)
        return sum(weights[i] * loss for i, loss in worst.items())

    assert compare(config, function, case, key) == pytest.approx(function.covered)
    assert (items > 0).all()


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
    compiled = _evaluate._cache_size()
    again = evaluate(ALL[name], *problem(), key)
    evaluate(ALL[name], *problem()[:3], np.zeros(N, int), np.ones(N), jax.random.key(1))
    assert _evaluate._cache_size() == compiled
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("name", ALL)
def test_works_under_vmap(name, key):
    cases = [problem(seed=seed) for seed in range(2)]
    keys = jax.random.split(key, 2)

    def loss(hidden, vectors, bias, targets, weights, key):
        return ALL[name](hidden, ItemTable(vectors, bias), targets.astype(jnp.int32), weights, key, inputs())[
            0
        ]

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
            "dtype: expected one of 'float32', 'bfloat16', got 'float16'",
        ),
        (
            lambda: CrossEntropyConfig(label_smoothing=1.0),
            r"label_smoothing: expected a number in \[0, 1\), got 1.0",
        ),
        (lambda: CrossEntropyConfig(temperature=0), r"temperature: expected a number in \(0, inf\), got 0"),
        (lambda: CrossEntropyConfig(token_chunk=-1), r"token_chunk: expected a number in \[0, inf\), got -1"),
        (
            lambda: BinaryCrossEntropyConfig(n_negatives=0),
            r"n_negatives: expected a number in \[1, inf\), got 0",
        ),
        (lambda: BPRConfig(sampler="popular"), "sampler: expected one of 'uniform', .* got 'popular'"),
        (lambda: BPRMaxConfig(regularisation=-1), "regularisation: expected a number in"),
        (
            lambda: GeneralizedBinaryCrossEntropyConfig(calibration=1.5),
            r"calibration: expected .* \[0, 1\], got 1.5",
        ),
        (lambda: TOP1MaxConfig(uniform_share=float("nan")), "uniform_share: expected a number in"),
        (lambda: ScalableCrossEntropyConfig(bucket_items=0), "bucket_items: expected a number in"),
        (lambda: InBatchConfig(temperature=-1), "temperature: expected a number in"),
        (
            lambda: BPRPositiveVersusNegativeConfig(pvn_weight=-1),
            r"pvn_weight: expected a number in \[0, inf\)",
        ),
        (
            lambda: BPRPositiveVersusNegativeConfig(cosine=True),
            "expected temperature 1 and cosine off, got temperature 1 and cosine True",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_missing_inputs_are_named(key):
    hidden, vectors, bias, targets, weights = (jnp.asarray(x, jnp.float32) for x in problem())
    rest = (ItemTable(vectors, bias), targets.astype(jnp.int32), weights, key)
    popular = BinaryCrossEntropyConfig(sampler="popularity")
    assert popular.needs_counts
    assert not popular.needs_seen
    with pytest.raises(
        ConfigError, match=r"inputs.item_counts: the popularity sampler needs it, got None; pass"
    ):
        popular(hidden, *rest)
    with pytest.raises(ConfigError, match=r"inputs.item_counts: InBatchConfig.log_q needs it"):
        InBatchConfig()(hidden, *rest)
    seen = BinaryCrossEntropyConfig(exclude_seen=True)
    assert seen.needs_seen
    with pytest.raises(ConfigError, match=r"inputs.users: exclude_seen needs it, got None"):
        seen(hidden, *rest, SamplingInputs())
    with pytest.raises(ConfigError, match=r"needs an item table of Gaussians .* got a table without biases"):
        BPRPositiveVersusNegativeConfig()(hidden, ItemTable(vectors), *rest[1:])
    with pytest.raises(TypeError, match="ObjectiveConfig is a base class"):
        ObjectiveConfig()(hidden, *rest)
