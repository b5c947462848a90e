"""The one signature of every objective, and what an objective may be given beside hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxrec.errors import ConfigError
from jaxrec.nn.item_table import ItemTable

Precision = Literal["float32", "bfloat16"]


class SamplingInputs(NamedTuple):
    """What samplers may need to know of the training data.

    Attributes:
      item_counts: float32[V+1], how often each item occurs in the training part; entry 0 is ignored.
      users: int32[N], the user of each position, -1 = none.
      seen_items: int32[S], the items of user u, ascending, at ``seen_offsets[u]:seen_offsets[u+1]``.
      seen_offsets: int32[U+1].
    """

    item_counts: Array | None = None
    users: Array | None = None
    seen_items: Array | None = None
    seen_offsets: Array | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    """A loss on hidden states. Calling it gives the weighted sum of the loss and the sum of the weights.

    A position without a target has target 0 or weight 0; it adds nothing to either sum, nor to any gradient.
    The mean loss of a batch is the quotient of the two sums (of their totals over all devices).

    Attributes:
      dtype: operands of matrix products, "float32" or "bfloat16"; sums and the loss are float32 in both.
    """

    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        check_choice(self, "dtype", ("float32", "bfloat16"))

    @property
    def needs_counts(self) -> bool:
        """Whether ``inputs.item_counts`` must be given."""
        return False

    @property
    def needs_seen(self) -> bool:
        """Whether ``inputs.users``, ``seen_items`` and ``seen_offsets`` must be given."""
        return False

    @property
    def needs_distances(self) -> bool:
        """Whether scores must be distances between Gaussians, as the encoder "stosa" gives them."""
        return False

    def __call__(
        self,
        hidden: Array,
        table: ItemTable,
        targets: Array,
        weights: Array,
        rng: Array,
        inputs: SamplingInputs | None = None,
    ) -> tuple[Array, Array]:
        """The loss of N positions against V items.

        Args:
          hidden: float32[N, D].
          table: the item vectors [V+1, D] and biases [V+1]; row 0 is never a candidate.
          targets: int32[N], 0 = none.
          weights: float32[N], not negative; 0 = leave out.
          rng: key for the samplers; objectives that draw nothing ignore it.
          inputs: see `SamplingInputs`; needed where ``needs_counts`` or ``needs_seen`` says so.

        Returns:
          (weighted sum of the loss, sum of the weights), two float32 scalars.
        """
        raise TypeError(
            f"{type(self).__name__} is a base class: choose one from jaxrec.objectives.OBJECTIVES"
        )


def check_choice(config: Any, field: str, choices: tuple[str, ...]) -> None:
    """Refuse a value of ``config.field`` that is not one of ``choices``."""
    value = getattr(config, field)
    if value not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{field}: expected one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def check_number(
    config: Any,
    field: str,
    low: float,
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a value of ``config.field`` outside an interval, whose ends count unless they are open."""
    value = getattr(config, field)
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        left, right = "(" if open_low else "[", ")" if open_high or high == float("inf") else "]"
        raise ConfigError(
            f"{type(config).__name__}.{field}: expected a number in "
            f"{left}{low:g}, {high:g}{right}, got {value!r}"
        )


def real_weights(targets: Array, weights: Array) -> Array:
    """The weights, with those of positions that have no target set to zero."""
    return jnp.where(targets > 0, weights, jnp.zeros((), weights.dtype)).astype(jnp.float32)


def unit_rows(x: Array) -> Array:
    """Rows of ``x [N, D]`` over their Euclidean norm; a zero row stays zero, with zero gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > 0, square, jnp.ones((), x.dtype)))


def scaled(hidden: Array, table: ItemTable, temperature: float, cosine: bool) -> tuple[Array, ItemTable]:
    """Hidden states and items whose plain scores are the tempered ones, of unit vectors if ``cosine``."""
    vectors, bias = table.vectors, table.bias
    if cosine:
        hidden, vectors = unit_rows(hidden), unit_rows(vectors)
    if temperature != 1.0:
        hidden = hidden / temperature
        bias = None if bias is None else bias / temperature
    return hidden, table._replace(vectors=vectors, bias=bias)
