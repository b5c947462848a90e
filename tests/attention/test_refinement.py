"""AWRSR: weights before training, the gate, depth, and that training can leave the first weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.analysis.attention_maps import weight_statistics
from jaxrec.attention import (
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
    WassersteinAttentionConfig,
    allowed_positions,
)
from jaxrec.attention.awrsr import GATE, RefinementMaps, counted_pairs, refine
from jaxrec.attention.functional import masked_softmax
from jaxrec.errors import ConfigError
from tests.attention.small import QUICK_JIT, SPEC, applied, initialised
from tests.attention.variants import PLAIN

LENGTH = 50
SEGMENTS = jnp.ones((4, LENGTH), jnp.int32)
POSITIONS = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), SEGMENTS.shape)
MASK = allowed_positions(SEGMENTS)[:, None]
VARIANTS = ("simple", "value-weighted", "additive", "additive-bahdanau", "stochastic")

pytestmark = pytest.mark.usefixtures("standard_promotion")


def scores_of(scale, key=0):
    return scale * jax.random.normal(jax.random.key(key), (4, 1, LENGTH, LENGTH))


def config_of(variant, **options):
    """The configuration that knows all variants."""
    return WassersteinAttentionConfig(variant=variant, **options)


def initial_maps(config):
    module = RefinementMaps(config, LENGTH)
    return module.apply(jax.jit(module.init, **QUICK_JIT)(jax.random.key(1)))


def statistics(config, scores, maps=None):
    maps = initial_maps(config) if maps is None else maps
    weights, _ = jax.jit(lambda s, maps: refine(config, maps, s, MASK, POSITIONS), **QUICK_JIT)(scores, maps)
    return weight_statistics(weights, SEGMENTS, masked_softmax(scores, MASK)).means()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_starts_at_the_first_weights(variant, scale):
    scores = scores_of(scale)
    gated = statistics(config_of(variant), scores)
    assert gated["from_first"] <= GATE
    maps = {name: value for name, value in initial_maps(config_of(variant)).items() if name != "gate"}
    new = statistics(config_of(variant, residual="none"), scores, maps)
    assert gated["from_first"] == pytest.approx(GATE * new["from_first"], rel=1e-3)


@pytest.mark.parametrize("variant", ["simple", "stochastic", "additive-bahdanau"])
def test_new_weights_are_neither_uniform_nor_one_hot_whatever_the_scores_scale(variant):
    for scale in (0.1, 1.0, 6.0):
        new = statistics(config_of(variant, residual="none"), scores_of(scale))
        assert 0.1 < new["from_uniform"] < 0.9, scale
        assert 0.2 < new["entropy"] < 0.99, scale


def test_inner_products_of_probabilities_are_nearly_uniform_and_of_scores_one_hot():
    """The readings that the defaults replace."""
    assert statistics(config_of("simple", **PLAIN), scores_of(1.0))["from_uniform"] < 0.01
    raw = config_of("simple", source="raw", scale="root", residual="none")
    assert statistics(raw, scores_of(6.0))["entropy"] < 0.05


@pytest.mark.parametrize("variant", ["simple", "additive", "stochastic"])
def test_training_can_leave_the_first_weights(variant):
    """Rewarded for attention to the query's own position, the refinement gives it whatever the scores say."""
    config = config_of(variant)
    maps = initial_maps(config)
    optimizer = optax.adam(0.05)

    def loss(maps, scores):
        weights, _ = refine(config, maps, scores, MASK, POSITIONS)
        return -jnp.mean(jnp.log(jnp.diagonal(weights, axis1=2, axis2=3) + 1e-9))

    @jax.jit
    def step(maps, state, key):
        value, gradient = jax.value_and_grad(loss)(maps, jax.random.normal(key, (4, 1, LENGTH, LENGTH)))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(maps, updates), state, value

    losses, state = [], optimizer.init(maps)
    for key in jax.random.split(jax.random.key(2), 60):
        maps, state, value = step(maps, state, key)
        losses.append(float(value))
    after = statistics(config, scores_of(1.0, key=3), maps)
    assert after["from_first"] > 3 * GATE
    assert jax.nn.sigmoid(maps["gate"]) > 3 * GATE
    assert losses[-1] < losses[0] - 0.5


