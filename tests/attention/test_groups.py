"""Groups of rows and stretches of time, which must change nothing; precision of products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import KernelAttentionConfig, PointwiseAttentionConfig, RefinedAttentionConfig
from jaxrec.attention import module as core
from jaxrec.attention.functional import Extra, causal_chunks, softmax_core
from jaxrec.attention.kernelised import toeplitz
from jaxrec.attention.module import automatic_rows_per_group, map_rows
from jaxrec.nn.precision import contract, operand_dtype
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
    assert [causal_chunks(length, "cpu") for length in (1, 31, 32, 50, 200)] == [1, 1, 2, 3, 4]
    assert causal_chunks(200, "gpu") == 1


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_stretches_of_time_change_nothing(chunks):
    """Values, gradients and dropout, with two queries a time, a bias, and a key that all see."""
    keys = iter(jax.random.split(jax.random.key(2), 8))
    q, more = (jax.random.normal(next(keys), (3, 12, 2, 4)) for _ in range(2))
    k, v = (jax.random.normal(next(keys), (3, 6, 2, 4)) for _ in range(2))
    outside = [jax.random.normal(next(keys), (1, 2, 4)) for _ in range(2)]
    bias = jax.random.normal(next(keys), (1, 2, 6, 6))
    keep = jax.random.bernoulli(next(keys), 0.7, (3, 2, 6, 2, 7))

    def loss(chunks, q, k, v, bias, extra):
        out, _ = softmax_core(
            q,
            k,
            v,
            segments=SEGMENTS,
            bias=bias,
            keep=keep,
            probability=0.7,
            dtype=jnp.float32,
            chunks=chunks,
            slots=2,
            extra=extra,
        )
        return jnp.sin(out).sum(), out

    gradient = jax.jit(
        jax.grad(loss, argnums=(1, 2, 3, 4, 5), has_aux=True), static_argnums=0, compiler_options=QUICK
    )
    inputs = (q, k, v, bias, Extra(more, *outside))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradient(chunks, *inputs),
        gradient(1, *inputs),
    )


@pytest.mark.parametrize(
    "config",
    [
        RefinedAttentionConfig(variant="simple"),
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
    module, params = initialised(dataclasses.replace(config, heads=2))
    # Away from the identity, with which positional kernels start.
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    whole = applied(module, params)
    monkeypatch.setattr(core, "causal_chunks", lambda length, backend: 2)
    np.testing.assert_allclose(applied(module, params), whole, atol=1e-5)


def test_toeplitz_and_its_gradient_equal_a_look_up_by_distance():
    kernel = jax.random.normal(jax.random.key(0), (2, 7))
    weights = jnp.tril(jax.random.normal(jax.random.key(1), (2, 5, 5)))
    apart = np.maximum(np.arange(5)[:, None] - np.arange(5)[None], 0)

    def values(by):
        return jax.value_and_grad(lambda k: (weights * by(k)).sum())(kernel)

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
    module, params = initialised(PointwiseAttentionConfig(rows_per_group=2))
    twice = jnp.stack([X, 2.0 * X])
    mapped = jax.jit(jax.vmap(lambda x: module.apply({"params": params}, x, CONTEXT)), **QUICK_JIT)(twice)
    np.testing.assert_allclose(mapped[1], applied(module, params, twice[1]), atol=1e-5)


def test_bfloat16_products_are_bfloat16_in_the_backward_pass_too(monkeypatch):
    assert operand_dtype(jnp.bfloat16, "gpu") == jnp.bfloat16
    assert operand_dtype(jnp.bfloat16, "cpu") == jnp.float32
    monkeypatch.setattr(core, "operand_dtype", lambda dtype, backend: dtype)

    def loss(x, y):
        return contract("bij,bjk->bik", x, y, jnp.bfloat16).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(jnp.ones((2, 4, 4)), jnp.ones((2, 4, 4))).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert all("xbf16>, tensor" in line and "xf32>" in line.split("->")[1] for line in products)
