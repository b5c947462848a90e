"""A training task: next item, after some inputs have been exchanged for random items."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.data.batches import Batch
from jaxrec.models.base import Encoder
from jaxrec.objectives import ObjectiveConfig
from jaxrec.options import Range
from jaxrec.tasks import TASKS, NextItem, Resources, TaskConfig


@TASKS.register("noisy-next-item")
@dataclasses.dataclass(frozen=True)
class NoisyNextItemConfig(TaskConfig):
    """Predict the next item from inputs with noise.

    Attributes:
      rate: share of input items that a random item replaces; targets stay.
    """

    rate: Annotated[float, Range("[0, 1)")] = 0.1

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> NoisyNextItem:
        """Build the task."""
        return NoisyNextItem(encoder, objective, self.rate)


@dataclasses.dataclass(frozen=True)
class NoisyNextItem(NextItem):
    """The next-item task on inputs with noise, drawn inside the compiled step."""

    rate: float = 0.0

    def prepare(self, batch: Batch, key: Array, resources: Resources) -> Batch:
        """Exchange some items for random ones."""
        which, new = jax.random.split(key)
        noise = jax.random.bernoulli(which, self.rate, batch.items.shape) & (batch.items > 0)
        items = jax.random.randint(new, batch.items.shape, 1, self.spec.n_items + 1, jnp.int32)
        return batch._replace(items=jnp.where(noise, items, batch.items))
