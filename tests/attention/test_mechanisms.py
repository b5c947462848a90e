"""What must hold for every mechanism, driven by the table in variants.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracles import ORACLES
from tests.attention.variants import (
    MAX_LENGTH,
    QUICK,
    VARIANTS,
    Layout,
    abstract_parameters,
    apply,
    random_parameters,
)

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


class Run:
    """One compilation of a variant gives all that the tests look at."""

    def __init__(self, variant):
        self.variant, self.layout = variant, Layout()
        own, common = abstract_parameters(variant)
        self.own, self.common = random_parameters(own, 1), random_parameters(common, 2)
        # Directions of the loss: one weight a number of the "long" sequence's output.
        self.weights = (
            np.random.default_rng(3).normal(size=self.layout.states["long"].shape).astype(np.float32)
        )

        def forward(own, common, x, asked):
            context_of = functools.partial(self.layout.context, variant)
            return apply(variant, own, common, x, asked, context_of)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def everything(own, common, x, asked):
            hidden, pull = jax.vjp(forward, own, common, x, asked)
            one_time = jnp.eye(MAX_LENGTH)[:, :, None] * self.weights[None]

            # Gradients of the loss at each time (leading axis); their sum is the gradient of the loss.
            return hidden, jax.vmap(lambda weights: pull(jnp.zeros_like(hidden).at[0].set(weights)))(one_time)

        inputs = (self.own, self.common, jnp.asarray(self.layout.x), jnp.asarray(self.layout.asked))
        hidden, by_time = jax.tree.map(np.asarray, everything(*inputs))
        self.hidden, self.by_time, self.asked_by_time = hidden, by_time[2][:, 0], by_time[3][:, 0]
        self.gradients = jax.tree.map(lambda gradient: gradient.sum(axis=0), by_time)

    def oracle(self, name, own=None, common=None, states=None, asked=None):
        layout, variant = self.layout, self.variant
        places = list(range(len(layout.states[name])))
        if variant.origin == "end":
            places.reverse()
        own, common = (own or self.double(self.own)), (common or self.double(self.common))
        shared = common.get("vectors") if variant.mechanism == "miq" else common
        states = layout.states[name] if states is None else states
        asked = layout.queries[name] if asked is None else asked
        oracle = ORACLES[variant.mechanism]
        asked = asked if variant.separate_queries else None
        return oracle(variant, own, states, asked, places, layout.times[name], shared)

    @staticmethod
    def double(tree):
        return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


@functools.cache
def run_of(variant):
    return Run(variant)


@every_variant
def test_values_equal_the_oracle(variant):
    run = run_of(variant)
    for name in Layout.LENGTHS:
        row, columns = run.layout.where[name][0]
        np.testing.assert_allclose(run.hidden[row, columns], run.oracle(name), rtol=2e-5, atol=2e-5)


@every_variant
def test_gradients_equal_the_oracle_s_finite_differences(variant):
    """Along a random direction of each parameter, of the inputs and of the queries' inputs."""
    run = run_of(variant)
    rng = np.random.default_rng(4)
    point = {
        "own": run.double(run.own),
        "common": run.double(run.common),
        "states": run.layout.states["long"],
        "asked": run.layout.queries["long"],
    }
    own, common, x, asked = run.gradients
    gradient = {"own": own, "common": common, "states": x[0], "asked": asked[0]}
    leaves, tree = jax.tree.flatten(point)
    gradients = jax.tree.leaves(gradient)

    def loss(leaves):
        return float((run.oracle("long", **jax.tree.unflatten(tree, leaves)) * run.weights).sum())

    for index, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        step = 1e-5
        ends = [
            loss([*leaves[:index], leaf + sign * step * direction, *leaves[index + 1 :]]) for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose((gradients[index] * direction).sum(), expected, rtol=1e-3, atol=1e-4)


@every_variant
def test_reads_what_the_mask_allows_by_gradients(variant):
    run = run_of(variant)
    assert run.asked_by_time.any() == variant.separate_queries
    if variant.mask == "bidirectional":
        assert (np.abs(run.by_time).max(axis=2) > 1e-6).all()
        return
    for t in range(MAX_LENGTH):
        assert not run.by_time[t, t + 1 :].any()
        assert not run.asked_by_time[t, t + 1 :].any()
        assert run.by_time[t, t].any()
    assert all(np.abs(run.by_time[t, :t]).max() > 1e-6 for t in range(1, MAX_LENGTH))


@every_variant
def test_same_states_alone_padded_and_packed(variant):
    run = run_of(variant)
    for name in Layout.LENGTHS:
        (row, columns), *others = run.layout.where[name]
        for other_row, other_columns in others:
            np.testing.assert_allclose(
                run.hidden[other_row, other_columns], run.hidden[row, columns], rtol=1e-5, atol=1e-5
            )
    assert np.isfinite(run.hidden).all()  # the empty row too


@every_variant
def test_nothing_flows_between_sequences_or_from_padding(variant):
    run = run_of(variant)
    gradient = run.gradients[2]
    assert not gradient[1:].any()
    assert gradient[0].any()


@every_variant
def test_parameter_count_is_the_formula(variant):
    own, common = abstract_parameters(variant)
    config, spec = variant.config, variant.spec()
    assert config.parameter_count(spec) == sum(leaf.size for leaf in jax.tree.leaves(own))
    assert config.shared_parameter_count(spec) == sum(leaf.size for leaf in jax.tree.leaves(common))


def representative():
    """The first line of each mechanism under each mask, and MIQ mapped over its query positions."""
    seen = {}
    for variant in VARIANTS:
        options = dict(variant.options)
        if options.get("query_window") != 1:
            seen.setdefault((variant.mechanism, variant.mask, options.get("mapping")), variant)
    return list(seen.values())


@pytest.mark.parametrize("variant", representative(), ids=str)
def test_bfloat16_is_close(variant):
    run = run_of(variant)
    context_of = functools.partial(run.layout.context, variant)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def forward_and_gradient(x):
        asked = jnp.asarray(run.layout.asked)
        hidden, pull = jax.vjp(
            lambda x: apply(variant, run.own, run.common, x, asked, context_of, dtype=jnp.bfloat16), x
        )
        return hidden, pull(jnp.zeros_like(hidden).at[0].set(run.weights))[0]

    hidden, gradient = forward_and_gradient(jnp.asarray(run.layout.x))
    assert hidden.dtype == jnp.float32
    real = run.layout.segments > 0
    assert np.abs(hidden[real] - run.hidden[real]).max() > 1e-4, "no product was rounded"
    np.testing.assert_allclose(hidden[real], run.hidden[real], atol=0.05 * np.abs(run.hidden[real]).max())
    assert gradient.dtype == jnp.float32
    expected = run.gradients[2]
    np.testing.assert_allclose(gradient, expected, atol=0.1 * np.abs(expected).max())


@pytest.mark.parametrize("variant", representative(), ids=str)
def test_dropout_groups_weights_and_compilations(variant):
    """Dropout acts while training only, the same in any groups; weights come out; one trace serves a run."""
    run = run_of(variant)
    context_of = functools.partial(run.layout.context, variant)
    traces = []

    @functools.partial(jax.jit, static_argnums=(0, 2, 3), compiler_options=QUICK)
    def forward(rows_per_group, key, train, weights):
        traces.append(rows_per_group)
        options = (*variant.options, ("dropout", 0.5), ("rows_per_group", rows_per_group))
        dropping = dataclasses.replace(variant, options=options)
        x, asked = jnp.asarray(run.layout.x), jnp.asarray(run.layout.asked)
        mutable = ["intermediates"] if weights else False
        return apply(dropping, run.own, run.common, x, asked, context_of, train, key, mutable=mutable)

    keys = jax.random.split(jax.random.key(5), 3)
    np.testing.assert_allclose(forward(0, keys[0], False, False), run.hidden, rtol=1e-5, atol=1e-5)
    outs = [np.asarray(forward(0, key, True, False)) for key in keys]
    assert traces == [0, 0]  # one for evaluation, one for any number of training steps
    assert np.abs(outs[0] - outs[1]).max() > 1e-3
    assert np.abs(outs[0] - run.hidden).max() > 1e-3
    np.testing.assert_allclose(forward(3, keys[0], True, False), outs[0], rtol=1e-5, atol=1e-5)

    hidden, sown = forward(0, keys[0], False, True)
    np.testing.assert_allclose(hidden, run.hidden, rtol=1e-5, atol=1e-5)
    weights = np.asarray(sown["intermediates"]["attention_weights"][0])
    assert weights.shape[0] == len(Layout.ROWS)
    dummies = dict(variant.options).get("dummies_as_keys", False)
    weights = weights[..., weights.shape[-1] - MAX_LENGTH :]
    assert weights.shape[-2:] == (MAX_LENGTH, MAX_LENGTH)
    assert np.triu(weights, 1).any() == (variant.mask == "bidirectional")
    if variant.mechanism != "hstu" and not dummies:
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
