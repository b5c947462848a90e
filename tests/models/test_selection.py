"""Query positions inside a transformer: every attention mechanism, and the work that is left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.batches import Batch
from jaxrec.models import TransformerConfig
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


def test_the_last_block_asks_for_the_wanted_positions_only():
    """No product of the softmax path's last block but those of keys and values meets all positions."""
    encoder = TransformerConfig(width=WIDTH, layers=1).build(DataSpec(N_ITEMS, MAX_LENGTH))
    batch = batch_of("start")
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), batch)["params"]
    costs = [
        jax.jit(lambda p, b, at=at: encoder.apply({"params": p}, b, query_positions=at))
        .lower(shapes, batch)
        .cost_analysis()["flops"]
        for at in (None, jnp.asarray(AT[:, :1]))
    ]
    assert costs[1] < 0.55 * costs[0]
