"""Draws of an objective do not follow from those with which a task prepared its batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.sampler import Position
from jaxrec.objectives import BinaryCrossEntropyConfig, sampled
from jaxrec.tasks import MaskedItemConfig, NextItemConfig
from jaxrec.training.feed import device_rows, fill_batches
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_params
from jaxrec.training.step import PREPARATION_STREAM, batch_loss
from tests.helpers import small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset(n_users=200)


@pytest.mark.parametrize("task", [MaskedItemConfig(last_only_rate=0.0), NextItemConfig(item_swap=0.2)])
def test_negatives_are_as_popular_as_items_are(task, monkeypatch):
    """Half of the weight belongs to the first items; so do half of the negatives, at positions that were not swapped."""
    config = dataclasses.replace(
        small_config(batches={"batch_size": 128}),
        task=task,
        objective=BinaryCrossEntropyConfig(sampler="popularity"),
    )
    setup = prepare(config, DATASET)
    rows, _ = setup.streams[0].take(Position(), 128)
    rows = jax.tree.map(lambda x: x[0], device_rows([rows], 1))
    batch = jax.tree.map(lambda x: x[0], fill_batches(rows, setup.resources, config.batches))
    drawn = []
    draw = sampled.draw

    def noted(sampler, request):
        negatives = draw(sampler, request)
        drawn.append((negatives.items[:, 0], request.inputs.weights > 0))
        return negatives

    monkeypatch.setattr(sampled, "draw", noted)

    @jax.jit
    def step(params, key):
        prepared = setup.task.prepare(batch, jax.random.fold_in(key, PREPARATION_STREAM), setup.resources)
        batch_loss(setup.task, params, batch, key, setup.resources)
        items, counted = drawn.pop()
        same = isinstance(task, MaskedItemConfig) | (prepared.items == batch.items).reshape(-1)
        return items, counted & same

    items, counted = map(np.asarray, step(initial_params(setup.task, jnp.uint32(0)), jax.random.key(3)))
    counts = np.asarray(setup.resources.item_counts) + config.objective.count_smoothing
    weights = counts[1:] ** config.objective.alpha
    half = int(np.searchsorted(np.cumsum(weights), weights.sum() / 2))
    share = (items[counted] <= half).mean()
    assert share == pytest.approx(weights[:half].sum() / weights.sum(), abs=4 * 0.5 / np.sqrt(counted.sum()))
