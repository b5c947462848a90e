"""State that a training step reads and changes, and its first value."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int, Integer

from jaxrec.data.batches import Batch
from jaxrec.tasks import Task

Params = Any


class TrainState(NamedTuple):
    """All that a step changes. Randomness is ``fold_in(key(seed), step)``, so no generator state is kept.

    Attributes:
      step: int32[], steps done.
      seed: uint32[], of the run.
      params: the encoder's parameters, with the task's own under "task" where it has any.
      opt_state: the optimiser's state.
    """

    step: Int[Array, ...]
    seed: Integer[Array, ...]
    params: Params
    opt_state: Any


def initial_params(task: Task, seed: Integer[Array, ""]) -> Params:
    """Make fresh parameters for ``seed`` (uint32[])."""
    encoder = task.encoder
    length = 2 if encoder.max_length > 1 else 1
    zeros = jnp.zeros((1, length), jnp.int32)
    blank = Batch(
        zeros, zeros, zeros, zeros, jnp.zeros((1, length), jnp.float32), timestamps=zeros, users=zeros
    )
    key = jax.random.key(seed)
    params = encoder.init(key, blank, False)["params"]
    heads = task.init(jax.random.fold_in(key, 1))
    if heads:
        params = {**params, "task": heads}
    return params


def initial_state(
    task: Task, optimizer: optax.GradientTransformation, seed: Integer[Array, ""]
) -> TrainState:
    """Make fresh parameters and optimiser state for ``seed`` (uint32[])."""
    params = initial_params(task, seed)
    return TrainState(jnp.int32(0), seed, params, optimizer.init(params))
