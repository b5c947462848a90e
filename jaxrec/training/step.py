"""The compiled part of training: a chunk of many steps for every seed of a run, in one program."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax, stages
from jaxtyping import Float

from jaxrec.data.batches import Batch, BatchConfig
from jaxrec.data.packing import PackedRows
from jaxrec.tasks import Resources, Task
from jaxrec.training.feed import fill_batches
from jaxrec.training.state import Params, TrainState
from jaxrec.training.state_sharding import StateSharding

#: Keeps the draws of `Task.prepare` apart from those of `Task.loss`: a key's own split has the numbers 0, 1, ...
PREPARATION_STREAM = 14


class StepMetrics(NamedTuple):
    """Of one step, or stacked over steps: float32 scalars."""

    loss: Float[Array, ...]
    targets: Float[Array, ...]
    gradient_norm: Float[Array, ...]


def batch_loss(
    task: Task, params: Params, batch: Batch, key: Array, resources: Resources
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the weighted sum of the task's loss over a batch of [B, L] arrays, and the sum of weights."""
    prepared = task.prepare(batch, jax.random.fold_in(key, PREPARATION_STREAM), resources)
    return task.loss(params, prepared, key, resources)


def gradients_of(
    task: Task, accumulate_steps: int, state: TrainState, batch: Batch, resources: Resources
) -> tuple[Float[Array, ""], Float[Array, ""], Params]:
    """Compute the mean loss of a batch, the sum of its weights, and the gradients.

    Args:
      task: whose loss is minimised.
      accumulate_steps: parts of the batch computed one after the other, with their gradients summed.
      state: before the step; its seed and step number determine all randomness.
      batch: arrays [B, L].
      resources: what the task may read.
    """
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)

    def mean_loss(params: Params) -> tuple[Array, Array]:
        total, weight = batch_loss(task, params, batch, key, resources)
        return total / jnp.where(weight > 0, weight, 1.0), weight

    def one_part(sums: Any, part: Any) -> tuple[Any, None]:
        rows, number = part
        own_key = jax.random.fold_in(key, number)
        value = jax.value_and_grad(
            lambda params: batch_loss(task, params, rows, own_key, resources), has_aux=True
        )(state.params)
        return jax.tree.map(jnp.add, sums, value), None

    if accumulate_steps == 1:
        (loss, weight), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        return loss, weight, gradients
    # Sums over the parts, divided once: a mean of means would give targets of sparse parts more weight. Part i has
    # rows i, i + k, ...: a contiguous share of the rows, as a device of a mesh holds, then has some of each part.
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1), batch)
    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jax.tree.map(jnp.zeros_like, state.params))
    numbers = jnp.arange(accumulate_steps, dtype=jnp.int32)
    ((loss, weight), gradients), _ = lax.scan(one_part, start, (parts, numbers))
    share = 1.0 / jnp.where(weight > 0, weight, 1.0)
    return loss * share, weight, jax.tree.map(lambda x: x * share, gradients)


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    accumulate_steps: int,
    state: TrainState,
    batch: Batch,
    resources: Resources,
) -> tuple[TrainState, StepMetrics]:
    """Take one optimiser step.

    Args:
      task: whose loss is minimised.
      optimizer: turns gradients into updates.
      accumulate_steps: parts of the batch computed one after the other, with their gradients summed.
      state: before the step; its seed and step number determine all randomness.
      batch: arrays [B, L].
      resources: what the task may read.

    Returns:
      The state after the step, and the step's metrics.
    """
    state = state._replace(params=task.remember(state.params, batch, resources))
    loss, weight, gradients = gradients_of(task, accumulate_steps, state, batch, resources)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = StepMetrics(loss, weight, optax.tree.norm(gradients))
    return TrainState(state.step + 1, state.seed, params, opt_state), metrics


def make_train_chunk(
    task: Task,
    optimizer: optax.GradientTransformation,
    batches: BatchConfig,
    over_seeds: Literal["vmap", "map"] = "map",
    accumulate_steps: int = 1,
    sharding: StateSharding | None = None,
) -> stages.Wrapped:
    """A jitted function that runs K steps for each of S seeds; the state is donated.

    ``(state with leading [S], inputs with leading [S, K, B], resources, active=None) -> (state, metrics [S, K])``, where the
    inputs are `PackedRows` to be filled from the resident log or a `Batch` that the host filled. With "vmap" the seeds
    advance together; with "map" one after the other inside the same program, which holds the activations of one seed at a
    time. With "map" and ``active`` bool[S], the other seeds keep their state, cost nothing, and have metrics of zero.

    K is the length of the rows: every chunk of a run has the same, so the program is compiled once. It should be at
    least 2: XLA unrolls a loop of one trip and rounds it differently.

    ``sharding`` says where state and batches lie; None leaves a single device to JAX.
    """
    step = partial(train_step, task, optimizer, accumulate_steps)

    def chunk(
        state: TrainState, inputs: PackedRows | Batch, resources: Resources, active: Array | None = None
    ) -> tuple[TrainState, StepMetrics]:
        def one_seed(arguments: tuple[TrainState, Any]) -> tuple[TrainState, StepMetrics]:
            own_state, own_inputs = arguments
            filled = fill_batches(own_inputs, resources, batches)
            filled = filled if sharding is None else sharding.batches(filled)
            return lax.scan(lambda s, batch: step(s, batch, resources), own_state, filled)

        def none(arguments: tuple[TrainState, Any]) -> tuple[TrainState, StepMetrics]:
            zeros = jnp.zeros(jax.tree.leaves(arguments[1])[0].shape[0], jnp.float32)
            return arguments[0], StepMetrics(zeros, zeros, zeros)

        if over_seeds == "vmap":
            return jax.vmap(one_seed)((state, inputs))
        if active is None:
            return lax.map(one_seed, (state, inputs))
        return lax.map(lambda seed: lax.cond(seed[1], one_seed, none, seed[0]), ((state, inputs), active))

    shardings = None if sharding is None else (sharding.shardings(), sharding.replicated())
    return jax.jit(chunk, donate_argnums=0, out_shardings=shardings)
