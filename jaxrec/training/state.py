"""What a training step reads and changes, and how a run begins."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxrec.data.batches import Batch

Params = Any


class TrainState(NamedTuple):
    """All that a step changes. Randomness is ``fold_in(key(seed), step)``, so no generator state is kept.

    Attributes:
      step: int32[], steps done.
      seed: uint32[], of the run.
      params: the encoder's parameters.
      opt_state: the optimiser's state.
    """

    step: Array
    seed: Array
    params: Params
    opt_state: Any


class Resources(NamedTuple):
    """What stays on the device for a whole run.

    Attributes:
      items: int32[N], the log, or None where batches are streamed.
      timestamps: int32[N] seconds since the first event, or None.
      item_counts: float32[V+1], training interactions of each item, or None where no sampler asks.
      seen_items: int32[N], each user's training items in ascending order, or None where no sampler asks.
      seen_offsets: int32[U+1], user u's items are ``seen_items[seen_offsets[u]:seen_offsets[u+1]]``, or None.
    """

    items: Array | None = None
    timestamps: Array | None = None
    item_counts: Array | None = None
    seen_items: Array | None = None
    seen_offsets: Array | None = None


def initial_state(encoder: nn.Module, optimizer: optax.GradientTransformation, seed: Array) -> TrainState:
    """Fresh parameters and optimiser state for ``seed`` (uint32[])."""
    length = 2 if encoder.max_length > 1 else 1
    zeros = jnp.zeros((1, length), jnp.int32)
    blank = Batch(zeros, zeros, zeros, zeros, jnp.zeros((1, length), jnp.float32), timestamps=zeros)
    params = encoder.init(jax.random.key(seed), blank, False)["params"]
    return TrainState(jnp.int32(0), seed, params, optimizer.init(params))
