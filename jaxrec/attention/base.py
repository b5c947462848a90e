"""Base class of attention configurations, and what an encoder passes to a mechanism."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.cache import CacheStep
from jaxrec.attention.positions import POSITIONS
from jaxrec.errors import ConfigError
from jaxrec.nn.layers import Initializer
from jaxrec.options import Range, Search, option_name, validate

XAVIER_UNIFORM: Initializer = nn.initializers.xavier_uniform()

#: Options of a mechanism as the command line shows them.
SECTION = "encoder.attention"

Mask = Literal["causal", "bidirectional"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """Per-position metadata of a batch, shared by all layers of an encoder.

    Attributes:
      positions: int32[B, L], index of the position inside its own sequence (from the start or from the end).
      segments: int32[B, L], 0 = padding, 1.. = which sequence of the row. The positions of a sequence are
        adjacent and in time order, so "not later" is "not further right".
      timestamps: int32[B, L] or None, seconds since the first event of the log or of the user (clipped), for
        time-interval biases.
      shared: output of the module of ``AttentionConfig.build_shared``, for mechanisms whose layers share
        parameters, or None.
      tokens: [1, P, D], states of learned tokens in front of every sequence, as this layer's attention reads them, or
        None; see `AttentionConfig.front_tokens`.
      padding: [1, 1, D], the state of every position of padding as this layer's attention reads it, where padding takes
        part as keys (`jaxrec.attention.padding_keys`), or None.
      prefix: [B, L, D], the state of the token in front of each sequence as this layer's attention reads it, at the column
        of the sequence's first position (`jaxrec.attention.prefix_keys`), or None.
      cache: which columns are computed, where rows grow by one position at a time (`jaxrec.attention.cache`); the arrays
        above are then those of the whole rows.
      mask: "causal" (a position sees its own sequence up to itself) or "bidirectional" (all of its sequence).
        Static: not a leaf of the pytree.
    """

    positions: Array
    segments: Array
    timestamps: Array | None = None
    shared: Any = None
    tokens: Array | None = None
    padding: Array | None = None
    prefix: Array | None = None
    cache: CacheStep | None = None
    mask: Mask = dataclasses.field(default="causal", metadata={"static": True})

    def __post_init__(self) -> None:
        if self.mask not in get_args(Mask):
            raise ConfigError(
                f"AttentionContext.mask must be one of {', '.join(get_args(Mask))}; got {self.mask!r}"
            )

    def allowed(self, query_positions: Int[Array, "B S"] | None = None) -> Bool[Array, "B S L"]:
        """The mask bool[B, L, L] of pairs (query, key): see `allowed_positions`."""
        return allowed_positions(self.segments, self.mask, query_positions)


def allowed_positions(
    segments: Int[Array, "B L"], mask: Mask = "causal", query_positions: Int[Array, "B S"] | None = None
) -> Bool[Array, "B S L"]:
    """The one mask of the project: query (second axis) may attend to key (third axis).

    Both belong to the same sequence and, if causal, the key is not later. Every position sees itself, padding too:
    a softmax over no key would return the mean of all values.

    Args:
      segments: int32[B, L].
      mask: "causal" or "bidirectional".
      query_positions: int32[B, S], columns of the queries; None = all L.

    Returns:
      bool[B, L, L], or bool[B, S, L].
    """
    index = jnp.arange(segments.shape[1])
    column = index[None] if query_positions is None else query_positions
    own = segments if query_positions is None else jnp.take_along_axis(segments, query_positions, axis=1)
    same = (own[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    if mask == "causal":
        same = same & (column[:, :, None] >= index[None, None, :])
    return same | (column[:, :, None] == index[None, None, :])


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """Settings that an encoder passes to the attention module of each of its blocks.

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
class AttentionConfig(abc.ABC):
    """Base of every mechanism's configuration; a subclass adds its options and builds its module.

    Weight decay goes by parameter names (`jaxrec.optim.decay_mask`): what ends in ``kernel`` is a matrix from features
    to features and decays; a parameter indexed by positions, distances or slots must be named otherwise.

    Attributes:
      heads: H, number of heads; divides the width.
      dropout: rate on the attention weights.
      rows_per_group: rows of the batch whose scores are held at once; scores are recomputed in the backward pass, so
        [rows, L, L] tensors stay in a CPU's cache. 0 = automatic: groups of about a million scores on a single CPU
        device, all rows at once elsewhere. Results do not depend on it.
    """

    heads: Annotated[int, Range("[1, inf)"), Search("1,2,4")] = 1
    dropout: Annotated[float, Range("[0, 1)"), Search("0:0.5")] = 0.0
    rows_per_group: Annotated[int, Range("[0, inf)")] = 0

    #: Position scheme used when the encoder's is "auto".
    default_positions: ClassVar[str] = "learned"
    #: Whether the module takes ``query_positions``; see `build`.
    selects_positions: ClassVar[bool] = False
    #: Whether the module reads ``AttentionContext.padding``.
    reads_padding: ClassVar[bool] = False
    #: Whether the module reads ``AttentionContext.prefix``.
    reads_prefix: ClassVar[bool] = False
    #: Source of the mechanism, for listings.
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        validate(self, SECTION)

    def check(self, spec: AttentionSpec) -> None:
        """Reject what cannot work inside an encoder of this ``spec``; subclasses add their own conditions.

        Raises:
          ConfigError: the heads do not fit the width, or the position scheme does not fit the heads.
        """
        scheme = POSITIONS[spec.positions]
        if spec.width % self.heads:
            raise ConfigError(
                f"{option_name(SECTION, 'heads')} must divide the encoder's width: got {self.heads} heads for width "
                f"{spec.width}; choose heads from "
                f"{[h for h in range(1, spec.width + 1) if spec.width % h == 0]}"
            )
        if scheme.even_heads and (spec.width // self.heads) % 2:
            raise ConfigError(
                f"--encoder.positions {spec.positions} needs an even width of each head: got "
                f"{spec.width // self.heads} (width {spec.width}, {self.heads} heads); "
                f"choose another width, heads or positions"
            )

    def advice(self, lengths: np.ndarray) -> list[str]:
        """Warnings about options that do not suit training histories of these lengths int[N]; none by default."""
        return []

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """Reason why a new position cannot be computed from stored arrays of those before it, or None if it can.

        A mechanism whose module stores them (`jaxrec.attention.cache.remember`) overrides this. Positions that count from
        the end of a growing sequence are the encoder's concern: ``spec.position_origin`` is "start" where they are fixed.
        """
        return f"{type(self).__name__} keeps nothing of earlier positions"

    @abc.abstractmethod
    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build the Linen module ``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

        ``queries`` [B, L, D] is the input of the query vectors where it differs from ``x`` (the original SASRec
        normalises it alone); None means ``x``.

        With `selects_positions` the module also takes ``query_positions`` int32[B, S], columns of ``x`` and ``queries``, and
        returns [B, S, D] of these positions alone.
        """

    @abc.abstractmethod
    def parameter_count(self, spec: AttentionSpec) -> int:
        """Number of parameters of one layer's module, by the formula in its docstring."""

    def build_shared(self, spec: AttentionSpec, name: str | None = None) -> nn.Module | None:
        """Build the module, without arguments, of the parameters that all layers share; None without any.

        An encoder calls it once and passes the output to every layer as ``AttentionContext.shared``.
        """
        return None

    def shared_parameter_count(self, spec: AttentionSpec) -> int:
        """Number of parameters of `build_shared`."""
        return 0

    def front_tokens(self, context: AttentionContext) -> Float[Array, "1 P D"] | None:
        """Learned tokens [1, P, D] that precede every sequence at the input of the first layer; None without any.

        They see each other and no item, so they have the same states in front of every sequence. An encoder passes them
        through its layers beside the items, and to each layer as ``AttentionContext.tokens``.
        """
        return None

    def shared_parameters(self, context: AttentionContext, option: str) -> Any:
        """``context.shared``, or an error that names the ``option`` that needs it.

        Raises:
          ConfigError: the encoder shares nothing.
        """
        if context.shared is None:
            raise ConfigError(
                f"{option_name(SECTION, option)} is on, but the encoder passes no shared parameters in "
                f"AttentionContext.shared; turn {option} off, or call build_shared() once in the encoder"
            )
        return context.shared

    def parameter_figures(
        self, spec: AttentionSpec, layers: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]
    ) -> dict[str, list[tuple[str, np.ndarray]]]:
        """Matrices worth drawing: ``{figure: [(title of the panel, float[n, n]), ...]}``; none by default.

        Args:
          spec: settings of the encoder.
          layers: parameters of each layer's module.
          shared: parameters of `build_shared`.

        Returns:
          Panels of each figure, two to a row; the key becomes the name of its file.
        """
        return {}
