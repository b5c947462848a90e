"""Items composed of codes: a few small tables in place of one row per item.

Item i has C codes, each 1..K, and its vector is made of one row of each of C tables T_1..T_C:

* "hashed" (Svenstrup et al., NeurIPS 2017, without weights) and "residual": ``e_i = sum_c T_c[code_c(i)]``;
* "product" (RecJPQ: Petrov & Macdonald, WSDM 2024): the rows, of width D / C each, side by side.

Hashed codes are random. The others come from vectors of the items (`jaxrec.data.quantisation`), so that similar items share
codes: those of product codes quantise parts of a vector, those of residual codes one after the other what is left of it.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxrec.errors import ConfigError
from jaxrec.options import Idle, Range, validate


@dataclasses.dataclass(frozen=True)
class ItemCodesConfig:
    """Composition of item vectors out of codes; codes are computed once, before training, and are part of the run.

    Attributes:
      method: "none" (a row per item), "hashed" (random codes, rows added), "product" (codes of parts of the item's vector,
        rows side by side) or "residual" (codes of what earlier ones leave, rows added).
      count: C, codes of an item; for "product" it must divide the encoder's width.
      size: K, values of each code, which is the number of rows of each table.
      factors: width of the factors of the training interactions that product and residual codes come from: a truncated
        singular value decomposition of the co-occurrence of items.
      run: directory of a finished run, of the same data and split, whose item vectors product and residual codes come
        from; empty = from the factors.
    """

    method: Literal["none", "hashed", "product", "residual"] = "none"
    count: Annotated[int, Range("[1, 64]"), Idle("method", ("none",))] = 4
    size: Annotated[int, Range("[2, 1000000]"), Idle("method", ("none",))] = 256
    factors: Annotated[int, Range("[1, inf)"), Idle("method", ("none", "hashed"))] = 64
    run: str = ""

    def __post_init__(self) -> None:
        """Check every option."""
        validate(self, "encoder.item_codes")
        if self.run and not self.learned:
            raise ConfigError(
                f"--encoder.item-codes.run needs --encoder.item-codes.method product or residual, got {self.method!r}: "
                "leave the run out, or choose one of these"
            )

    @property
    def on(self) -> bool:
        """Whether items are composed."""
        return self.method != "none"

    @property
    def learned(self) -> bool:
        """Whether codes come from vectors of the items."""
        return self.method in ("product", "residual")

    def check(self, width: int, n_items: int) -> None:
        """Refuse sizes that do not fit the encoder's width D or the catalogue's V.

        Raises:
          ConfigError: C does not divide D, or K is above V.
        """
        if self.method == "product" and width % self.count:
            raise ConfigError(
                f"--encoder.item-codes.count must divide --encoder.width {width} for product codes, got {self.count}"
            )
        if self.on and self.size > n_items:
            raise ConfigError(
                f"--encoder.item-codes.size must be at most the number of items, got {self.size} for {n_items}; choose a "
                "smaller one"
            )

    def row_width(self, width: int) -> int:
        """Return the width of a table's rows, for vectors of ``width``."""
        return width // self.count if self.method == "product" else width

    def table_count(self, width: int) -> int:
        """Count the trained parameters: C K D, and K D for product codes."""
        return self.count * self.size * self.row_width(width)


def composed_vectors(
    codes: Float[Array, "... C"], tables: Float[Array, "C K W"], side_by_side: bool
) -> Float[Array, "... D"]:
    """Vectors [..., D] of items.

    Args:
      codes: [..., C], integers 1..K as floats; 0 adds nothing, and NaN (an item outside the catalogue) makes NaN.
      tables: [C, K, W].
      side_by_side: D = C W, rows side by side; else D = W, rows added.
    """
    codes = lax.stop_gradient(codes)
    known = jnp.where(jnp.isnan(codes), 0.0, codes).astype(jnp.int32)
    parts = []
    for column in range(tables.shape[0]):
        code = known[..., column]
        row = jnp.take(tables[column], jnp.maximum(code - 1, 0), axis=0, mode="clip")
        parts.append(jnp.where((code > 0)[..., None], row, 0.0))
    vectors = jnp.concatenate(parts, axis=-1) if side_by_side else sum(parts[1:], parts[0])
    return jnp.where(jnp.isnan(codes[..., :1]), jnp.nan, vectors)
