"""Contract of an encoder from outside the library, checked by shapes alone before anything is computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrec.errors import ConfigError
from jaxrec.models import Encoder
from jaxrec.models.base import blank_batch
from jaxrec.sharding import ITEM
from jaxrec.training.state import Params, only_params
from jaxrec.training.trees import flatten


def check_shapes(encoder: Encoder) -> None:
    """Refuse an encoder of one's own whose states or item table have other shapes than `Encoder` says.

    Raises:
      ConfigError: they have; evaluation could otherwise take states of other positions for those that it asked for.
    """
    if type(encoder).__module__.startswith("jaxrec."):  # whose shapes are tested
        return
    whole, batch = encoder.clone(shards=None), blank_batch(encoder.max_length)
    rows, length = batch.items.shape

    def outputs() -> Any:
        params = only_params(whole, whole.init(jax.random.key(0), batch, False))
        first = jnp.zeros((rows, 1), jnp.int32)
        states = [whole.apply({"params": params}, batch, False, asked, "causal") for asked in (None, first)]
        return *states, whole.item_table(params)

    states, one, table = jax.eval_shape(outputs)
    width = table.vectors.shape[-1]
    for call, got, shape in (
        ("asked for its item_table", table.vectors.shape, (encoder.n_items + 1, width)),
        ("called without query_positions", states.shape, (rows, length, width)),
        ("called with query_positions [B, S]", one.shape, (rows, 1, width)),
    ):
        if got != shape:
            raise ConfigError(
                f"the encoder {type(encoder).__name__}, {call}, must return {list(shape)} (B = {rows}, L = {length}, S = 1, "
                f"V = {encoder.n_items}, vectors of {width}); got {list(got)}"
            )


def check_rows(params: Params, axes: Any, mesh: Mesh) -> None:
    """Refuse parameters with a row for each item that do not divide among the devices that share them.

    Args:
      params: shapes of the parameters.
      axes: axis of each that counts items, or -1.
      mesh: of the run.

    Raises:
      ConfigError: one does not divide.
    """
    arrays, devices = flatten(params), mesh.shape[ITEM]
    for name, axis in flatten(axes).items():
        rows = arrays[name].shape[axis] if axis >= 0 else 0
        if rows % devices:
            raise ConfigError(
                f"--mesh.item {devices} cannot share the parameter {name}, which has a row for each item: expected rows "
                f"padded to a multiple of {devices}, got {rows}; declare it by jaxrec.nn.embedding.item_parameter, or "
                "choose --mesh.item 1"
            )
