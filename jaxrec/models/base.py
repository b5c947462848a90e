"""What every encoder is built from, and what it gives to objectives, ranking, serving and export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
from jax import Array

from jaxrec.attention.base import AttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.precision import DTYPES
from jaxrec.sharding import ItemShards


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Base of every encoder's configuration; a subclass adds its options and builds its module.

    Attributes:
      width: size of item vectors and hidden states.
      layers: number of blocks.
      dropout: rate on the embeddings and on each sublayer.
      positions: "auto" (what the attention mechanism prefers), or a key of
        ``jaxrec.attention.positions.POSITIONS``: "learned", "sinusoidal", "none", or a scheme inside the
        attention ("rotary", "relative-bias", "alibi", "time-interval").
      dtype: operands of matrix products: "float32" or "bfloat16" (sums stay float32).
    """

    width: int = 64
    layers: int = 2
    dropout: float = 0.3
    positions: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    #: Whether scores are ``|h|^2`` minus squared distances between Gaussians (see `jaxrec.models.stosa`).
    scores_are_distances: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in ("width", "layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"encoder.{field} must be at least 1, got {getattr(self, field)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"encoder.dropout must be in [0, 1), got {self.dropout}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"encoder.dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")

    def module(
        self, attention: AttentionConfig, n_items: int, max_length: int, position_origin: str = "start"
    ) -> Encoder:
        """The encoder for a catalogue of ``n_items`` and histories of at most ``max_length``."""
        raise TypeError(f"{type(self).__name__} is a base class: choose one from jaxrec.models.ENCODERS")


class Encoder(nn.Module):
    """Base of the encoders: ``apply({"params": p}, batch, train, rngs) -> hidden float32[B, L, D]``.

    For evaluation ``apply({"params": p}, batch, at=int32[B, S])`` gives the states [B, S, D] of these
    positions alone, which are those of the whole batch up to rounding; encoders leave out of their last
    block what the other positions do not need.
    """

    config: EncoderConfig
    attention: AttentionConfig
    n_items: int
    max_length: int
    position_origin: str = "start"
    shards: ItemShards | None = None

    @property
    def positions(self) -> str:
        """The position scheme in force."""
        return self.attention.default_positions if self.config.positions == "auto" else self.config.positions

    def __call__(self, batch: Batch, train: bool = False, at: Array | None = None) -> Array:
        """Hidden states float32[B, L, D], or [B, S, D] of the positions ``at`` int32[B, S]."""
        raise TypeError(f"{type(self).__name__} does not define __call__()")

    @staticmethod
    def check_selection(train: bool, at: Array | None) -> None:
        """Refuse positions ``at`` while training: dropout is drawn for whole rows."""
        if train and at is not None:
            raise ConfigError(
                "at selects positions in evaluation only: expected train=False, got train=True; leave at out"
            )

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """The candidates, from the encoder's parameters."""
        raise TypeError(f"{type(self).__name__} does not define item_table()")

    def parameter_count(self) -> int:
        """Number of parameters, by the formula in the class docstring."""
        raise TypeError(f"{type(self).__name__} does not define parameter_count()")
