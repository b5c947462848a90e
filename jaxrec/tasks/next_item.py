"""Next-item prediction: every position is trained to rank the item that follows it.

With ``exposure`` above 0 the encoder also meets its own predictions while it trains, as it does when it generates
(scheduled sampling; Bengio et al., NeurIPS 2015, arXiv 1506.03099). All positions are trained at once, so there are two
passes (Mihaylova and Martins, ACL 2019, arXiv 1906.07651; Duckworth et al. 2019, arXiv 1906.04331): the first, without
dropout and without a gradient, reads the true items and predicts each next one; then a share of the inputs is replaced by
what was predicted for them, and the second pass is trained on the true targets. A prediction is made from true items, so
what is fed back is one step of generation, not a whole sequence of them.

With ``item_swap`` above 0 items are exchanged for random ones as in SSE-PT's published code (Wu et al., RecSys 2020;
stochastic shared embeddings, NeurIPS 2019, arXiv 1905.10630): a swapped interaction is the random item both as an input and
as the target of the interaction before it, and its own target is another random item.

Two more options are proposals of *Revisiting SASRec* (arXiv 2504.09596), read here: ``random_offsets`` shifts the
positions of each sequence, so that no position tells how far its end is; ``accuracy_power`` weights each target by
how well the model predicts it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder
from jaxrec.nn.choice import best_index, draw_index
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.segments import first_index, is_first, is_last, last_index, per_segment
from jaxrec.objectives import LossInputs, ObjectiveConfig, SamplingInputs
from jaxrec.objectives.base import LossSums, tempered
from jaxrec.options import Range
from jaxrec.tasks.base import TASKS, Resources, Task, TaskConfig

#: Of the keys of a step: keep the draws of exposure and of offsets apart from dropout and negatives.
_EXPOSURE_STREAM = 11
_OFFSET_STREAM = 12
#: Largest exponent of a weight by accuracy: sums over a batch, and products with losses, stay within float32.
_MOST_EXPONENT = 60.0


@TASKS.register("next-item")
@dataclasses.dataclass(frozen=True)
class NextItemConfig(TaskConfig):
    """Predict the next item at every position that has a target; the objective of the run is the loss.

    Attributes:
      exposure: probability that an input is replaced by what the model predicts in its place (scheduled sampling); the first
        interaction of a sequence never is. A step with it takes one more forward pass and the scores of all items.
      exposure_choice: sample (a draw from the softmax of the scores) or greedy (the best item). The scores are those
        of the objective, divided by its temperature, here and in ``accuracy_power``.
      item_swap: probability that an interaction is exchanged for a random item, as an input and as a target (SSE-PT).
      random_offsets: shift the positions of each sequence in training by a draw from 0 to the most that keeps them below L;
        for positions that are added at the input.
      accuracy_power: weight of a target is the probability that the model gives it, to this power, without a gradient: above
        0 well predicted targets count more, below 0 less. A step with it takes the scores of all items. The loss of a
        step is the weighted mean. No weight is above e^60, and the power may not give a fresh model weights beyond e^-60 or
        e^60, near the ends of float32.
    """

    exposure: Annotated[float, Range("[0, 1]")] = 0.0
    exposure_choice: Literal["sample", "greedy"] = "sample"
    item_swap: Annotated[float, Range("[0, 1)")] = 0.0
    random_offsets: bool = False
    accuracy_power: Annotated[float, Range("[-10, 10]")] = 0.0

    def __post_init__(self) -> None:
        """Check every option."""
        super().__post_init__()
        if self.exposure_choice != "sample" and not self.exposure:
            raise ConfigError(
                f"--task.exposure-choice {self.exposure_choice} has nothing to choose: expected --task.exposure above 0, "
                "got 0; set it, or leave the choice out"
            )

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> NextItem:
        """Build the task.

        Raises:
          ConfigError: offsets of positions for an encoder that adds none, or weights by accuracy beyond float32.
        """
        most = _MOST_EXPONENT / math.log(max(2, encoder.spec.n_items))
        if abs(self.accuracy_power) > most:
            raise ConfigError(
                f"--task.accuracy-power {self.accuracy_power:g} weights targets beyond the range of float32 where each of "
                f"{encoder.spec.n_items:,} items is as likely, as before training: expected a power from "
                f"{-math.floor(10 * most) / 10:g} to {math.floor(10 * most) / 10:g}; choose one"
            )
        if self.random_offsets and not getattr(encoder, "has_additive_positions", False):
            raise ConfigError(
                "--task.random-offsets shifts positions that are added at the input: expected an encoder with "
                "--encoder.positions learned or sinusoidal, got one without; choose one of them, or leave the offsets out"
            )
        if self.exposure or self.random_offsets or self.accuracy_power:
            return AlteredNextItem(encoder, objective, self)
        if self.item_swap:
            return SwappedNextItem(encoder, objective, self)
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


@dataclasses.dataclass(frozen=True)
class SwappedNextItem(NextItem):
    """The same after a share of the interactions was exchanged for random items.

    Attributes:
      config: the share.
    """

    config: NextItemConfig

    def prepare(self, batch: Batch, key: Array, resources: Resources) -> Batch:
        """Exchange interactions; see the module's docstring."""
        if not self.config.item_swap:
            return batch
        place_key, item_key, target_key = jax.random.split(key, 3)
        shape, n_items = batch.items.shape, self.spec.n_items

        def random_items(key: Array) -> Array:
            return jax.random.randint(key, shape, 1, n_items + 1, jnp.int32)

        swapped = (jax.random.uniform(place_key, shape) < self.config.item_swap) & (batch.segments > 0)
        items = jnp.where(swapped, random_items(item_key), batch.items)
        continues = (batch.segments > 0) & ~is_last(batch.segments)
        targets = jnp.where(continues, jnp.pad(items[:, 1:], ((0, 0), (0, 1))), batch.targets)
        targets = jnp.where(swapped, random_items(target_key), targets)
        return batch._replace(items=items, targets=jnp.where(batch.targets > 0, targets, 0))


