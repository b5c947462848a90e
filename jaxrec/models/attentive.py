"""Common part of encoders whose layers attend: the choice of attention mechanism and of position scheme."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec, Mask
from jaxrec.attention.cache import CacheStep
from jaxrec.attention.positions import POSITIONS
from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder, EncoderConfig
from jaxrec.nn.spec import DataSpec


@dataclasses.dataclass(frozen=True)
class AttentiveEncoderConfig(EncoderConfig):
    """Base of the configurations of encoders with attention.

    Attributes:
      attention: the mechanism in every layer, a configuration of `jaxrec.attention.ATTENTION` or of one's own.
      positions: "auto" (the attention mechanism's own preference), or a key of
        ``jaxrec.attention.positions.POSITIONS``: "learned", "sinusoidal", "none", or a scheme inside the attention
        ("rotary", "relative-bias", "alibi", "time-interval", "hstu-time"), or both ("learned-hstu-time").
    """

    attention: AttentionConfig = SoftmaxAttentionConfig()
    positions: str = "auto"

    def __post_init__(self) -> None:
        """Check every option."""
        super().__post_init__()
        if self.positions != "auto":
            POSITIONS[self.positions]

    @property
    def position_scheme(self) -> str:
        """The position scheme in force."""
        return self.attention.default_positions if self.positions == "auto" else self.positions

    @property
    def needs_timestamps(self) -> bool:
        """Whether the position scheme reads the time of each interaction."""
        return POSITIONS[self.position_scheme].needs_timestamps

    def check_spec(self, spec: DataSpec) -> None:
        """Refuse data without what the position scheme needs."""
        if self.needs_timestamps and not spec.has_timestamps:
            raise ConfigError(
                f"--encoder.positions {self.position_scheme} needs the time of each interaction: expected a dataset "
                "with timestamps, got one without; choose other positions, or load a log with a time column"
            )


class AttentiveEncoder(Encoder):
    """Base of encoders with attention."""

    config: AttentiveEncoderConfig

    @property
    def attention(self) -> AttentionConfig:
        """The mechanism in every layer."""
        return self.config.attention

    @property
    def positions(self) -> str:
        """The position scheme in force."""
        return self.config.position_scheme

    @property
    def has_additive_positions(self) -> bool:
        """Whether position vectors are added to the embeddings."""
        return POSITIONS[self.positions].additive

    @property
    def has_learned_positions(self) -> bool:
        """Whether these vectors are parameters."""
        return POSITIONS[self.positions].learned

    def attention_spec(self) -> AttentionSpec:
        """Settings that every layer passes to its attention module."""
        raise NotImplementedError(f"{type(self).__name__} must define attention_spec()")

    def cache_obstacle(self, planned: bool = False) -> str | None:
        """Positions at the input that move with the end of a history, or the attention's reason; see `Encoder`."""
        shape = self.attention_spec()
        if planned:
            shape = dataclasses.replace(shape, position_origin="start")
        if self.has_additive_positions and shape.position_origin == "end":
            return (
                f"{self.positions} positions count from the newest interaction (--batches.position-origin end), so every "
                "new one changes the input of all others"
            )
        return self.attention.cache_obstacle(shape)

    def attention_context(
        self, batch: Batch, shape: AttentionSpec, mask: Mask, cache: CacheStep | None = None
    ) -> AttentionContext:
        """Per-position metadata for the attention modules, with what the layers share; call once per forward pass."""
        self.attention.check(shape)
        shared_module: Any = self.attention.build_shared(shape, name="shared_attention")
        shared = None if shared_module is None else shared_module()
        return AttentionContext(
            batch.positions, batch.segments, batch.timestamps, shared, cache=cache, mask=mask
        )


def tokens_context(tokens: Float[Array, "1 P D"]) -> AttentionContext:
    """The context of tokens [1, P, D] in front of every sequence: one sequence, with zeros in front of it."""
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return AttentionContext(index, jnp.ones_like(index), jnp.zeros_like(index), tokens=jnp.zeros_like(tokens))


def padding_context() -> AttentionContext:
    """The context of one position of padding, which sees padding alone: however many there are, their mean is its own."""
    zero = jnp.zeros((1, 1), jnp.int32)
    return AttentionContext(zero, jnp.ones_like(zero), zero)


def prefix_context(rows: int) -> AttentionContext:
    """The context of tokens that see themselves alone, each in a row of its own."""
    index = jnp.zeros((rows, 1), jnp.int32)
    return AttentionContext(index, jnp.ones_like(index), index)
