"""Groups of rows and stretches of time, which must change nothing; precision of products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import (
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    PointwiseAttentionConfig,
    RefinedAttentionConfig,
    allowed_positions,
    module,
)
from jaxrec.attention.functional import attend_in_stretches, stretch_count
from jaxrec.attention.kernelised import toeplitz
from jaxrec.attention.module import automatic_rows_per_group, map_rows
from jaxrec.attention.softmax import softmax_attention
from jaxrec.nn.precision import einsum, matmul
from tests.attention.small import CONTEXT, QUICK_JIT, SEGMENTS, X, applied, initialised
from tests.attention.variants import QUICK


@pytest.mark.parametrize(
    ("rows", "scores", "backend", "devices", "expected"),
    [
        (128, 40_000, "cpu", 1, 16),
        (128, 200_000, "cpu", 1, 4),
        (128, 100, "cpu", 1, 128),
        (127, 40_000, "cpu", 1, 25),
        (8, 5_000_000, "cpu", 1, 1),
        (128, 40_000, "cpu", 8, 128),
        (128, 40_000, "gpu", 1, 128),
    ],
)
def test_automatic_groups(rows, scores, backend, devices, expected):
    assert automatic_rows_per_group(rows, scores, backend, devices) == expected


def test_stretches_of_time_only_where_they_pay():
    assert [stretch_count(length, "cpu", "causal") for length in (1, 31, 32, 50, 200)] == [1, 1, 2, 3, 4]
    assert stretch_count(200, "gpu", "causal") == stretch_count(200, "cpu", "bidirectional") == 1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_stretches_of_time_change_nothing(count):
    """Values, gradients and dropout, with two queries a time, a bias, and a key outside the row."""
    keys = iter(jax.random.split(jax.random.key(2), 8))
    q = jax.random.normal(next(keys), (3, 12, 2, 4))
    k, v = (jax.random.normal(next(keys), (3, 7, 2, 4)) for _ in range(2))
    bias = jax.random.normal(next(keys), (1, 2, 12, 7))
    keep = jax.random.bernoulli(next(keys), 0.7, (3, 2, 12, 7))
    mask = jnp.repeat(allowed_positions(SEGMENTS)[:, None], 2, axis=2)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=True)

    def loss(count, q, k, v, bias):
        out, _ = attend_in_stretches(
            softmax_attention,
            q,
            k,
            v,
            bias,
            mask,
            keep=keep,
            probability=0.7,
            count=count,
            queries_per_position=2,
        )
        return jnp.sin(out).sum(), out

    gradient = jax.jit(
        jax.grad(loss, argnums=(1, 2, 3, 4), has_aux=True), static_argnums=0, compiler_options=QUICK
    )
    inputs = (q, k, v, bias)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradient(count, *inputs),
        gradient(1, *inputs),
    )


@pytest.mark.parametrize(
    "config",
    [
        RefinedAttentionConfig(variant="simple"),
        RefinedAttentionConfig(depth=2, residual="none"),
        MultiItemQueryAttentionConfig(query_window=3, dummies_as_keys=True),
        PointwiseAttentionConfig(),
        RefinedAttentionConfig(variant="value-weighted"),
        RefinedAttentionConfig(variant="value-weighted", value_map=False, source="raw"),
        RefinedAttentionConfig(variant="value-weighted", rank=2),
        RefinedAttentionConfig(variant="additive-bahdanau", rank=2),
        KernelAttentionConfig(),
        KernelAttentionConfig(upper="banded", lower="toeplitz", per_head=True),
    ],
    ids=str,
)
def test_mechanisms_in_stretches_of_time(config, monkeypatch):
    """Two stretches give what one gives, which is what the oracle saw."""
    mechanism, params = initialised(dataclasses.replace(config, heads=2))
    # Away from the identity, with which positional kernels start.
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    whole = applied(mechanism, params)
    monkeypatch.setattr(module, "stretch_count", lambda length, backend, mask: 2)
    np.testing.assert_allclose(applied(mechanism, params), whole, atol=1e-5)


def test_toeplitz_and_its_gradient_equal_a_look_up_by_distance():
    kernel = jax.random.normal(jax.random.key(0), (2, 7))
    weights = jnp.tril(jax.random.normal(jax.random.key(1), (2, 5, 5)))
    apart = np.maximum(np.arange(5)[:, None] - np.arange(5)[None], 0)

    def values(by):
        return jax.jit(jax.value_and_grad(lambda k: (weights * by(k)).sum()))(kernel)

    got, want = values(lambda k: toeplitz(k, 5)), values(lambda k: k[:, apart])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    assert not np.triu(np.asarray(toeplitz(kernel, 5))[0], 1).any()
    np.testing.assert_array_equal(toeplitz(kernel[:, :1], 1), kernel[:, :1, None])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 9])
def test_groups_of_rows_change_nothing(size):
    rows = {"a": jnp.arange(14.0).reshape(7, 2), "none": None}

    def loss(rows):
        return map_rows(lambda group: jnp.sin(group["a"]) * 2.0, size, rows).sum()

    np.testing.assert_allclose(
        map_rows(lambda group: jnp.sin(group["a"]), size, rows), jnp.sin(rows["a"]), rtol=1e-6
    )
    np.testing.assert_allclose(jax.grad(loss)(rows)["a"], 2.0 * jnp.cos(rows["a"]), rtol=1e-5)


def test_groups_of_rows_under_vmap():
    mechanism, params = initialised(PointwiseAttentionConfig(rows_per_group=2))
    twice = jnp.stack([X, 2.0 * X])
    mapped = jax.jit(jax.vmap(lambda x: mechanism.apply({"params": params}, x, CONTEXT)), **QUICK_JIT)(twice)
    np.testing.assert_allclose(mapped[1], applied(mechanism, params, twice[1]), atol=1e-5)


def products_of(function, *inputs):
    text = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*inputs).as_text()
    return [line for line in text.splitlines() if "dot_general" in line]


def test_bfloat16_products_are_bfloat16_in_the_backward_pass_too(monkeypatch):
    """As an accelerator compiles them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inputs = jnp.ones((2, 4, 4)), jnp.ones((2, 4, 4))
    products = products_of(lambda x, y: einsum("bij,bjk->bik", x, y, jnp.bfloat16).sum(), *inputs)
    products += products_of(lambda x, y: matmul(x, y[0], jnp.bfloat16).sum(), *inputs)
    assert len(products) == 4
    assert all("xbf16>, tensor" in line and "xf32>" in line.split("->")[1] for line in products)


def test_rounding_on_a_cpu_gives_the_numbers_of_bfloat16_products(monkeypatch):
    """Where XLA's CPU backend has a bfloat16 product, its values and gradients are those of rounded float32."""
    x, y = (jax.random.normal(key, (64, 64)) for key in jax.random.split(jax.random.key(0)))

    def values():
        product = jax.jit(jax.value_and_grad(lambda x, y: jnp.sin(matmul(x, y, jnp.bfloat16)).sum(), (0, 1)))
        return product(x, y)

    rounded = values()
    exact = jax.value_and_grad(lambda x, y: jnp.sin(x @ y).sum(), (0, 1))(x, y)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    native = values()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), rounded, native)
    assert np.abs(rounded[1][0] - exact[1][0]).max() > 0.1  # float32 is far from both
