"""The shared layers against plain NumPy, gradients against finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn.layers import Dense, Dropout, LayerNorm, dropout_mask, layer_norm
from jaxrec.nn.precision import matmul


def arrays(seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(2, 3, 4)).astype(np.float32), generator.normal(size=(4, 5)).astype(
        np.float32
    )


def test_matmul_and_its_gradient():
    """d/dx sum(c * x W) = c W^T and d/dW = x^T c, by hand."""
    x, kernel = arrays()
    cotangent = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)
    y, pull = jax.vjp(lambda a, b: matmul(a, b, jnp.float32), x, kernel)
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-5, atol=1e-5)
    x_bar, kernel_bar = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(x_bar, cotangent @ kernel.T, rtol=1e-5, atol=1e-5)
    expected = np.zeros_like(kernel)
    for row in range(2):
        for position in range(3):
            expected += np.outer(x[row, position], cotangent[row, position])
    np.testing.assert_allclose(kernel_bar, expected, rtol=1e-5, atol=1e-5)


def test_matmul_gradient_against_finite_differences():
    x, kernel = (a.astype(np.float64) for a in arrays())
    weights = np.random.default_rng(2).normal(size=(2, 3, 5))
    loss = lambda a, b: float((np.tanh(a @ b) * weights).sum())  # noqa: E731
    gradient = jax.grad(
        lambda a, b: (jnp.tanh(matmul(a, b)) * jnp.asarray(weights, jnp.float32)).sum(), (0, 1)
    )
    found = gradient(x.astype(np.float32), kernel.astype(np.float32))
    for which, value in enumerate((x, kernel)):
        numeric = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            step = np.zeros_like(value)
            step[index] = 1e-6
            pair = [(x, kernel), (x, kernel)]
            pair = [
                tuple(v + s * step if i == which else v for i, v in enumerate(p))
                for p, s in zip(pair, (1, -1), strict=True)
            ]
            numeric[index] = (loss(*pair[0]) - loss(*pair[1])) / 2e-6
        np.testing.assert_allclose(found[which], numeric, rtol=2e-4, atol=2e-4)


def test_matmul_rounds_operands_and_sums_in_float32():
    x, kernel = arrays()
    low = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32))  # noqa: E731
    y, pull = jax.vjp(lambda a, b: matmul(a, b, jnp.bfloat16), x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, low(x) @ low(kernel), rtol=1e-5, atol=1e-5)
    x_bar, kernel_bar = pull(jnp.ones_like(y))
    assert (x_bar.dtype, kernel_bar.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(x_bar, np.ones((2, 3, 5)) @ low(kernel).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense(use_bias, key):
    x, _ = arrays()
    layer = Dense(5, use_bias=use_bias)
    params = layer.init(key, x)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 4 * 5 + (5 if use_bias else 0)
    if use_bias:
        params = {**params, "bias": jnp.arange(5, dtype=jnp.float32)}
    expected = x @ np.asarray(params["kernel"]) + (np.arange(5) if use_bias else 0)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.999])
def test_dropout_mask_keeps_what_it_says(rate, key):
    keep, probability = dropout_mask(key, (300, 301), rate)
    assert keep.shape == (300, 301)
    assert keep.dtype == jnp.bool_
    assert probability == pytest.approx(1 - rate, abs=1 / (512 if rate < 0.998 else 256))
    deviation = np.sqrt(probability * (1 - probability) / keep.size)
    assert abs(float(keep.mean()) - probability) < 5 * deviation
    # Neighbours are independent: equal at the rate of independent draws.
    agree = float((keep[:, 1:] == keep[:, :-1]).mean())
    assert agree == pytest.approx(probability**2 + (1 - probability) ** 2, abs=0.02)


def test_dropout(key):
    x = jnp.ones((50, 41))
    layer = Dropout(0.25)
    apply = lambda train, seed=0: layer.apply({}, x, train, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    np.testing.assert_array_equal(apply(False), x)
    y = apply(True)
    assert set(np.unique(y).tolist()) == {0.0, np.float32(1 / 0.75)}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.06), "expectation is kept"
    np.testing.assert_array_equal(y, apply(True))
    assert not np.array_equal(y, apply(True, seed=1))
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, True), x)
    np.testing.assert_array_equal(
        jax.grad(lambda v: layer.apply({}, v, True, rngs={"dropout": key}).sum())(x) > 0,
        layer.apply({}, x, True, rngs={"dropout": key}) > 0,
    )


def test_layer_norm_equals_numpy_with_its_gradients():
    x = 3 * jax.random.normal(jax.random.key(0), (2, 5, 7)) + 1
    scale, bias, cotangent = (
        jax.random.normal(jax.random.key(i), size) for i, size in ((1, 7), (2, 7), (3, (2, 5, 7)))
    )
    out, pull = jax.vjp(lambda x, scale, bias: layer_norm(x, scale, bias, 1e-6), x, scale, bias)
    wide, factor, shift, direction = (np.asarray(a, np.float64) for a in (x, scale, bias, cotangent))

    def plain(x, factor=factor, shift=shift):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * factor + shift

    np.testing.assert_allclose(out, plain(wide), atol=1e-5)
    # Central differences, one element at a time.
    numeric = np.zeros_like(wide)
    for index in np.ndindex(wide.shape):
        step = np.zeros_like(wide)
        step[index] = 1e-5
        numeric[index] = (direction * (plain(wide + step) - plain(wide - step))).sum() / 2e-5
    x_bar, scale_bar, bias_bar = pull(cotangent)
    np.testing.assert_allclose(x_bar, numeric, atol=1e-5)
    unit = plain(wide, 1.0, 0.0)
    np.testing.assert_allclose(scale_bar, (direction * unit).sum((0, 1)), atol=1e-5)
    np.testing.assert_allclose(bias_bar, direction.sum((0, 1)), atol=1e-5)


def test_layer_norm_of_equal_values_is_the_bias_with_finite_gradients():
    x, scale, bias = jnp.full((3, 4), 2.0), jnp.ones(4), jnp.arange(4.0)
    np.testing.assert_array_equal(
        LayerNorm(1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)[0], bias
    )
    assert jnp.isfinite(jax.grad(lambda x: layer_norm(x, scale, bias, 1e-6).sum())(x)).all()


def test_layer_norm_has_the_parameters_of_flax():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    ours, theirs = (norm.init(jax.random.key(1), x) for norm in (LayerNorm(1e-6), nn.LayerNorm(1e-6)))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    np.testing.assert_allclose(LayerNorm(1e-6).apply(ours, x), nn.LayerNorm(1e-6).apply(theirs, x), atol=1e-6)
