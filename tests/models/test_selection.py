"""Query positions inside a transformer: every attention mechanism, and the work that is left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.data.batches import Batch
from jaxrec.models import TransformerConfig
from jaxrec.nn.layers import take_positions
from jaxrec.nn.spec import DataSpec
from tests.attention.variants import MAX_LENGTH, QUICK, VARIANTS, WIDTH, Layout, random_parameters

N_ITEMS = 9


def batch_of(origin):
    layout = Layout()
    items = np.random.default_rng(1).integers(1, N_ITEMS + 1, layout.segments.shape).astype(np.int32)
    positions = layout.starts if origin == "start" else layout.ends
    segments = layout.segments
    weights = np.zeros(items.shape, np.float32)
    return Batch(
        *map(jnp.asarray, (np.where(segments > 0, items, 0), positions, segments, 0 * items, weights)),
        timestamps=jnp.asarray(layout.timestamps),
    )


#: Ends of segments, positions inside them, padding, and one position twice.
AT = np.array([[5, 0], [2, 2], [5, 0], [3, 4], [0, 5], [5, 4], [0, 3]], np.int32)


def check(encoder, origin="start"):
    batch = batch_of(origin)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(params, batch, at):
        return encoder.apply({"params": params}, batch), encoder.apply(
            {"params": params}, batch, query_positions=at
        )

    shapes = jax.eval_shape(encoder.init, jax.random.key(0), batch)["params"]
    whole, wanted = map(np.asarray, both(random_parameters(shapes), batch, jnp.asarray(AT)))
    np.testing.assert_allclose(wanted, np.take_along_axis(whole, AT[..., None], axis=1), rtol=2e-5, atol=2e-5)
    assert (wanted[-1] == 0).all(), "padding has the zero state"
    assert np.abs(wanted[:4]).max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_mechanism(variant):
    block = "original" if variant.separate_queries else "pre-norm"
    config = TransformerConfig(width=WIDTH, layers=1, block=block, positions=variant.positions)
    check(
        dataclasses.replace(config, attention=variant.config).build(
            DataSpec(N_ITEMS, MAX_LENGTH, variant.origin, has_timestamps=True)
        ),
        variant.origin,
    )


@pytest.mark.parametrize(
    ("attention", "share"),
    [("softmax", 0.45), ("miq", 0.3), ("hstu", 0.45), ("kernel", 0.6), ("uniform", 0.45)],
)
def test_the_last_block_asks_for_the_wanted_positions_only(attention, share):
    """No product of the last block but those of keys and values meets all positions."""
    config = TransformerConfig(width=WIDTH, layers=1, attention=ATTENTION[attention]())
    encoder = config.build(DataSpec(N_ITEMS, MAX_LENGTH))
    batch = batch_of("start")
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), batch)["params"]
    costs = [
        jax.jit(lambda p, b, at=at: encoder.apply({"params": p}, b, query_positions=at))
        .lower(shapes, batch)
        .cost_analysis()["flops"]
        for at in (None, jnp.asarray(AT[:, :1]))
    ]
    assert costs[1] < share * costs[0]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["softmax", "miq", "kernel", "hstu"])
def test_training_drops_weights_of_the_wanted_positions(attention):
    """Of two seeds the states differ; without dropout they are those of all positions, and so are the gradients."""
    config = TransformerConfig(width=WIDTH, layers=1, dropout=0.0, attention=ATTENTION[attention]())
    batch, at = batch_of("start"), jnp.asarray(AT[:, :1])
    encoder = config.build(DataSpec(N_ITEMS, MAX_LENGTH))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), batch)["params"]
    params = random_parameters(shapes)
    noisy = dataclasses.replace(config, attention=ATTENTION[attention](dropout=0.5)).build(encoder.spec)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def everything(params, batch, at):
        def some(encoder, params, key):
            return encoder.apply({"params": params}, batch, True, at, rngs={"dropout": key})

        def whole(params):
            return take_positions(encoder.apply({"params": params}, batch, True), at)

        keys = [jax.random.key(number) for number in range(2)]
        gradients = [
            jax.grad(lambda p, f=f: (f(p) ** 2).sum())(params)
            for f in (whole, lambda p: some(encoder, p, keys[0]))
        ]
        return (
            whole(params),
            some(encoder, params, keys[0]),
            [some(noisy, params, k) for k in keys],
            gradients,
        )

    exact, chosen, dropped, gradients = jax.device_get(everything(params, batch, at))
    np.testing.assert_allclose(chosen, exact, rtol=2e-5, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients)
    assert not np.allclose(dropped[0], dropped[1])
    assert not np.allclose(dropped[0], exact)
