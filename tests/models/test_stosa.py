"""STOSA: distances in the common score form, one state a sequence wherever it lies, causality, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import SoftmaxAttentionConfig, WassersteinAttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models import DataSpec, STOSAConfig
from tests.attention.variants import QUICK

N_ITEMS, LENGTH = 7, 5
ITEMS = jnp.asarray([[3, 1, 4, 0, 0], [0, 0, 3, 1, 4], [5, 2, 3, 1, 4], [0, 0, 0, 0, 0]], jnp.int32)
SEGMENTS = jnp.asarray([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 2, 2, 2], [0, 0, 0, 0, 0]], jnp.int32)
POSITIONS = jnp.asarray([[0, 1, 2, 0, 0], [0, 0, 0, 1, 2], [0, 1, 0, 1, 2], [0, 0, 0, 0, 0]], jnp.int32)
BATCH = Batch(ITEMS, POSITIONS, SEGMENTS, ITEMS, jnp.ones(ITEMS.shape), ITEMS * 7, ITEMS)


def build(attention=WassersteinAttentionConfig(heads=2), **options):  # noqa: B008
    config = STOSAConfig(width=4, attention=attention, **{"init_scale": 0.5, "layers": 1, **options})
    encoder = config.build(DataSpec(N_ITEMS, LENGTH, has_timestamps=True))
    return encoder, jax.jit(encoder.init, compiler_options=QUICK)(jax.random.key(0), BATCH)["params"]


def test_scores_rank_as_wasserstein_distances_and_differ_as_they_do():
    encoder, params = build()
    hidden = np.asarray(
        jax.jit(encoder.apply, compiler_options=QUICK)({"params": params}, BATCH), np.float64
    )[0, 2]
    table = encoder.item_table(params)
    scores = np.asarray(table.vectors, np.float64) @ hidden + np.asarray(table.bias, np.float64)
    means, raw = (np.asarray(params[f"{name}_items"]["table"], np.float64) for name in ("mean", "covariance"))
    deviations = np.sqrt(np.where(raw > 0, raw + 1, np.exp(np.minimum(raw, 0))))
    distances = ((hidden[:4] - means) ** 2).sum(1) + ((hidden[4:] - deviations) ** 2).sum(1)
    np.testing.assert_allclose(scores, (hidden**2).sum() - distances, rtol=1e-5, atol=1e-5)
    between = ((means[2] - means[5]) ** 2).sum() + ((deviations[2] - deviations[5]) ** 2).sum()
    states = table.take(jnp.array([2])).item_states()
    pair = table.squared_distances(states, states @ table.vectors.T + table.bias[None, :])
    assert float(pair[0, 5]) == pytest.approx(between, rel=1e-4)


@pytest.mark.parametrize("variant", ["none", "stochastic"])
def test_same_states_padded_and_packed(variant):
    encoder, params = build(WassersteinAttentionConfig(heads=2, variant=variant))
    hidden = np.asarray(jax.jit(encoder.apply, compiler_options=QUICK)({"params": params}, BATCH))
    np.testing.assert_allclose(hidden[1, 2:], hidden[0, :3], atol=1e-5)
    np.testing.assert_allclose(hidden[2, 2:], hidden[0, :3], atol=1e-5)
    assert not hidden[SEGMENTS == 0].any()
    assert (hidden[SEGMENTS > 0][:, 4:] > 0).all()  # square roots of covariances


def test_the_past_alone_decides():
    encoder, params = build()
    apply = jax.jit(encoder.apply, compiler_options=QUICK)
    other = BATCH._replace(items=ITEMS.at[0, 2].set(6))
    before, after = (np.asarray(apply({"params": params}, batch)) for batch in (BATCH, other))
    np.testing.assert_array_equal(before[0, :2], after[0, :2])
    assert np.abs(before[0, 2] - after[0, 2]).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": "alibi"}, {"legacy_shared_norms": True, "legacy_input_means": True, "layers": 2}],
    ids=str,
)
def test_parameter_count_and_finite_gradients(options):
    encoder, params = build(**options)
    assert encoder.parameter_count() == sum(leaf.size for leaf in jax.tree.leaves(params))
    key = jax.random.key(1)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradient(params):
        return jax.grad(lambda p: encoder.apply({"params": p}, BATCH, True, rngs={"dropout": key}).sum())(
            params
        )

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))


def test_no_attention_touches_the_means_of_the_authors_code():
    encoder, params = build(legacy_input_means=True)
    apply = jax.jit(encoder.apply, compiler_options=QUICK)
    other = BATCH._replace(items=ITEMS.at[0, 0].set(6))
    before, after = (np.asarray(apply({"params": params}, batch))[0, 2] for batch in (BATCH, other))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.abs(before[4:] - after[4:]).max() > 1e-4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: STOSAConfig(attention=SoftmaxAttentionConfig()).build(DataSpec(3, 3)),
            r"expected attention 'wasserstein', got SoftmaxAttentionConfig",
        ),
        (lambda: STOSAConfig(width=0), r"--encoder\.width must be an integer at least 1; got 0"),
        (lambda: STOSAConfig(layers=0), r"--encoder\.layers must be an integer at least 1; got 0"),
        (
            lambda: STOSAConfig(dropout=1.5),
            r"--encoder\.dropout must be a finite number in \[0, 1\); got 1\.5",
        ),
        (
            lambda: STOSAConfig(dtype="float16"),
            r"--encoder\.dtype must be one of float32, bfloat16 .*got 'float16'",
        ),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
