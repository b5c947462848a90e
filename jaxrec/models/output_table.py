"""Candidates of encoders that score against their item embeddings, a second table, or either with a bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
from jax import Array
from jaxtyping import Float

from jaxrec.models.base import Encoder
from jaxrec.nn.embedding import item_parameter, item_vectors
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import Initializer, unit_rows


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Options of an encoder that scores items by products with its states.

    Attributes:
      similarity: score of an item: "dot", the product of the item's vector and the state, or "cosine", that of both at
        length 1; in training, ranks, lists and exports alike. Cosines lie between -1 and 1: choose a temperature of the
        objective well below 1 for them.
    """

    similarity: Literal["dot", "cosine"] = "dot"


def output_states(encoder: Encoder, hidden: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Return the states that are multiplied with `output_table`: ``hidden``, at length 1 for cosines."""
    config: Any = encoder.config
    return unit_rows(hidden) if config.similarity == "cosine" else hidden


def declare_output(encoder: Encoder, table_init: Initializer) -> None:
    """Declare the parameters that ``separate_output`` and ``item_bias`` of an encoder's configuration ask for."""
    config: Any = encoder.config
    if config.separate_output:
        item_parameter(encoder, "output_table", table_init, encoder.n_items, encoder.shards, config.width)
    if config.item_bias:
        item_parameter(encoder, "item_bias", nn.initializers.zeros_init(), encoder.n_items, encoder.shards)


def output_table(encoder: Encoder, params: Mapping[str, Any]) -> ItemTable:
    """Return the candidates' vectors float32[V+1, D] and bias float32[V+1] or None."""
    config: Any = encoder.config
    vectors = params["output_table"] if config.separate_output else input_vectors(encoder, params)
    return item_scores(encoder, vectors, params["item_bias"] if config.item_bias else None)


def item_scores(encoder: Encoder, vectors: Array, bias: Array | None = None) -> ItemTable:
    """Return the candidates' table of ``vectors`` float32[V+1, D], at length 1 for cosines, and ``bias`` float32[V+1]."""
    config: Any = encoder.config
    return ItemTable(unit_rows(vectors) if config.similarity == "cosine" else vectors, bias, encoder.shards)


def input_vectors(encoder: Encoder, params: Mapping[str, Any]) -> Array:
    """Return the vectors float32[V+1, D] of the item embedding."""
    return item_vectors(params["items"], encoder.config.item_delta, encoder.config.item_codes)


def input_count(encoder: Encoder) -> int:
    """Count the parameters of the item embeddings and of tokens beside the items, with D the width and C that of vectors.

    ``(V + 1 + n_special) D``; with vectors of items ``(V + 1) (C + 1) + C D`` more, and without ``item_delta`` no
    ``(V + 1) D``. With C item codes ``(V + 1) C + n_special D``, and C K D in the tables (K D for product codes).
    """
    spec, config = encoder.spec, encoder.config
    rows, width = spec.n_items + 1, config.width
    if config.item_codes.on:
        codes = config.item_codes
        return rows * codes.count + codes.table_count(width) + spec.n_special * width
    count = (rows + spec.n_special) * width
    if spec.vector_width:
        count += rows * (spec.vector_width + 1) + spec.vector_width * width
        count -= 0 if config.item_delta else rows * width
    return count


def embedding_count(encoder: Encoder) -> int:
    """Count the parameters of `input_count` and of `declare_output`."""
    config: Any = encoder.config
    per_item = config.width * int(config.separate_output) + int(config.item_bias)
    return input_count(encoder) + (encoder.n_items + 1) * per_item
