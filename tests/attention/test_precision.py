"""bfloat16 formulas against NumPy on rounded operands."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxrec.attention.hstu import pointwise_attention
from jaxrec.attention.softmax import softmax_attention
from jaxrec.attention.uniform import uniform_attention
from jaxrec.attention.wasserstein import gaussian_values, wasserstein_scores
from jaxrec.nn.precision import einsum, matmul
from tests.attention.oracles import silu, softmax

KEYS = jax.random.split(jax.random.key(0), 3)
Q, K, V = (jax.random.normal(key, (2, 5, 2, 16)) for key in KEYS)
MASK = jnp.ones((2, 1, 5, 5), jnp.bool_)


def rounded(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def exact(x):
    return np.asarray(x, np.float64)


def by_numpy(weights_of, round_operands):
    """Attention with rounded (or exact) operands of both products, sums in float64."""
    out = np.zeros(Q.shape)
    for row in range(2):
        for head in range(2):
            q, k, v = (x[row, :, head] for x in (Q, K, V))
            weights = weights_of(q, k, round_operands)
            # As float32, which the formula has before the second rounding.
            out[row, :, head] = round_operands(np.float32(weights)) @ round_operands(v)
    return out


def softmax_weights(q, k, round_operands):
    scores = round_operands(q * np.float32(16**-0.5)) @ round_operands(k).T
    return np.stack([softmax(line) for line in scores])


def pointwise_weights(q, k, round_operands):
    return silu(round_operands(q) @ round_operands(k).T)


def uniform_weights(q, k, round_operands):
    return np.full((5, 5), 0.2)


@pytest.mark.parametrize(
    ("formula", "weights_of"),
    [
        (softmax_attention, softmax_weights),
        (pointwise_attention, pointwise_weights),
        (uniform_attention, uniform_weights),
    ],
)
def test_formulas_round_the_operands_of_products(formula, weights_of):
    out, _ = jax.jit(lambda q, k, v: formula(q, k, v, 0.0, MASK, dtype=jnp.bfloat16))(Q, K, V)
    expected = by_numpy(weights_of, rounded)
    # A weight next to a rounding boundary may fall on the other side: an ulp of bfloat16 in one operand of five.
    np.testing.assert_allclose(out, expected, atol=4e-3)
    assert np.abs(out - expected).mean() < 0.2 * np.abs(out - by_numpy(weights_of, exact)).mean()


@pytest.mark.parametrize("side", ["forward", "backward"])
def test_products_are_those_of_rounded_operands(side):
    x, y = jax.random.normal(KEYS[0], (3, 7, 11)), jax.random.normal(KEYS[1], (11, 5))
    weights = jax.random.normal(KEYS[2], (3, 7, 5))
    product = lambda x, y: matmul(x, y, jnp.bfloat16)  # noqa: E731
    if side == "forward":
        np.testing.assert_allclose(jax.jit(product)(x, y), rounded(x) @ rounded(y), rtol=1e-5, atol=1e-5)
        assert np.abs(product(x, y) - exact(x) @ exact(y)).max() > 1e-3
        return
    x_bar, y_bar = jax.jit(jax.vjp(product, x, y)[1])(weights)
    np.testing.assert_allclose(x_bar, rounded(weights) @ rounded(y).T, rtol=1e-5, atol=1e-5)
    expected = np.einsum("abi,abo->io", rounded(x), rounded(weights))
    np.testing.assert_allclose(y_bar, expected, rtol=1e-5, atol=1e-5)


def test_a_state_is_at_distance_zero_from_itself():
    """The squares are those of the rounded vectors: exact ones would leave distances of rounding errors."""
    common = 3.0 + jax.random.normal(KEYS[0], (1, 1, 1, 32))
    near = common + 0.1 * jax.random.normal(KEYS[1], (1, 20, 1, 32))
    scores = np.asarray(jax.jit(lambda x: wasserstein_scores(x, x, 0.0, jnp.bfloat16))(near))[0, 0]
    # float32 sums of squares near 300 are exact to a few 1e-4.
    assert np.abs(np.diag(scores)).max() < 3e-4
    assert scores.max() < 3e-4
    x = rounded(near)[0, :, 0]
    expected = -((x[:, None] - x[None]) ** 2).sum(axis=-1) / 4
    np.testing.assert_allclose(scores, expected, atol=3e-4)
    truth = exact(near)[0, :, 0]
    true = -((truth[:, None] - truth[None]) ** 2).sum(axis=-1) / 4
    assert np.abs(scores - expected).max() < 0.2 * np.abs(expected - true).max()


def test_covariances_are_weighted_by_squares():
    weights = jax.nn.softmax(jax.random.normal(KEYS[0], (2, 2, 5, 5)))
    mean, covariance = gaussian_values(weights, Q, K**2, jnp.bfloat16)
    np.testing.assert_allclose(mean, np.einsum("bhij,bjhd->bihd", rounded(weights), rounded(Q)), atol=1e-5)
    expected = np.einsum("bhij,bjhd->bihd", rounded(weights**2), rounded(K**2))
    np.testing.assert_allclose(covariance, expected, atol=1e-5)


def test_float32_products_are_not_rounded():
    x, y = Q[0, :, 0], K[0, :, 0]
    np.testing.assert_allclose(einsum("ia,ja->ij", x, y), exact(x) @ exact(y).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("bihd,bjhd->bhij", (2, 3, 2, 4), (2, 5, 2, 4)),
        ("bhij,bjhd->bihd", (2, 2, 3, 5), (2, 5, 2, 4)),
        ("bhij,bjhd->bihd", (2, 1, 30, 50), (2, 50, 1, 4)),
        ("bihd,jhd->bhij", (2, 3, 2, 4), (5, 2, 4)),
        ("blia,blja->blij", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("bla,blja->blj", (2, 3, 5), (2, 3, 6, 5)),
        ("bla,bld->ad", (2, 3, 5), (2, 3, 6)),
        ("ac,bc->ab", (3, 5), (4, 5)),
        ("ai,io->ao", (7, 5), (5, 4)),
        ("ia,io->oa", (50, 3), (50, 4)),
    ],
)
def test_einsum_equals_numpy_with_its_gradients(equation, left, right):
    terms, result = equation.split("->")
    x, y = (jax.random.normal(key, shape) for key, shape in zip(KEYS, (left, right), strict=False))
    out, pull = jax.vjp(lambda x, y: einsum(equation, x, y), x, y)
    expected = np.einsum(equation, exact(x), exact(y))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    cotangent = jax.random.normal(KEYS[2], out.shape)
    first, second = terms.split(",")
    x_bar, y_bar = pull(cotangent)
    np.testing.assert_allclose(
        x_bar, np.einsum(f"{result},{second}->{first}", exact(cotangent), exact(y)), atol=1e-5
    )
    np.testing.assert_allclose(
        y_bar, np.einsum(f"{first},{result}->{second}", exact(x), exact(cotangent)), atol=1e-5
    )


def test_products_of_an_open_size_export():
    """A product chooses the order of its operands by their sizes; an export leaves some open."""
    (rows,) = jax.export.symbolic_shape("rows")
    x, y = jax.random.normal(KEYS[0], (3, 4, 5)), jax.random.normal(KEYS[1], (3, 6, 5))

    def product(x, y):
        return matmul(einsum("bid,bjd->bij", x, y), jnp.ones((6, 2)))

    shapes = [jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for a in (x, y)]
    exported = jax.export.export(jax.jit(product))(*shapes)
    expected = np.einsum("bid,bjd->bi", exact(x), exact(y))[..., None]
    np.testing.assert_allclose(exported.call(x, y), np.broadcast_to(expected, (3, 4, 2)), atol=1e-5)
