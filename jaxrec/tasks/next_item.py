"""Next-item prediction: every position is trained to rank the item that follows it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax import Array
from jaxtyping import Float

from jaxrec.data.batches import Batch
from jaxrec.models.base import Encoder
from jaxrec.objectives import LossInputs, ObjectiveConfig, SamplingInputs
from jaxrec.tasks.base import TASKS, Resources, Task, TaskConfig


@TASKS.register("next-item")
@dataclasses.dataclass(frozen=True)
class NextItemConfig(TaskConfig):
    """Predict the next item at every position that has a target; the objective of the run is the loss."""

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> NextItem:
        """Build the task."""
        return NextItem(encoder, objective)


class NextItem(Task):
    """The objective applied to the hidden state of every position."""

    def loss(
        self, params: Any, batch: Batch, key: Array, resources: Resources
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Compute the objective; see `Task.loss`."""
        dropout_key, objective_key = jax.random.split(key)
        hidden = self.encoder.apply({"params": params}, batch, True, rngs={"dropout": dropout_key})
        return item_loss(self, params, hidden, batch, objective_key, resources)


def item_loss(
    task: Task, params: Any, hidden: Float[Array, "B L D"], batch: Batch, key: Array, resources: Resources
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Apply a task's objective to hidden states float32[B, L, D] and the targets of ``batch``.

    Returns:
      (weighted sum of the loss, sum of the weights).
    """
    sampling = SamplingInputs(
        item_counts=resources.item_counts,
        users=batch.users.reshape(-1),
        seen_items=resources.seen_items,
        seen_offsets=resources.seen_offsets,
    )
    loss = task.objective.build()
    inputs = LossInputs(
        hidden.reshape(-1, hidden.shape[-1]),
        task.encoder.item_table(params),
        batch.targets.reshape(-1),
        batch.weights.reshape(-1),
        key,
        sampling,
    )
    return loss(inputs)
