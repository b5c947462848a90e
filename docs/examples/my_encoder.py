"""An encoder without attention: the decayed mean of the item vectors so far, and a linear map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import Mask, allowed_positions
from jaxrec.data.batches import Batch
from jaxrec.models import ENCODERS, Encoder, EncoderConfig, ItemTable
from jaxrec.nn.embedding import ItemEmbedding
from jaxrec.nn.layers import Dense, Dropout
from jaxrec.nn.precision import DTYPES
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Range

INIT = nn.initializers.normal(0.02)


@ENCODERS.register("decayed-mean")
@dataclasses.dataclass(frozen=True)
class DecayedMeanConfig(EncoderConfig):
    """Decayed mean of item vectors.

    Attributes:
      decay: factor of a weight from one interaction to the one before it.
    """

    decay: Annotated[float, Range("(0, 1]")] = 0.8

    def build(self, spec: DataSpec) -> DecayedMean:
        """Build the encoder for data of these sizes."""
        return DecayedMean(self, spec)


class DecayedMean(Encoder):
    """``apply({"params": p}, batch) -> [B, L, D]``; parameters: ``(V + 1 + n_special) D + D^2 + D``."""

    config: DecayedMeanConfig

    @nn.compact
    def __call__(
        self, batch: Batch, train: bool = False, query_positions: Array | None = None, mask: Mask = "causal"
    ) -> Array:
        """Compute hidden states; see `Encoder`."""
        self.check_call(train, query_positions)
        width = self.config.width
        x = ItemEmbedding(self.spec, width, INIT, self.shards, name="items")(batch.items)
        x = Dropout(self.config.dropout)(x, train)
        index = jnp.arange(x.shape[1], dtype=jnp.float32)
        weights = self.config.decay ** jnp.abs(index[:, None] - index[None, :])
        weights = jnp.where(allowed_positions(batch.segments, mask), weights[None], 0.0)
        mean = jnp.einsum("bij,bjd->bid", weights / weights.sum(-1, keepdims=True), x)
        hidden = Dense(width, kernel_init=INIT, dtype=DTYPES[self.config.dtype], name="output")(mean)
        hidden = jnp.where((batch.segments > 0)[..., None], hidden, 0.0)
        if query_positions is None:
            return hidden
        return jnp.take_along_axis(hidden, query_positions[..., None], axis=1)

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """Score against the input's item vectors."""
        return ItemTable(params["items"]["table"], None, self.shards)

    def parameter_count(self) -> int:
        """Count the parameters."""
        width = self.config.width
        return (self.n_items + 1 + self.spec.n_special) * width + width**2 + width
