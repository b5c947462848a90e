"""Parameters that are computed before training: vectors of items, and which items and users training knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxrec.data.readers.vectors import unit_rows
from jaxrec.data.splits import Split
from jaxrec.optim import is_frozen
from jaxrec.sharding import ITEM, place
from jaxrec.training.state import Params
from jaxrec.training.state_sharding import StateSharding
from jaxrec.training.trees import path_name


def with_content(params: Params, split: Split, sharding: StateSharding, known_users: np.ndarray) -> Params:
    """Put the dataset's vectors, scaled to length 1, and its known items and users into the parameters of all seeds.

    Args:
      params: every array with a leading axis of seeds.
      split: whose dataset has the vectors; items with an interaction in its training part are known.
      sharding: placement of ``params``.
      known_users: bool[U], users with a training sequence.
    """
    vectors = split.dataset.item_vectors
    values = {"users/known": known_users.astype(np.float32)[None]}
    if vectors is not None:
        content = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), unit_rows(vectors)])
        values["content"] = content[None]
        values["known"] = (np.asarray(split.item_counts) > 0).astype(np.float32)[None]
    return filled(params, values, sharding)


def filled(params: Params, values: Mapping[str, np.ndarray], sharding: StateSharding) -> Params:
    """Put arrays with a row per item, or per user, in the place of untrained parameters.

    Args:
      params: every array with a leading axis of seeds.
      values: by name ("users/known" of users), float32[S, V+1, ...], or [1, V+1, ...] for all seeds.
      sharding: placement of ``params``.
    """

    def value_of(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path).split("/")
        of_users = name[0] == "users"
        value = values.get("users/known" if of_users else name[-1])
        if not is_frozen(name) or value is None:
            return leaf
        stacked = np.zeros(leaf.shape, np.float32)
        stacked[:, : value.shape[1]] = value
        if sharding.mesh is None:
            return jax.numpy.asarray(stacked)
        return place(stacked, sharding.mesh, P() if of_users else P(None, ITEM))

    return jax.tree_util.tree_map_with_path(value_of, params)
