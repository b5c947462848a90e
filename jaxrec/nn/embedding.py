"""Item and position embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.nn.item_codes import ItemCodesConfig, composed_vectors
from jaxrec.nn.layers import Initializer
from jaxrec.nn.spec import DataSpec
from jaxrec.sharding import ItemShards


def item_parameter(
    module: nn.Module, name: str, init: Initializer, n_items: int, shards: ItemShards | None, *size: int
) -> Array:
    """Declare a parameter of ``module`` with a row per item: float32[V+1, *size], or its padded form on a mesh.

    The values are drawn for V + 1 rows either way.
    """

    def padded(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        values = init(key, (n_items + 1, *size), dtype)
        return values if shards is None else shards.pad(values)

    rows = n_items + 1 if shards is None else shards.rows
    return module.param(name, padded, (rows, *size), jnp.float32)


class ItemEmbedding(nn.Module):
    """Items to vectors: int32[...] -> float32[..., D].

    ``(V + 1 + n_special) * D`` parameters; row 0 is padding, zero and untrained. Tokens beside the items (ids above V)
    have a table of their own, since the items' table is also the candidates'.

    With vectors of the dataset the table holds the changes that items are allowed (`content_vectors`), from zero; beside it
    are the vectors ``content`` [V+1, C] and ``known`` [V+1], filled from the dataset, and ``content_kernel`` [C, D].

    With item codes (`jaxrec.nn.item_codes`) there is no row per item but ``codes`` [V+1, C], drawn at random (learned ones
    take their place in a run) and never trained, and ``code_table`` [C, K, W], which every device of a mesh holds whole.

    The rows are gathered in float32. Casting the table before the gather would make its gradient accumulate in the
    compute precision, and in bfloat16 a popular item's sum of unit gradients stops at 256.

    Attributes:
      spec: sizes of the data.
      width: D.
      table_init: initialiser of the tables.
      shards: placement of the item tables on a mesh, or None on one device.
      delta: largest norm of an item's own change where the dataset has vectors; 0 = no change, and no table.
      composition: of the items out of codes, if any.
    """

    spec: DataSpec
    width: int
    table_init: Initializer
    shards: ItemShards | None = None
    delta: float = 0.0
    composition: ItemCodesConfig = ItemCodesConfig()

    @nn.compact
    def __call__(self, items: Int[Array, ...]) -> Float[Array, "... D"]:
        """Look up the vectors [..., D] of ``items`` int32[...]."""
        # "fill" answers an id beyond the table with NaN where plain indexing would silently take the last row.
        take = partial(jnp.take, axis=0, mode="fill") if self.shards is None else self.shards.take
        n_items, n_special = self.spec.n_items, self.spec.n_special
        tables, shared = self._tables()

        def look_up(items: Array) -> Array:
            rows = {name: take(table, items) for name, table in tables.items()}
            return item_vectors({**rows, **shared}, self.delta, self.composition)

        if not n_special:
            return jnp.where((items > 0)[..., None], look_up(items), 0.0)
        special = self.param("special", self.table_init, (n_special, self.width), jnp.float32)
        is_item = items <= n_items
        vectors = look_up(jnp.where(is_item, items, 0))
        tokens = jnp.take(special, jnp.where(is_item, 0, items - (n_items + 1)), axis=0, mode="fill")
        vectors = jnp.where(is_item[..., None], vectors, tokens)
        return jnp.where((items > 0)[..., None], vectors, 0.0)

    def _tables(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Declare the arrays with a row per item, and those that items share."""

        def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            return self.table_init(key, shape, dtype).at[0].set(0.0)

        def declare(name: str, init: Initializer, *size: int) -> Array:
            return item_parameter(self, name, init, self.spec.n_items, self.shards, *size)

        width, vector_width, zeros = self.width, self.spec.vector_width, nn.initializers.zeros_init()
        if self.composition.on:
            self.composition.check(width, self.spec.n_items)
            table = self.param("code_table", self._code_table_init, self._code_table_shape(), jnp.float32)
            return {"codes": declare("codes", self._random_codes, self.composition.count)}, {
                "code_table": table
            }
        if not vector_width:
            return {"table": declare("table", init, width)}, {}
        tables = {"table": declare("table", zeros, width)} if self.delta else {}
        # Drawn here, where no dataset is at hand; `jaxrec.training.item_content` puts the dataset's in their place.
        tables["content"] = declare("content", zeros, vector_width)
        tables["known"] = declare("known", nn.initializers.ones_init())
        kernel = self.param("content_kernel", self.table_init, (vector_width, width), jnp.float32)
        return tables, {"content_kernel": kernel}

    def _code_table_shape(self) -> tuple[int, int, int]:
        return self.composition.count, self.composition.size, self.composition.row_width(self.width)

    def _code_table_init(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Draw the tables so that a vector's entries have the variance that the initialiser gives rows."""
        rows = self.table_init(key, (shape[0] * shape[1], shape[2]), dtype).reshape(shape)
        return rows if self.composition.method == "product" else rows * shape[0] ** -0.5

    def _random_codes(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        codes = jax.random.randint(key, shape, 1, self.composition.size + 1, jnp.int32)
        return codes.astype(dtype).at[0].set(0)


def item_vectors(params: Mapping[str, Array], delta: float, codes: ItemCodesConfig) -> Array:
    """Vectors float32[..., D] of items: rows of a table, composed of codes, or made of vectors of the dataset.

    Args:
      params: those of an `ItemEmbedding`; arrays with a row per item may hold the rows of some items, [..., size].
      delta: see `content_vectors`.
      codes: composition of the items.
    """
    if "codes" in params:
        return composed_vectors(params["codes"], params["code_table"], codes.method == "product")
    return content_vectors(params, delta) if "content" in params else params["table"]


def content_vectors(params: Mapping[str, Array], delta: float) -> Array:
    """Vectors float32[..., D] of items: ``content W``, plus for known items a change of norm at most ``delta``.

    Args:
      params: ``content`` [..., C], ``known`` [...] (1 where training has the item, else 0), ``content_kernel`` [C, D], and
        with ``delta`` above 0 the changes ``table`` [..., D]; a longer one is shortened to the norm ``delta``.
      delta: largest norm of a change.
    """
    content = lax.stop_gradient(params["content"])
    vectors = jnp.einsum("...c,cd->...d", content, params["content_kernel"])
    if not delta:
        return vectors
    change, known = params["table"], lax.stop_gradient(params["known"])
    squares = jnp.sum(jnp.square(change), axis=-1)
    shortened = delta * lax.rsqrt(jnp.maximum(squares, jnp.float32(delta**2)))
    return vectors + (known * shortened)[..., None] * change


def sinusoids(length: int, width: int) -> Float[Array, "L D"]:
    """Fixed position vectors float32[length, width] (Vaswani et al. 2017, section 3.5): sines, then cosines.

    Wavelengths run from 2 pi to 20,000 pi, both included, as in the authors' code (tensor2tensor); the paper's formula ends
    just below.
    """
    half = (width + 1) // 2
    frequency = np.exp(-np.log(10_000.0) * np.arange(half) / max(half - 1, 1))
    angle = np.arange(length)[:, None] * frequency[None, :]
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width], jnp.float32)


class PositionEmbedding(nn.Module):
    """Additive position vectors: int32[B, L] -> float32[B, L, D]; ``max_length * D`` parameters if learned, else none."""

    max_length: int
    width: int
    learned: bool
    table_init: Initializer

    @nn.compact
    def __call__(self, positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Look up the vectors of ``positions`` int32[B, L]."""
        if self.learned:
            table = self.param("table", self.table_init, (self.max_length, self.width), jnp.float32)
        else:
            table = sinusoids(self.max_length, self.width)
        return jnp.take(table, positions, axis=0, mode="fill")