@dataclasses.dataclass(frozen=True)
class AlteredNextItem(SwappedNextItem):
    """The same with the options of the configuration: predictions among the inputs, shifted positions, weighted targets.

    Attributes:
      config: the options.
    """

    def loss(self, params: Any, batch: Batch, key: Array, resources: Resources) -> tuple[Array, Array]:
        """Compute the objective; see `Task.loss`."""
        if self.config.random_offsets:
            batch = shift_positions(batch, self.spec.max_length, jax.random.fold_in(key, _OFFSET_STREAM))
        if self.config.exposure:
            batch = self.expose(params, batch, jax.random.fold_in(key, _EXPOSURE_STREAM))
        dropout_key, objective_key = jax.random.split(key)
        hidden = self.encoder.apply({"params": params}, batch, True, rngs={"dropout": dropout_key})
        if self.config.accuracy_power:
            batch = self.weigh(params, batch, hidden)
        return item_loss(self, params, hidden, batch, objective_key, resources)

    def weigh(self, params: Any, batch: Batch, hidden: Float[Array, "B L D"]) -> Batch:
        """Multiply each target's weight by its probability to the power ``accuracy_power``."""
        fixed = lax.stop_gradient((hidden, self.encoder.item_table(params)))
        logarithm = log_probabilities(*tempered(*fixed, self.objective.temperature), batch.targets)
        factor = jnp.exp(jnp.minimum(self.config.accuracy_power * logarithm, _MOST_EXPONENT))
        return batch._replace(weights=batch.weights * jnp.where(batch.targets > 0, factor, 0.0))

    def expose(self, params: Any, batch: Batch, key: Array) -> Batch:
        """Replace inputs by predictions, each with the probability ``exposure``."""
        place_key, item_key = jax.random.split(key)
        fixed = lax.stop_gradient(params)
        hidden = self.encoder.apply({"params": fixed}, batch, False)
        draws = item_key if self.config.exposure_choice == "sample" else None
        scored = tempered(hidden[:, :-1], self.encoder.item_table(fixed), self.objective.temperature)
        predicted = predict(*scored, draws)
        predicted = jnp.pad(predicted, ((0, 0), (1, 0)))
        chosen = jax.random.uniform(place_key, batch.items.shape) < self.config.exposure
        chosen = chosen & (batch.segments > 0) & ~is_first(batch.segments)
        return batch._replace(items=jnp.where(chosen, predicted, batch.items))


def shift_positions(batch: Batch, max_length: int, key: Array) -> Batch:
    """Add to the positions of each sequence a draw from 0 to the most that keeps all of them below ``max_length``."""
    segments = batch.segments
    room = max_length - 1 - (last_index(segments) - first_index(segments))
    draws = per_segment(jax.random.uniform(key, segments.shape), segments)
    offset = jnp.minimum((draws * (room + 1).astype(draws.dtype)).astype(jnp.int32), room)
    return batch._replace(positions=jnp.where(segments > 0, batch.positions + offset, batch.positions))


def log_probabilities(
    hidden: Float[Array, "B L D"], table: ItemTable, targets: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Logarithm of the softmax probability of each target among all items; one column of [B, V] scores at a time.

    Args:
      hidden: states.
      table: the candidates.
      targets: items, 0 = none, whose value is that of some item.
    """
    item = jnp.arange(table.vectors.shape[0], dtype=jnp.int32)[None]
    candidate = (item >= 1) & (item <= table.n_items)

    def of_column(column: tuple[Array, Array]) -> Array:
        states, wanted = column
        scores = lax.dot_general(states, table.vectors, (((1,), (1,)), ((), ())))
        scores = scores if table.bias is None else scores + table.bias[None]
        scores = jnp.where(candidate, scores, -jnp.inf)
        own = jnp.take_along_axis(scores, jnp.maximum(wanted, 1)[:, None], axis=1)[:, 0]
        return own - jax.nn.logsumexp(scores, axis=1)

    return lax.map(of_column, (hidden.swapaxes(0, 1), targets.swapaxes(0, 1))).T


def predict(hidden: Float[Array, "B L D"], table: ItemTable, key: Array | None) -> Int[Array, "B L"]:
    """Items int32[B, L] that follow the states [B, L, D]: a draw from the softmax of their scores, or the best.

    One column at a time, so that the scores of [B, V] items are in memory.

    Args:
      hidden: states.
      table: the candidates.
      key: of the draws; None takes the best items.
    """
    rows = table.vectors.shape[0]
    item = jnp.arange(rows, dtype=jnp.int32)[None]
    candidate = (item >= 1) & (item <= table.n_items)

    def of_column(column: tuple[Array, Array]) -> Array:
        states, number = column
        scores = lax.dot_general(states, table.vectors, (((1,), (1,)), ((), ())))
        scores = scores if table.bias is None else scores + table.bias[None]
        scores = jnp.where(candidate, scores, -jnp.inf)
        if key is None:
            return best_index(scores)
        return draw_index(scores, jax.random.uniform(jax.random.fold_in(key, number), (len(states),)))

    numbers = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    return lax.map(of_column, (hidden.swapaxes(0, 1), numbers)).T


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
    sums = loss(inputs)
    if not isinstance(sums, LossSums):
        raise ConfigError(
            f"{type(task.objective).__name__}.loss must return LossSums(total, weight), the weighted sum of the loss and "
            f"the sum of the weights; got {type(sums).__name__}"
        )
    return sums
