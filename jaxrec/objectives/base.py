"""Base class of losses, and the inputs that all of them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.errors import ConfigError
from jaxrec.nn.item_table import ItemTable
from jaxrec.options import validate

Precision = Literal["float32", "bfloat16"]


class SamplingInputs(NamedTuple):
    """Training data that negative samplers may need; None where it is not at hand.

    Attributes:
      item_counts: float32[V+1], occurrences of each item in the training part; entry 0 is ignored.
      users: int32[N], user of each position, -1 = none.
      seen_items: int32[S], distinct training items of user u, ascending, at ``seen_offsets[u]:seen_offsets[u+1]``.
      seen_offsets: int32[U+1].
    """

    item_counts: Float[Array, " V1"] | None = None
    users: Int[Array, " N"] | None = None
    seen_items: Int[Array, " S"] | None = None
    seen_offsets: Int[Array, " U1"] | None = None

    def require(self, field: str, reason: str) -> Array:
        """Return a field that must be at hand.

        Args:
          field: its name.
          reason: what needs it, for the message.

        Raises:
          ConfigError: it is None.
        """
        value = getattr(self, field)
        if value is None:
            raise ConfigError(
                f"sampling.{field}: {reason} needs it, got None; pass SamplingInputs({field}=...)"
            )
        return value


class LossInputs(NamedTuple):
    """N positions, V candidate items, and the positions' targets.

    Attributes:
      hidden: float32[N, D], states of the encoder.
      table: candidates; row 0 is padding and never one of them.
      targets: int32[N], 0 = none.
      weights: float32[N], not negative; 0 = leave out.
      key: random key; losses that draw nothing ignore it.
      sampling: see `SamplingInputs`.
    """

    hidden: Float[Array, "N D"]
    table: ItemTable
    targets: Int[Array, " N"]
    weights: Float[Array, " N"]
    key: Array | None = None
    sampling: SamplingInputs = SamplingInputs()

    @property
    def n_items(self) -> int:
        """V."""
        return self.table.n_items

    def prepare(self, temperature: float = 1.0) -> LossInputs:
        """Return inputs whose plain scores are the tempered ones, and whose weights are 0 without a target.

        Args:
          temperature: divides the scores.
        """
        weights = jnp.where(self.targets > 0, self.weights, jnp.zeros((), self.weights.dtype))
        hidden, table = tempered(self.hidden, self.table, temperature)
        return self._replace(hidden=hidden, table=table, weights=weights.astype(jnp.float32))


def tempered(
    hidden: Float[Array, "... D"], table: ItemTable, temperature: float
) -> tuple[Float[Array, "... D"], ItemTable]:
    """Return states and a table whose scores are those of ``hidden`` and ``table`` divided by ``temperature``."""
    if temperature == 1.0:
        return hidden, table
    return hidden / temperature, table._replace(bias=None if table.bias is None else table.bias / temperature)


class LossSums(NamedTuple):
    """Weighted sum of a loss over positions and the sum of their weights, both float32[].

    The mean loss of a batch is ``total / weight``, of the totals over all devices and parts of the batch.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]


Loss = Callable[[LossInputs], LossSums]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Base of the losses: options, and the function ``loss`` that they parametrise.

    A subclass adds fields and defines `loss`, a pure function. `build` checks that the loss can score the encoder's items
    and returns that function: a loss owns no parameters, so there is nothing else to build.

    A position without a target (target 0) or without weight adds nothing to either sum, nor to any gradient.

    Attributes:
      dtype: operands of matrix products, "float32" or "bfloat16"; sums and the loss are float32 in both.
    """

    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        """Check the options."""
        validate(self, "objective")

    @property
    def temperature(self) -> float:
        """Temperature, which divides the scores: 1, unless the loss has it as an option."""
        return 1.0

    @property
    def needs_seen(self) -> bool:
        """Whether the loss reads ``sampling.users``, ``seen_items`` and ``seen_offsets``."""
        return False

    def build(self, table: ItemTable | None = None) -> Loss:
        """Return the loss function, ``LossInputs -> LossSums``.

        Args:
          table: candidates of the encoder, abstract arrays suffice; None skips the check.

        Raises:
          ConfigError: the loss is not defined for such a table.
        """
        if table is not None:
            self.check(table)
        return self.loss

    def check(self, table: ItemTable) -> None:
        """Reject a kind of item table that the loss is not defined for; by default none.

        Raises:
          ConfigError: on rejection.
        """

    def loss(self, inputs: LossInputs) -> LossSums:
        """Return the loss of N positions against V items, as (weighted sum, sum of weights)."""
        raise NotImplementedError(f"{type(self).__name__} does not define loss()")
