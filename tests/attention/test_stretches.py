"""Every mechanism at a length where a CPU computes stretches of time, against the oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import AttentionContext
from jaxrec.attention.functional import stretch_count
from tests.attention.oracles import ORACLES
from tests.attention.variants import (
    QUICK,
    VARIANTS,
    WIDTH,
    abstract_parameters,
    apply,
    line,
    random_parameters,
)

LENGTH = 40
LONG = 33

#: The first line of each mechanism under each mask, and what treats stretches specially.
CASES = [
    *{
        (v.mechanism, v.mask): v for v in reversed(VARIANTS) if v.positions in ("none", "relative-bias")
    }.values(),
    line("miq", "rotary", query_window=6, dummies_as_keys=True),
    line("awrsr", origin="end", variant="value-weighted", depth=2, rank=5, threshold=0.2),
    line("awrsr", variant="additive-bahdanau", rank=3),
    line("kernel", origin="end", upper="full", lower="banded", bandwidth=20, per_head=True),
    line("hstu", "hstu-time"),
]


class LongLayout:
    """One sequence of 33: after six strangers, and after padding."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.states, self.queries = rng.normal(size=(2, LONG, WIDTH))
        self.times = np.cumsum(rng.integers(0, 10**5, LONG)).astype(np.int32)
        self.x, self.asked = rng.normal(size=(2, 2, LENGTH, WIDTH)).astype(np.float32)
        self.segments, self.starts, self.ends, self.timestamps = np.zeros((4, 2, LENGTH), np.int32)
        self.segments[0, :6], self.starts[0, :6], self.ends[0, :6] = 1, np.arange(6), np.arange(6)[::-1]
        self.columns = (slice(6, 6 + LONG), slice(3, 3 + LONG))
        for row, columns in enumerate(self.columns):
            self.x[row, columns], self.asked[row, columns] = self.states, self.queries
            self.segments[row, columns] = 2
            self.starts[row, columns] = np.arange(LONG)
            self.ends[row, columns] = np.arange(LONG)[::-1]
            self.timestamps[row, columns] = self.times

    def context_of(self, variant):
        positions = self.starts if variant.origin == "start" else self.ends
        arrays = tuple(map(jnp.asarray, (positions, self.segments, self.timestamps)))
        return lambda shared: AttentionContext(*arrays, shared=shared, mask=variant.mask)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_sown_weights_at_forty_positions(case):
    variant = dataclasses.replace(case, max_length=LENGTH)
    assert stretch_count(LENGTH, "cpu", "causal") == 2
    layout = LongLayout()
    own, common = (random_parameters(tree, seed) for seed, tree in enumerate(abstract_parameters(variant)))
    inputs = (jnp.asarray(layout.x), jnp.asarray(layout.asked))

    def forward(own, x, asked, mutable):
        return apply(variant, own, common, x, asked, layout.context_of(variant), mutable=mutable)

    def loss(own, x, mutable):
        out = forward(own, x, inputs[1], mutable)
        return jnp.sin(out if mutable is False else out[0]).sum()

    compiled = jax.jit(forward, static_argnums=3, compiler_options=QUICK)
    hidden = np.asarray(compiled(own, *inputs, False))
    # Sown weights need all times at once.
    whole, _ = compiled(own, *inputs, "intermediates")
    np.testing.assert_allclose(hidden, whole, rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2, compiler_options=QUICK)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4 * (1 + np.abs(b).max(initial=0))),
        gradient(own, inputs[0], False),
        gradient(own, inputs[0], "intermediates"),
    )

    double = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)  # noqa: E731
    places = list(range(LONG)) if variant.origin == "start" else list(range(LONG))[::-1]
    asked = layout.queries if variant.separate_queries else None
    shared = double(common)
    shared = shared.get("vectors") if variant.mechanism == "miq" else shared
    expected = ORACLES[variant.mechanism](
        variant, double(own), layout.states, asked, places, layout.times, shared
    )
    for row, columns in enumerate(layout.columns):
        np.testing.assert_allclose(hidden[row, columns], expected, rtol=1e-4, atol=1e-4)
