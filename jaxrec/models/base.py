"""Contract of every encoder: a batch of histories in, a hidden state per position and the candidates' table out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.attention.base import Mask
from jaxrec.attention.cache import CacheStep
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Range, Search, validate
from jaxrec.registry import Registry
from jaxrec.sharding import ItemShards


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Base of every encoder's configuration; a subclass adds its options and builds its module.

    Attributes:
      width: D, size of item vectors and hidden states.
      layers: number of layers.
      dropout: rate on the embeddings and on each sublayer.
      dtype: operands of matrix products: "float32" or "bfloat16" (sums stay float32).
      item_delta: where the dataset has a vector for each item, an item is a linear map of that vector plus a trained
        change of its own, whose norm is at most this; 0 = no change. Items that training never saw have none.
      item_codes: composition of item vectors out of a few small tables.
    """

    width: Annotated[int, Range("[1, inf)"), Search("32,64,128")] = 64
    layers: Annotated[int, Range("[1, inf)"), Search("1:3")] = 2
    dropout: Annotated[float, Range("[0, 1)"), Search("0:0.6")] = 0.3
    dtype: Literal["float32", "bfloat16"] = "float32"
    item_delta: Annotated[float, Range("[0, inf)")] = 0.5
    item_codes: ItemCodesConfig = ItemCodesConfig()

    def __post_init__(self) -> None:
        """Check every option; a subclass with rules of its own calls this first."""
        validate(self, "encoder")

    @property
    def needs_timestamps(self) -> bool:
        """Whether the encoder reads the time of each interaction."""
        return False

    @property
    def needs_users(self) -> bool:
        """Whether the encoder reads whose history it is; runs of such an encoder save the ids of their users."""
        return False

    @property
    def reads_item_vectors(self) -> bool:
        """Whether the encoder makes its items of vectors of the dataset, or of codes, where there are any."""
        return False

    def build(self, spec: DataSpec) -> Encoder:
        """Build the encoder for data of these sizes.

        Raises:
          ConfigError: the options cannot work for these sizes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build(spec)")


#: Configuration classes by name; `ENCODERS.register` adds one.
ENCODERS: Registry[type[EncoderConfig]] = Registry("encoder")


class Encoder(nn.Module):
    """Base of the encoders, pure Linen modules.

    ``apply({"params": p}, batch, train, rngs=...)`` gives hidden states float32[B, L, D]. For evaluation, and for
    training where `selects_in_training` says so, ``query_positions`` int32[B, S] asks for the states [B, S, D] of some
    positions alone, which are those of the whole batch up to rounding; an encoder may leave out what the others do not need.

    A sequence has the same states alone, padded on either side, or packed beside others: nothing may cross
    ``batch.segments``. Weight decay goes by parameter names: see `jaxrec.optim.decay_mask`.

    Attributes:
      config: options.
      spec: sizes of the data.
      shards: placement of the item tables on a mesh, or None on one device.
    """

    config: EncoderConfig
    spec: DataSpec
    shards: ItemShards | None = None

    #: Whether ``query_positions`` may be given while training, too; the other positions then lack what follows the last
    #: attention, its dropout included.
    selects_in_training: ClassVar[bool] = False

    @property
    def n_items(self) -> int:
        """V."""
        return self.spec.n_items

    @property
    def max_length(self) -> int:
        """L."""
        return self.spec.max_length

    def __call__(
        self,
        batch: Batch,
        train: bool = False,
        query_positions: Int[Array, "B S"] | None = None,
        mask: Mask = "causal",
    ) -> Float[Array, "B S D"]:
        """Compute hidden states float32[B, L, D], or [B, S, D] at ``query_positions`` int32[B, S].

        Args:
          batch: arrays [B, L].
          train: whether dropout is on.
          query_positions: columns whose states are asked for, or None for all.
          mask: "causal" (a state depends on its own and earlier positions) or "bidirectional" (on its whole segment).
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    @classmethod
    def check_call(cls, train: bool, query_positions: Array | None) -> None:
        """Refuse ``query_positions`` while training where dropout is drawn for whole rows."""
        if train and query_positions is not None and not cls.selects_in_training:
            raise ConfigError(
                "query_positions selects positions in evaluation only: expected train=False, got train=True; "
                "leave query_positions out"
            )

    def cache_obstacle(self, planned: bool = False) -> str | None:
        """Reason why a row cannot grow by one position from stored arrays of the earlier ones, or None if it can.

        An encoder for which it is None takes ``cache``, a `jaxrec.attention.cache.CacheStep`, in ``__call__``, under a
        causal mask and outside training. With a column it computes the states [B, 1, D] of this one from a batch of whole
        rows [B, T], of which later columns are not read; every sequence then ends at the column. States equal those of
        the rows so far, up to rounding.

        Args:
          planned: whether positions that count from the end count from a planned end, which does not move as rows grow.
        """
        return f"the encoder {type(self).__name__} computes all positions of a history together"

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """Return the candidates' table, from the encoder's parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define item_table(params)")

    def parameter_count(self) -> int:
        """Count the parameters, by their shapes; the encoders of the library have the formula in the class docstring."""
        whole = self.clone(shards=None)  # a mesh pads tables
        shapes = jax.eval_shape(lambda: whole.init(jax.random.key(0), blank_batch(self.max_length), False))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def blank_batch(max_length: int) -> Batch:
    """The batch with which parameters are drawn: one row of padding, of two positions where ``max_length`` has them."""
    zeros = jnp.zeros((1, min(2, max_length)), jnp.int32)
    weights = jnp.zeros(zeros.shape, jnp.float32)
    return Batch(zeros, zeros, zeros, zeros, weights, timestamps=zeros, users=zeros)


def current_columns(batch: Batch, cache: CacheStep | None) -> tuple[Array, Array, Array]:
    """Items, positions and segments of the columns that are computed now: [B, L], or [B, 1] each."""
    arrays = (batch.items, batch.positions, batch.segments)
    return arrays if cache is None else tuple(map(cache.current, arrays))  # type: ignore[return-value]
