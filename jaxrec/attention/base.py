"""What every attention mechanism is given, and the configuration that builds one."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.positions import POSITIONS
from jaxrec.errors import ConfigError
from jaxrec.nn.layers import Initializer

Mask = Literal["causal", "bidirectional"]

XAVIER_UNIFORM: Initializer = nn.initializers.xavier_uniform()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """Where each position of a batch stands: shared by all layers of an encoder.

    Attributes:
      positions: int32[B, L], index of the position inside its own sequence (from the start or from the end).
      segments: int32[B, L], 0 = padding, 1.. = which sequence of the row. The positions of a sequence are
        adjacent and in time order, so "not later" is "not further right".
      timestamps: int32[B, L] or None, seconds since the first event of the dataset (clipped), for
        time-interval biases.
      shared: what ``AttentionConfig.shared_module`` returned, for mechanisms whose layers share parameters,
        or None.
      mask: "causal" or "bidirectional": whether a query also sees later positions of its segment.
    """

    positions: Array
    segments: Array
    timestamps: Array | None = None
    shared: Any = None
    mask: Mask = dataclasses.field(default="causal", metadata={"static": True})

    def allowed(self) -> Array:
        """bool[B, L, L]: query position i (second axis) may see key position j (third axis).

        Same sequence and not later. Every position sees itself, padding too: a softmax over nothing would
        silently return the mean of all values.
        """
        return allowed_positions(self.segments)


def allowed_positions(segments: Array, at: Array | None = None) -> Array:
    """The one mask of the project (see `AttentionContext.allowed`) from ``segments`` int32[B, L]: bool[B, L,
    L], or bool[B, S, L] for the queries at the positions ``at`` int32[B, S].
    """
    index = jnp.arange(segments.shape[1])
    asking = index[None] if at is None else at
    own = segments if at is None else jnp.take_along_axis(segments, at, axis=1)
    same = own[:, :, None] == segments[:, None, :]
    real = (segments > 0)[:, None, :]
    causal = asking[:, :, None] >= index[None, None, :]
    itself = asking[:, :, None] == index[None, None, :]
    return (same & real & causal) | itself


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """What the encoder decides for the mechanism inside each of its blocks.

    Attributes:
      width: D, size of a hidden state.
      max_length: L at most; the size of position-indexed parameters.
      positions: position scheme (a key of ``jaxrec.attention.positions.POSITIONS``).
      position_origin: "start" or "end": what ``AttentionContext.positions`` counts from.
      output_projection: whether an affine map follows the heads (the original SASRec has none).
      kernel_init: initialiser of projection kernels.
      dtype: precision of the operands of matrix products.
    """

    width: int
    max_length: int
    positions: str = "none"
    position_origin: str = "start"
    output_projection: bool = True
    kernel_init: Initializer = XAVIER_UNIFORM
    dtype: Any = jnp.float32


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Base of every mechanism's configuration; a subclass adds its options and builds its module.

    Attributes:
      heads: H, number of heads; divides the width.
      dropout: rate on the attention weights.
      rows_per_group: rows of the batch whose scores are held at once; the others wait their turn, and scores
        are recomputed in the backward pass, so [rows, L, L] tensors stay in a CPU's cache. 0 = automatic:
        groups of about a million scores on a single CPU device, all rows at once elsewhere. Results do not
        depend on it.
    """

    heads: int = 1
    dropout: float = 0.0
    rows_per_group: int = 0

    #: Position scheme used when the encoder's is "auto".
    default_positions: ClassVar[str] = "learned"
    #: Whether the module can answer for some positions alone; see `module`.
    selects_positions: ClassVar[bool] = False
    #: Where the mechanism comes from, for listings.
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ConfigError(f"attention.heads must be at least 1, got {self.heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"attention.dropout must be in [0, 1), got {self.dropout}")
        if self.rows_per_group < 0:
            raise ConfigError(
                f"attention.rows_per_group must be 0 (automatic) or a number of rows, "
                f"got {self.rows_per_group}"
            )

    def check(self, shape: AttentionShape) -> None:
        """Refuse what cannot work inside an encoder of this ``shape``; subclasses add their own refusals."""
        scheme = POSITIONS[shape.positions]
        if shape.width % self.heads:
            raise ConfigError(
                f"attention.heads must divide the encoder's width: got {self.heads} heads for width "
                f"{shape.width}; choose heads from "
                f"{[h for h in range(1, shape.width + 1) if shape.width % h == 0]}"
            )
        if scheme.even_heads and (shape.width // self.heads) % 2:
            raise ConfigError(
                f"positions {shape.positions!r} need an even width of each head: got "
                f"{shape.width // self.heads} (width {shape.width}, {self.heads} heads); "
                f"choose another width, heads or positions"
            )

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        """A Linen module: ``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

        ``queries`` [B, L, D] is what query vectors are computed from where it differs from ``x`` (the
        original SASRec normalises only the queries' input); None means ``x``.

        With `selects_positions` the module also takes ``at`` int32[B, S], the positions whose answer is
        wanted, and then ``queries`` [B, S, D] of these and no dropout: the answer is [B, S, D].
        """
        raise TypeError(f"{type(self).__name__} does not define module()")

    def parameter_count(self, shape: AttentionShape) -> int:
        """Number of parameters of one layer's module, by the formula in its docstring."""
        raise TypeError(f"{type(self).__name__} does not define parameter_count()")

    def shared_module(self, shape: AttentionShape, name: str | None = None) -> nn.Module | None:
        """A Linen module without arguments that owns what all layers share, or None where they share nothing.

        An encoder calls it once and passes what it returns to every layer as ``AttentionContext.shared``.
        """
        return None

    def shared_parameter_count(self, shape: AttentionShape) -> int:
        """Number of parameters of `shared_module`."""
        return 0

    def from_shared(self, context: AttentionContext, option: str) -> Any:
        """What `shared_module` returned, or an error that names the ``option`` that asked for it."""
        if context.shared is None:
            raise ConfigError(
                f"attention.{option} is on, but the encoder passes no shared parameters in "
                f"AttentionContext.shared; turn {option} off, or call shared_module() once in the encoder"
            )
        return context.shared
