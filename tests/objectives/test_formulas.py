"""Every objective equals its formula, written plainly in float64: values and gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import (
    BPRPositiveVersusNegativeConfig,
    CrossEntropyConfig,
    GeneralizedBinaryCrossEntropyConfig,
    LossInputs,
    SampledSoftmaxConfig,
    ScalableCrossEntropyConfig,
)
from jaxrec.objectives import sampled as sampled_module
from jaxrec.objectives.sampled import Scores
from jaxrec.objectives.samplers import draw
from tests.objectives import oracles
from tests.objectives.table import ALL, PVN, ROUTES, SAMPLED, N, V, compiled, evaluate, inputs, problem


@partial(jax.jit, static_argnums=0)
def _draw(config, hidden, vectors, bias, targets, weights, key):
    drawn_from = LossInputs(hidden, ItemTable(vectors, bias), targets, weights, key, inputs())
    return draw(config.sampler, config._request(drawn_from))


def negatives_of(config, case, key):
    hidden, vectors, bias, targets, weights = (jnp.asarray(x, jnp.float32) for x in case)
    drawn = _draw(config, hidden, vectors, bias, targets.astype(jnp.int32), weights, key)
    return [np.asarray(np.broadcast_to(x, drawn.valid.shape)) for x in drawn]


def sampled_oracle(config, of_position, drawn, hidden, vectors, bias, targets, weights):
    rows = oracles.scores(hidden, vectors, bias, config.temperature)
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


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    """Each way to compute sampled objectives; what was compiled for another is forgotten."""
    for constant, value in ROUTES[request.param].items():
        monkeypatch.setattr(sampled_module, constant, value)
    compiled.clear_cache()
    yield request.param
    compiled.clear_cache()


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
        rows = oracles.scores(hidden, vectors, bias, config.temperature)
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
    chosen = config.buckets(hidden, ItemTable(vectors), jnp.asarray(weights, jnp.float32), key)
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


@pytest.mark.parametrize("mix", [True, False])
def test_buckets_hold_what_is_nearest_to_their_direction(mix, key):
    """Largest projections on each direction, of real positions and of items; with ``mix``, of mixed real states."""
    hidden, vectors, _, targets, weights = problem()
    real = weights * (targets > 0) > 0
    config = ScalableCrossEntropyConfig(n_buckets=8, bucket_positions=2, bucket_items=4, mix=mix)
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, vectors, real)]
    positions, items = config.buckets(arrays[0], ItemTable(arrays[1]), arrays[2], key)
    noise = np.asarray(jax.random.normal(key, (8, N if mix else hidden.shape[1])), np.float64)
    directions = noise @ np.where(real[:, None], hidden, 0.0) if mix else noise
    for direction, position, item in zip(directions, positions, items, strict=True):
        of_positions = np.where(real, hidden @ direction, -np.inf)
        of_items = np.where(np.arange(V + 1) > 0, vectors @ direction, -np.inf)
        assert position.tolist() == np.argsort(-of_positions)[:2].tolist()
        assert item.tolist() == np.argsort(-of_items)[:4].tolist()
    assert len({tuple(item.tolist()) for item in items}) > 1, "directions differ"


def test_buckets_by_default_are_twice_the_root_of_the_positions(key):
    hidden, vectors, _, _, weights = (jnp.asarray(x, jnp.float32) for x in problem())
    positions, items = ScalableCrossEntropyConfig().buckets(hidden, ItemTable(vectors), weights, key)
    assert positions.shape == (6, 6)  # 2 ceil(sqrt(6)), and no more than there are
    assert items.shape == (6, V)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("score", [0.0, 3.0, -3.0, 40.0, -40.0, 1e4, -1e4])
def test_gbce_and_its_gradient_at_extremes(score, calibration):
    """Against the paper's formula for beta; a catalogue so large that sampling is rare."""
    n, v = 2, 100_000
    config = GeneralizedBinaryCrossEntropyConfig(n_negatives=n, calibration=calibration)
    negatives = np.array([[-score, score / 2]])

    def loss(positive, negative):
        valid, rows = jnp.ones(negative.shape, bool), ItemTable(jnp.zeros((1, 1)))
        scores = Scores(
            positive, negative, valid, jnp.zeros((1, n)), jnp.zeros((1, 1)), rows, lambda _: negative, v
        )
        return config.position_losses(scores)[0]

    value_and_grad = jax.value_and_grad(loss, (0, 1))
    value, (of_positive, of_negative) = value_and_grad(
        jnp.array([score], jnp.float32), jnp.asarray(negatives, jnp.float32)
    )
    alpha = n / (v - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    want = (beta * oracles.softplus(-score) + oracles.softplus(negatives).sum()) / (n + 1)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(
        of_positive, [-beta * oracles.sigmoid(-score) / (n + 1)], rtol=1e-4, atol=1e-37
    )
    np.testing.assert_allclose(of_negative, oracles.sigmoid(negatives) / (n + 1), rtol=1e-4, atol=1e-37)
