"""Every objective works with every encoder, or is rejected in words: one table over both registries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models import ENCODERS
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import OBJECTIVES, LossInputs, SamplingInputs
from tests.attention.variants import QUICK

N_ITEMS = 12
ITEMS = jnp.asarray([[3, 1, 4, 0], [5, 2, 3, 7]], jnp.int32)
TARGETS = jnp.asarray([[1, 4, 9, 0], [2, 3, 7, 12]], jnp.int32)
SEGMENTS = (ITEMS > 0).astype(jnp.int32)
POSITIONS = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32), ITEMS.shape)
USERS = jnp.asarray([[0] * 4, [1] * 4], jnp.int32)
BATCH = Batch(ITEMS, POSITIONS, SEGMENTS, TARGETS, jnp.ones(ITEMS.shape), ITEMS * 7, USERS)
SAMPLING = SamplingInputs(
    item_counts=jnp.arange(N_ITEMS + 1, dtype=jnp.float32),
    users=USERS.reshape(-1),
    seen_items=jnp.asarray([1, 3, 4, 9, 2, 3, 5, 7, 12], jnp.int32),
    seen_offsets=jnp.asarray([0, 4, 9], jnp.int32),
)

#: Objectives that need a property of the encoder's scores, and the encoders that have it.
ONLY = {"bpr-pvn": {"stosa"}}


@functools.cache
def states_of(encoder):
    """(hidden states, item table) of a small encoder."""
    module = ENCODERS[encoder](width=4, layers=1).build(DataSpec(N_ITEMS, 4, n_users=2, has_timestamps=True))
    params = jax.jit(module.init, compiler_options=QUICK)(jax.random.key(0), BATCH)["params"]
    hidden = jax.jit(module.apply, compiler_options=QUICK)({"params": params}, BATCH)
    return hidden.reshape(-1, hidden.shape[-1]), module.item_table(params)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def loss_and_gradients(loss, hidden, table, key):
    def mean(hidden, table):
        targets, weights = TARGETS.reshape(-1), BATCH.weights.reshape(-1)
        total, weight = loss(LossInputs(hidden, table, targets, weights, key, SAMPLING))
        return total / weight

    return jax.value_and_grad(mean, (0, 1))(hidden, table)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_with_every_encoder(objective, encoder, key):
    hidden, table = states_of(encoder)
    config = OBJECTIVES[objective]()
    if encoder not in ONLY.get(objective, {encoder}):
        with pytest.raises(ConfigError, match="expected --encoder stosa"):
            config.build(table)
        return
    value, (of_hidden, of_table) = loss_and_gradients(config.build(table), hidden, table, key)
    assert np.isfinite(value)
    assert value > 0
    assert np.isfinite(of_hidden).all()
    assert np.asarray(of_hidden).any()
    assert not np.asarray(of_hidden)[TARGETS.reshape(-1) == 0].any()
    assert np.isfinite(of_table.vectors).all()
    assert np.asarray(of_table.vectors).any()
