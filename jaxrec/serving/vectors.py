"""Vectors whose inner products are the scores, for FAISS, usearch or a vector database."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxrec.errors import RunExistsError
from jaxrec.evaluation.histories import Histories
from jaxrec.files import write_atomically
from jaxrec.serving.recommender import Recommender


def item_vectors(recommender: Recommender) -> np.ndarray:
    """float32[V, D'], vectors of the items 1 to V: D' = D, or D + 1 with the item's bias last."""
    table = recommender.encoder.item_table(recommender.params)
    n_items = recommender.items.n_items
    vectors = np.asarray(jnp.asarray(table.vectors, jnp.float32))[1 : n_items + 1]
    if table.bias is None:
        return vectors
    bias = np.asarray(jnp.asarray(table.bias, jnp.float32))[1 : n_items + 1]
    return np.concatenate([vectors, bias[:, None]], axis=1)


def user_vectors(recommender: Recommender, histories: Histories) -> np.ndarray:
    """float32[E, D'], vectors of histories: the state that scores the next item and, where items have biases, a one.

    An empty history has the zero state.
    """
    states = recommender.lists.states(histories)
    if recommender.encoder.item_table(recommender.params).bias is None:
        return states
    return np.pad(states, ((0, 0), (0, 1)), constant_values=1)


def write_item_vectors(recommender: Recommender, folder: str | Path) -> Path:
    """Write ``items.parquet`` (item, title where there are titles, vector) and ``items.npy`` float32[V, D'].

    Args:
      recommender: of a finished run.
      folder: made where it does not exist.

    Returns:
      Path of ``items.parquet``.

    Raises:
      RunExistsError: one of the files exists.
    """
    folder = Path(folder)
    table, array = folder / "items.parquet", folder / "items.npy"
    for file in (table, array):
        if file.exists():
            raise RunExistsError(f"{file} exists, and nothing was overwritten: give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    vectors, items = item_vectors(recommender), recommender.items
    columns = {"item": [str(name) for name in items.item_ids]}
    if items.item_titles is not None:
        columns["title"] = [str(title) for title in items.item_titles]
    frame = pl.DataFrame({**columns, "vector": vectors})
    write_atomically(array, lambda file: np.save(file, vectors))
    write_atomically(table, lambda file: frame.write_parquet(file))
    return table