def test_gate_mixes_the_first_and_the_new_weights():
    """By the gate's own value: at 0.1 as at the start, and at 0.7."""
    module, params = initialised(RefinedAttentionConfig(variant="additive-gated"))
    plain = RefinedAttentionConfig(residual="none").build(SPEC)
    without = {**params, "refinement": {k: v for k, v in params["refinement"].items() if k != "gate"}}
    softmax = SoftmaxAttentionConfig().build(SPEC)
    shared = {name: params[name] for name in ("projections", "output")}

    def weights(module, params):
        _, sown = applied(module, params, mutable=["intermediates"])
        return {name: values[0] for name, values in sown["intermediates"].items()}

    first = weights(softmax, shared)["attention_weights"]
    new = weights(plain, without)["attention_weights"]
    assert np.abs(new - first).max() > 0.1
    for gate in (GATE, 0.7):
        logit = jnp.log(gate / (1 - gate))
        sown = weights(module, {**params, "refinement": {**params["refinement"], "gate": logit}})
        np.testing.assert_allclose(sown["first_weights"], first, atol=1e-6)
        np.testing.assert_allclose(sown["attention_weights"], (1 - gate) * first + gate * new, atol=1e-6)
    assert params["refinement"]["gate"] == pytest.approx(np.log(GATE / (1 - GATE)))


@pytest.mark.parametrize("options", [{}, {"variant": "additive"}, {"source": "raw", "scale": "root"}])
def test_depth_two_is_the_refinement_of_its_own_output(options):
    config = config_of(options.pop("variant", "simple"), **options)
    maps, scores = initial_maps(config), scores_of(1.0)
    once, _ = refine(config, maps, scores, MASK, POSITIONS)
    twice, _ = refine(config, maps, jnp.log(jnp.maximum(once, 1e-9)), MASK, POSITIONS)
    deep, _ = refine(dataclasses.replace(config, depth=2), maps, scores, MASK, POSITIONS)
    np.testing.assert_allclose(deep, twice, atol=1e-5)
    assert np.abs(deep - once).max() > 1e-3


def test_pairs_below_the_threshold_do_not_count_but_with_themselves():
    """Profiles at angles of 0, 60 and 90 degrees; a stretch of the last two times."""
    angles = np.radians([0.0, 60.0, 90.0])
    profiles = np.sqrt(2.0) * np.stack([np.cos(angles), np.sin(angles)], axis=1)[None, None].astype(
        np.float32
    )
    for threshold, rows in ((0.4, [[1, 1, 1], [0, 1, 1]]), (0.6, [[0, 1, 1], [0, 1, 1]]), (1.0, None)):
        counted = counted_pairs(threshold, -profiles[:, :, 1:], -profiles, jnp.float32)
        expected = [[0, 1, 0], [0, 0, 1]] if rows is None else rows
        np.testing.assert_array_equal(counted[0, 0], np.asarray(expected, bool))


def test_statistics_of_known_weights():
    segments = np.asarray([[1, 1, 1, 0], [1, 1, 2, 2]])
    uniform = np.asarray(allowed_positions(segments), np.float64)[:, None]
    uniform /= uniform.sum(axis=-1, keepdims=True)
    own = np.broadcast_to(np.eye(4), uniform.shape)
    measured = weight_statistics(uniform, segments, own)
    assert measured.means() == pytest.approx(
        {"entropy": 1.0, "from_uniform": 0.0, "reach": 1.0, "from_first": (2 / 3 + 3 * 0.5) / 4}
    )
    # First positions, with one key, and padding do not count.
    assert np.isnan(measured.entropy[0, 0]).tolist() == [True, False, False, True]
    assert np.isnan(measured.entropy[1, 0]).tolist() == [True, False, True, False]
    for name in ("entropy", "reach"):
        assert weight_statistics(own, segments).means()[name] == pytest.approx(0.0)
    # The third query: keys 2, 1 and 0 interactions away, 2 * .5 + .25 over a mean of 1; the second: all on 1, over .5.
    weights = np.asarray([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0.25, 0.25]])[None, None]
    np.testing.assert_allclose(weight_statistics(weights, segments[:1, :3]).reach, [[[np.nan, 2.0, 1.25]]])
    with pytest.raises(ConfigError, match="weights that sum to 1"):
        weight_statistics(0.5 * uniform, segments)
