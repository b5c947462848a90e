"""The exact cross-entropy against its formula: values, gradients, chunking, extremes, precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import CrossEntropyConfig, LossInputs
from jaxrec.objectives.fused_cross_entropy import catalogue_cross_entropy, choose_settings, exponential
from tests.objectives import oracles

N, V, D = 13, 41, 4


def problem(seed=0, scale=1.0, n=N, v=V, with_bias=True):
    rng = np.random.default_rng(seed)
    hidden = scale * rng.normal(size=(n, D))
    vectors, bias = rng.normal(size=(v + 1, D)), rng.normal(size=v + 1) if with_bias else None
    targets = rng.integers(1, v + 1, n)
    weights = rng.uniform(0.5, 2, n) * (rng.uniform(size=n) < 0.7)
    targets[2], weights[2] = 0, 1.0  # a weight without a target counts for nothing
    return hidden, vectors, bias, targets, weights


def oracle(hidden, vectors, bias, targets, weights, config):
    rows = oracles.scores(hidden, vectors, bias, config.temperature)
    real = (targets > 0) & (weights > 0)
    losses = oracles.cross_entropy(rows, np.where(real, targets, 1), config.label_smoothing)
    return float((weights * real * losses).sum())


@partial(jax.jit, static_argnums=0)
def _evaluate(config, hidden, vectors, bias, targets, weights):
    def loss(hidden, vectors, bias):
        return config.loss(LossInputs(hidden, ItemTable(vectors, bias), targets, weights))

    wanted = (0, 1) if bias is None else (0, 1, 2)
    return jax.value_and_grad(loss, wanted, has_aux=True)(hidden, vectors, bias)


def evaluate(config, hidden, vectors, bias, targets, weights):
    """(sum, weight sum, gradients); compiled once for each configuration and shape."""
    arrays = [None if x is None else jnp.asarray(x, jnp.float32) for x in (hidden, vectors, bias, weights)]
    (total, weight), gradients = _evaluate(config, *arrays[:3], jnp.asarray(targets, jnp.int32), arrays[3])
    return total, weight, gradients


def check(config, case, tolerance=1e-5):
    hidden, vectors, bias, targets, weights = case
    total, weight, gradients = evaluate(config, *case)
    np.testing.assert_allclose(total, oracle(*case, config), rtol=tolerance)
    np.testing.assert_allclose(weight, weights[targets > 0].sum(), rtol=1e-6)
    expected = [
        oracles.numeric_gradient(lambda x: oracle(x, vectors, bias, targets, weights, config), hidden),
        oracles.numeric_gradient(lambda x: oracle(hidden, x, bias, targets, weights, config), vectors),
    ]
    if bias is not None:
        expected.append(
            oracles.numeric_gradient(lambda x: oracle(hidden, vectors, x, targets, weights, config), bias)
        )
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


# (positions, items) at a time: dividing N and V, not dividing, one (V tiles of one item also take the
# two-pass form), more than there are, and chosen.
@pytest.mark.parametrize("chunks", [(0, 0), (13, 41), (5, 7), (4, 1), (1, 10), (99, 99)])
def test_equals_the_formula_for_any_chunking(chunks):
    check(CrossEntropyConfig(token_chunk=chunks[0], item_tile=chunks[1]), problem())


@pytest.mark.parametrize(
    ("options", "with_bias"),
    [
        ({"label_smoothing": 0.2}, True),
        ({"temperature": 0.3}, True),
        ({"temperature": 0.5}, False),
        ({"label_smoothing": 0.1, "temperature": 2.0}, True),
    ],
    ids=str,
)
def test_options_equal_the_formula(options, with_bias):
    check(CrossEntropyConfig(token_chunk=4, item_tile=16, **options), problem(with_bias=with_bias))


@pytest.mark.parametrize("tile", [0, 1], ids=["one pass", "two passes"])
@pytest.mark.parametrize("scale", [30.0, 1e4, 1e-4])
def test_extreme_scores(scale, tile):
    case = problem(scale=scale)
    config = CrossEntropyConfig(token_chunk=4, item_tile=tile)
    total, _, gradients = evaluate(config, *case)
    np.testing.assert_allclose(total, oracle(*case, config), rtol=1e-5)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    rows = oracles.scores(*case[:3])
    p = np.exp(rows[:, 1:] - rows[:, 1:].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(N), np.maximum(case[3], 1) - 1] -= 1
    want = (case[4] * (case[3] > 0))[:, None] * p @ case[1][1:]
    # A score of 1e5 has a rounding error of 1e-2 in float32, and so have the probabilities.
    np.testing.assert_allclose(gradients[0], want, atol=2e-5 if scale < 1e3 else 0.1)


@pytest.mark.parametrize("tile", [0, 1], ids=["one pass", "two passes"])
def test_large_weights_scale_the_gradients(tile):
    """Far below the bound |h| max|e| of its scores, Z is as small as exp(-50); a weight may be as large as exp(60)."""
    hidden, vectors, bias, targets, weights = problem()
    hidden[:, 0], vectors[:, 0] = 10.0, 0.0
    hidden[:, 1:], vectors[7] = 0.1 * hidden[:, 1:], [0.0, 0.0, 9.0, 0.0]
    config = CrossEntropyConfig(token_chunk=4, item_tile=tile)
    total, weight, gradients = evaluate(config, hidden, vectors, bias, targets, weights)
    scaled = evaluate(config, hidden, vectors, bias, targets, np.exp(60.0) * weights)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.exp(-60.0) * np.asarray(x, np.float64), y, 1e-5, 1e-6),
        scaled,
        (total, weight, gradients),
    )


def test_a_confident_position_keeps_its_small_loss_and_gradient():
    hidden, vectors = jnp.array([[25.0, 0.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for dtype in ("float32", "bfloat16"):

        def loss(hidden, dtype=dtype):
            table, target = ItemTable(vectors), jnp.array([1], jnp.int32)
            return CrossEntropyConfig(dtype=dtype).loss(LossInputs(hidden, table, target, jnp.ones(1)))[0]

        value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
        np.testing.assert_allclose(value, np.exp(-25.0), rtol=1e-2 if dtype == "bfloat16" else 1e-5)
        np.testing.assert_allclose(gradient[0, 0], -np.exp(-25.0), rtol=1e-2 if dtype == "bfloat16" else 1e-5)


@pytest.mark.parametrize("tile", [0, 1], ids=["one pass", "two passes"])
def test_garbage_at_positions_without_weight_stays_out(tile):
    hidden, vectors, bias, targets, weights = problem()
    config = CrossEntropyConfig(token_chunk=4, item_tile=tile)
    clean = evaluate(config, hidden, vectors, bias, targets, weights)
    hidden[(weights == 0) | (targets == 0)] = np.nan
    dirty = evaluate(config, hidden, vectors, bias, targets, weights)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.parametrize("tile", [0, 1], ids=["one pass", "two passes"])
def test_nan_in_a_real_position_is_not_hidden(tile):
    hidden, vectors, bias, targets, weights = problem()
    hidden[np.flatnonzero((weights > 0) & (targets > 0))[0], 1] = np.nan
    total, *_ = evaluate(CrossEntropyConfig(item_tile=tile), hidden, vectors, bias, targets, weights)
    assert np.isnan(total)


@pytest.mark.parametrize("n", [0, N])
def test_all_padding_is_zero(n):
    hidden, vectors, bias, _, _ = problem()
    total, weight, gradients = evaluate(
        CrossEntropyConfig(), hidden[:n], vectors, bias, np.zeros(n, int), np.ones(n)
    )
    assert total == 0
    assert weight == 0
    assert all(not np.asarray(g).any() for g in gradients)


def test_loss_alone_equals_loss_with_gradient():
    hidden, vectors, _, targets, weights = problem()
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, vectors)]
    rest = (jnp.asarray(targets, jnp.int32), jnp.asarray(weights * (targets > 0), jnp.float32))

    def loss(hidden, vectors):
        return catalogue_cross_entropy(LossInputs(hidden, ItemTable(vectors), *rest), token_chunk=4)

    np.testing.assert_allclose(
        jax.jit(loss)(*arrays), jax.jit(jax.value_and_grad(loss))(*arrays)[0], rtol=1e-6
    )


def test_gradient_of_the_weights_is_the_loss_of_the_position():
    hidden, vectors, _, targets, _ = problem()
    targets[2] = 1
    weights = np.ones(N)

    def loss(w):
        table = ItemTable(jnp.asarray(vectors, jnp.float32))
        inputs = LossInputs(jnp.asarray(hidden, jnp.float32), table, jnp.asarray(targets, jnp.int32), w)
        return catalogue_cross_entropy(inputs, token_chunk=4)

    rows = oracles.scores(hidden, vectors, None)
    want = oracles.cross_entropy(rows, targets)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.asarray(weights, jnp.float32)), want, rtol=1e-5)


@pytest.mark.parametrize("tile", [0, 1], ids=["one pass", "two passes"])
def test_over_seeds_equals_one_at_a_time(tile):
    cases = [problem(seed) for seed in range(3)]
    cases[1][4][4:] = 0  # another number of real positions
    stacked = [jnp.asarray(np.stack(x), jnp.float32) for x in zip(*cases, strict=True)]

    def loss(hidden, vectors, bias, targets, weights):
        targets = targets.astype(jnp.int32)
        config = CrossEntropyConfig(token_chunk=4, item_tile=tile)
        return config.loss(LossInputs(hidden, ItemTable(vectors, bias), targets, weights)).total

    gradient = jax.value_and_grad(loss, (0, 1, 2))
    got = jax.jit(jax.vmap(gradient))(*stacked)
    want = [jax.jit(gradient)(*(x[i] for x in stacked)) for i in range(3)]
    want = jax.tree.map(lambda *x: np.stack(x), *want)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), got, want)


def test_compiles_once_whatever_is_real():
    hidden, vectors, bias, targets, _ = problem()
    sizes = set()
    for n_real in (0, 1, N):
        evaluate(CrossEntropyConfig(), hidden, vectors, bias, targets, np.arange(N) < n_real)
        sizes.add(_evaluate._cache_size())
    assert len(sizes) == 1


@pytest.mark.parametrize("tile", [0, 1], ids=["one pass", "two passes"])
def test_bfloat16_is_close_and_keeps_large_biases(tile):
    case = problem()
    case[2][:] += np.linspace(0, 300, V + 1)  # bfloat16 alone would round these by up to 1
    case[3][:] = np.where(case[3] > 0, V, 0)
    half = evaluate(CrossEntropyConfig(dtype="bfloat16", token_chunk=4, item_tile=tile), *case)
    full = evaluate(CrossEntropyConfig(token_chunk=4, item_tile=tile), *case)
    np.testing.assert_allclose(half[0], full[0], rtol=0.02)
    for got, want in zip(half[2], full[2], strict=True):
        np.testing.assert_allclose(got, want, atol=0.02 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_of_a_popular_item_is_summed_in_float32(dtype):
    n = 5000
    hidden = jnp.ones((n, 1))
    targets = jnp.full((n,), 2, jnp.int32)
    vectors = jnp.array(
        [[0.0], [40.0], [0.0]]
    )  # item 1 takes all the probability: each position gives 2 a unit

    def loss(vectors):
        inputs = LossInputs(hidden, ItemTable(vectors), targets, jnp.ones(n))
        return CrossEntropyConfig(dtype=dtype).loss(inputs)[0]

    gradient = jax.jit(jax.grad(loss))(vectors)[:, 0]
    assert gradient[2] == -n
    # As an operand, each unit may be rounded, but not their sum: in bfloat16 it would stop at 256.
    np.testing.assert_allclose(gradient[1], n, rtol=1e-5 if dtype == "float32" else 2**-8)


def test_memory_stays_bounded_for_a_million_items():
    table = ItemTable(jax.ShapeDtypeStruct((1_000_001, 64), jnp.float32))
    hidden, targets, weights = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((3200, 64), jnp.float32), ((3200,), jnp.int32), ((3200,), jnp.float32))
    )

    def loss(hidden, table, targets, weights):
        return CrossEntropyConfig().loss(LossInputs(hidden, table, targets, weights))[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, table, targets, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_chunks_follow_the_shapes():
    small, large, huge = (choose_settings(25_600, v, 64) for v in (3_418, 57_291, 1_000_001))
    assert small.single_pass
    assert large.single_pass
    assert not huge.single_pass
    assert small.token_chunk > large.token_chunk >= 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exponential(dtype):
    x = jnp.concatenate([jnp.linspace(-90, 60, 4001), jnp.array([-jnp.inf, -1e30, 0.0])])
    drop = jnp.zeros(x.shape, bool).at[7].set(True)
    got = np.asarray(exponential(x, drop, dtype).astype(jnp.float32), np.float64)
    assert got[7] == 0
    want = np.exp(np.maximum(np.asarray(x, np.float64), -87))
    error = np.abs(got / want - 1)[np.arange(len(x)) != 7]
    bound = (2e-7 + 1e-7 * np.minimum(np.abs(np.asarray(x, np.float64)), 90))[np.arange(len(x)) != 7]
    assert (error <= bound + (2**-8 if dtype == "bfloat16" else 0)).all()
