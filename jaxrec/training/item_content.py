"""Parameters that the dataset gives: the vectors of items, and which items and users training knows."""

from __future__ import annotations

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
    values = {"users": known_users.astype(np.float32)}
    if vectors is not None:
        values["content"] = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), unit_rows(vectors)])
        values["known"] = (np.asarray(split.item_counts) > 0).astype(np.float32)

    def filled(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path).split("/")
        if not is_frozen(name):
            return leaf
        of_users = name[0] == "users"
        value = values["users" if of_users else name[-1]]
        rows = np.zeros(leaf.shape[1:], np.float32)
        rows[: len(value)] = value
        stacked = np.broadcast_to(rows[None], leaf.shape)
        if sharding.mesh is None:
            return jax.numpy.asarray(stacked)
        return place(stacked, sharding.mesh, P() if of_users else P(None, ITEM))

    return jax.tree_util.tree_map_with_path(filled, params)
