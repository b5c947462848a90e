"""Padding as keys at a length with several stretches of time and groups of rows, against explicit padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import AttentionContext, AttentionSpec, SoftmaxAttentionConfig
from jaxrec.attention.functional import stretch_count
from jaxrec.attention.padding_keys import padding_counts
from tests.attention.oracles import affine, projections, softmax
from tests.attention.variants import QUICK, WIDTH

LENGTH, MAX_LENGTH = 40, 48
#: Two sequences a row of different lengths, and padding on both sides.
SEGMENTS = np.zeros((3, LENGTH), np.int32)
SEGMENTS[0, :33], SEGMENTS[0, 33:] = 1, 2
SEGMENTS[1, 4:30] = 1
SEGMENTS[2] = 1


@pytest.fixture(scope="module")
def layer():
    """A layer that groups rows, its input, its parameters and the state of padding."""
    rng = np.random.default_rng(0)
    config = SoftmaxAttentionConfig(heads=2, rows_per_group=2, dropout=0.5)
    module = config.build(AttentionSpec(WIDTH, MAX_LENGTH))
    x = rng.normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
    padding = rng.normal(size=(1, 1, WIDTH)).astype(np.float32)
    context = AttentionContext(
        *map(jnp.asarray, (np.zeros_like(SEGMENTS), SEGMENTS)), padding=jnp.asarray(padding)
    )
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x), context)
    params = jax.tree.map(lambda a: rng.normal(0, 0.4, a.shape).astype(np.float32), shapes)
    return module, params, x, context


def padded_alone(params, states, padding):
    """One sequence behind explicit padding to MAX_LENGTH, and the weights that its queries give to padding [n, heads]."""
    n_padding, size = MAX_LENGTH - len(states), WIDTH // 2
    row = np.concatenate([np.repeat(padding[0], n_padding, axis=0), states]).astype(np.float64)
    q, k, v = projections(row, None, params["projections"])
    out, shares = np.zeros_like(row), np.zeros((len(row), 2))
    for head in range(2):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(row)):
            weights = softmax(k[: t + 1, part] @ q[t, part] / np.sqrt(size))
            out[t, part] = weights @ v[: t + 1, part]
            shares[t, head] = weights[:n_padding].sum()
    return affine(out, params["output"]["dense"])[n_padding:], shares[n_padding:]


def test_packed_rows_equal_explicit_padding_in_groups_and_stretches(layer):
    module, params, x, context = layer
    assert stretch_count(LENGTH, "cpu", "causal") > 1
    attend = jax.jit(module.apply, compiler_options=QUICK)
    out = np.asarray(attend(params, x, context))
    sow = functools.partial(module.apply, mutable=["intermediates"])
    _, sown = jax.jit(sow, compiler_options=QUICK)(params, x, context)
    weights, shares = (
        np.asarray(sown["intermediates"][f"{name}_weights"][0]) for name in ("attention", "padding")
    )
    assert weights.shape == (3, 2, LENGTH, LENGTH)
    assert shares.shape == (3, 2, LENGTH)
    for row, number in ((0, 1), (0, 2), (1, 1), (2, 1)):
        columns = SEGMENTS[row] == number
        expected, share = padded_alone(params["params"], x[row, columns], np.asarray(context.padding))
        np.testing.assert_allclose(out[row, columns], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shares[row][:, columns].T, share, atol=1e-5)
        np.testing.assert_allclose(weights[row].sum(-1)[:, columns].T, 1 - share, atol=1e-5)
    assert shares[1, :, 4:30].mean() > 0.05, "the case has weight on padding"


def test_dropout_leaves_padding_alone(layer):
    """With values that are zero for items, what remains is the share of padding, whatever is dropped."""
    module, params, x, context = layer
    projection = params["params"]["projections"]
    kernel, bias = np.array(projection["kernel"]), np.array(projection["bias"])
    kernel[:, 2 * WIDTH :], bias[2 * WIDTH :] = 0.0, 0.0
    padding = np.asarray(context.padding)[0, 0]
    # A value of 1 for padding alone: the map reads a direction in which items have no part.
    x = x - np.outer((x @ padding).ravel(), padding).reshape(x.shape) / (padding @ padding)
    kernel[:, 2 * WIDTH :] = np.outer(padding, np.ones(WIDTH)) / (padding @ padding)
    changed = {"params": {**params["params"], "projections": {"kernel": kernel, "bias": bias}}}
    spec = dataclasses.replace(module.spec, output_projection=False)
    bare = dataclasses.replace(module, spec=spec)
    changed["params"].pop("output")
    noisy = [
        np.asarray(bare.apply(changed, x, context, True, rngs={"dropout": jax.random.key(seed)}))
        for seed in (0, 1)
    ]
    np.testing.assert_allclose(noisy[0], noisy[1], atol=1e-5)
    np.testing.assert_allclose(noisy[0], np.asarray(bare.apply(changed, x, context)), atol=1e-5)
    module_noise = [
        np.asarray(module.apply(params, x, context, True, rngs={"dropout": jax.random.key(seed)}))
        for seed in (0, 1)
    ]
    assert not np.allclose(*module_noise, atol=1e-2)


def test_counts():
    counts = np.asarray(padding_counts(jnp.asarray([[0, 1, 1, 2, 2, 2]]), 6))
    np.testing.assert_array_equal(counts[0, 1:], [4, 4, 3, 3, 3])
