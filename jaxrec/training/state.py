"""State that a training step reads and changes, and its first value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int, Integer

from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder, blank_batch
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


def only_params(encoder: Encoder, variables: Mapping[str, Any]) -> Params:
    """The parameters among the variables of an encoder, which may not have any other.

    Raises:
      ConfigError: it keeps something else, such as the running means of a batch norm.
    """
    others = sorted(set(variables) - {"params"})
    if others:
        raise ConfigError(
            f"the encoder {type(encoder).__name__} keeps variables in Flax's collections {', '.join(others)}, which no step "
            "would change and no checkpoint save: expected parameters alone; use layers without running means (layer norm "
            "rather than batch norm), or keep what is not trained in a task (Task.remember)"
        )
    return variables["params"]


def initial_params(task: Task, seed: Integer[Array, ""]) -> Params:
    """Make fresh parameters for ``seed`` (uint32[])."""
    encoder = task.encoder
    key = jax.random.key(seed)
    params = only_params(encoder, encoder.init(key, blank_batch(encoder.max_length), False))
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
