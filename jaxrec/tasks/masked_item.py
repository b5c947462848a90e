"""Masked items (BERT4Rec: Sun et al., CIKM 2019, arXiv 1904.06690).

The encoder reads a history in both directions, with some of its items replaced by a mask token, and the objective of
the run is applied at the masked positions: with ``cross-entropy`` over the whole catalogue that is BERT4Rec. To rank,
the mask token is appended to a history, whose last L - 1 items are read, and the state of the token scores the items.

Each sequence draws one of two ways of masking, as in the published code: most sequences mask each position with
probability ``mask_rate`` (and the last one where none is masked), the others mask the last position alone, which is
the question that ranking asks.

A masked-item model has ``mask_rate`` times the targets of a next-item model in an epoch, and needs more epochs for the
same number of them: Petrov and Macdonald (RecSys 2022, arXiv 2207.07483) found most published BERT4Rec baselines
undertrained, by factors of up to thirty in training time. Compare at convergence: a high ``--training.epochs`` with early
stopping, not at the epochs of SASRec.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.attention.base import Mask
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder
from jaxrec.nn.segments import any_in_segment, is_last, per_segment
from jaxrec.objectives import ObjectiveConfig
from jaxrec.options import Range
from jaxrec.tasks.base import TASKS, Resources, Task, TaskConfig
from jaxrec.tasks.next_item import item_loss

MASK_TOKEN = 0  # among the special tokens


@TASKS.register("masked-item")
@dataclasses.dataclass(frozen=True)
class MaskedItemConfig(TaskConfig):
    """Predict masked items from both sides; the objective of the run is the loss.

    Attributes:
      mask_rate: probability that a position is masked.
      last_only_rate: share of the sequences in which the last position alone is masked.
    """

    mask_rate: Annotated[float, Range("(0, 1]")] = 0.2
    last_only_rate: Annotated[float, Range("[0, 1]")] = 0.1

    n_special: ClassVar[int] = 1
    whole_sequences: ClassVar[bool] = True

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> MaskedItem:
        """Build the task.

        Raises:
          ConfigError: the encoder reads histories in one direction, or rows have no room for a mask token.
        """
        check_bidirectional(encoder, "masked-item")
        if encoder.max_length < 2:
            raise ConfigError(
                "--batches.max-length must be at least 2 for the task 'masked-item', whose mask token takes a position; "
                f"got {encoder.max_length}"
            )
        return MaskedItem(encoder, objective, self)


def check_bidirectional(encoder: Encoder, task: str) -> None:
    """Refuse an encoder that cannot read both directions, before any compute.

    Raises:
      ConfigError: the encoder, or its attention, says why.
    """
    size = (1, min(2, encoder.max_length))
    shape, weights = jax.ShapeDtypeStruct(size, jnp.int32), jax.ShapeDtypeStruct(size, jnp.float32)
    batch = Batch(shape, shape, shape, shape, weights, timestamps=shape, users=shape)
    plain = encoder.clone(shards=None)
    try:
        jax.eval_shape(lambda b: plain.init(jax.random.key(0), b, mask="bidirectional"), batch)
    except ConfigError as error:
        raise ConfigError(f"--task {task} reads histories in both directions: {error}") from None


@dataclasses.dataclass(frozen=True)
class MaskedItem(Task):
    """The objective at masked positions."""

    config: MaskedItemConfig

    mask: ClassVar[Mask] = "bidirectional"
    query_token: ClassVar[int | None] = MASK_TOKEN

    def prepare(self, batch: Batch, key: Array, resources: Resources) -> Batch:
        """Mask items; the masked ones become the targets."""
        config, real = self.config, batch.segments > 0
        position_key, sequence_key = jax.random.split(key)
        last = is_last(batch.segments)
        masked = real & (jax.random.uniform(position_key, real.shape) < config.mask_rate)
        masked = masked | (last & ~any_in_segment(masked, batch.segments))
        last_only = per_segment(
            jax.random.uniform(sequence_key, real.shape) < config.last_only_rate, batch.segments
        )
        masked = jnp.where(last_only, last, masked)
        return batch._replace(
            items=jnp.where(masked, self.spec.n_items + 1 + MASK_TOKEN, batch.items),
            targets=jnp.where(masked, batch.items, 0),
            weights=masked.astype(jnp.float32),
        )

    def loss(
        self, params: Any, batch: Batch, key: Array, resources: Resources
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Compute the objective; see `Task.loss`."""
        dropout_key, objective_key = jax.random.split(key)
        hidden = self.encoder.apply(
            {"params": params}, batch, True, mask=self.mask, rngs={"dropout": dropout_key}
        )
        return item_loss(self, params, hidden, batch, objective_key, resources)
