"""Candidates of encoders that score against their item embeddings, a second table, or either with a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxrec.models.base import Encoder
from jaxrec.nn.embedding import item_parameter
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import Initializer


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
    vectors = params["output_table"] if config.separate_output else params["items"]["table"]
    return ItemTable(vectors, params["item_bias"] if config.item_bias else None, encoder.shards)


def embedding_count(encoder: Encoder) -> int:
    """Count the parameters of the item embeddings, of tokens beside the items, and of `declare_output`."""
    config: Any = encoder.config
    per_item = config.width * (2 if config.separate_output else 1) + int(config.item_bias)
    return (encoder.n_items + 1) * per_item + encoder.spec.n_special * int(config.width)
