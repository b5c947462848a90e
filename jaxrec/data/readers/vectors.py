"""Vectors of items (of a text, an image, their attributes), looked up by original item id."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.log import whole_as_integers
from jaxrec.data.readers.tables import find_column, reading
from jaxrec.data.readers.times import as_text
from jaxrec.errors import DataError
from jaxrec.files import is_file

#: Value of ``data.item_vectors`` that makes vectors of the attributes.
ATTRIBUTES = "attributes"


def attach_vectors(dataset: SequenceDataset, config: DataConfig) -> SequenceDataset:
    """Give a dataset the vectors that ``config`` names.

    Raises:
      DataError: the file cannot be read, vectors have different widths or are not finite, or an item has none.
    """
    if not config.item_vectors:
        unused = [
            name for name in ("vector_column", "vector_ids", "missing_vectors") if config.changed().get(name)
        ]
        if unused:
            raise DataError(
                f"--data.{unused[0].replace('_', '-')} needs --data.item-vectors, which was not given"
            )
        return dataset
    vectors = vectors_of(dataset.item_ids, dataset.attributes, config)
    changed = dataclasses.replace(dataset, item_vectors=vectors, check_content=False)
    return changed


def vectors_of(item_ids: Sequence[str], attributes: AttributeTable | None, config: DataConfig) -> np.ndarray:
    """float32[V, C], the vectors of items.

    Args:
      item_ids: V original ids.
      attributes: of these items, for ``config.item_vectors`` "attributes".
      config: names the file and its columns.

    Raises:
      DataError: see `attach_vectors`.
    """
    if config.item_vectors == ATTRIBUTES:
        if attributes is None:
            raise DataError(
                "--data.item-vectors attributes needs attributes of the items: got a dataset without; load an item table "
                "with --data.attribute-columns, or give a file of vectors"
            )
        vectors = attribute_vectors(attributes)
        missing = np.flatnonzero(~vectors.any(axis=1))
    else:
        rows, table = _read(config)
        index = np.array([rows.get(name, -1) for name in item_ids], np.int64)
        missing = np.flatnonzero(index < 0)
        vectors = np.where((index >= 0)[:, None], table[np.maximum(index, 0)], np.float32(0))
    if len(missing) and config.missing_vectors == "error":
        raise DataError(
            f"{len(missing)} of {len(item_ids)} items have no vector in --data.item-vectors {config.item_vectors}, the "
            f"first {item_ids[int(missing[0])]!r}: add them, or take zero vectors for them with --data.missing-vectors zero"
        )
    return np.ascontiguousarray(vectors, np.float32)


def attribute_vectors(attributes: AttributeTable) -> np.ndarray:
    """float32[V, A], 1 where an item has an attribute."""
    counts = np.diff(attributes.offsets)[1:]
    vectors = np.zeros((len(counts), attributes.n_attributes), np.float32)
    vectors[np.repeat(np.arange(len(counts)), counts), np.asarray(attributes.values) - 1] = 1.0
    return vectors


def made_of_attributes(attributes: AttributeTable | None, vectors: np.ndarray | None) -> bool:
    """Whether vectors float32[V, C], of any length, are the first C attributes of the items, others of which are newer."""
    if vectors is None or attributes is None or vectors.shape[1] > attributes.n_attributes:
        return False
    first = attribute_vectors(attributes)[:, : vectors.shape[1]]
    return np.allclose(unit_rows(first), unit_rows(vectors), atol=1e-6)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-30)).astype(np.float32)


def _read(config: DataConfig) -> tuple[dict[str, int], np.ndarray]:
    """Row of each id, and the vectors float32[n, C]."""
    path = Path(config.item_vectors)
    option = f"--data.item-vectors {config.item_vectors!r}"
    if not is_file(path):
        raise DataError(
            f"{option} cannot be read: expected a .parquet or .npy file, or 'attributes'; no such file"
        )
    if path.suffix == ".npy":
        ids, table = _read_npy(path, config, option)
    elif path.suffix in (".parquet", ".pq"):
        ids, table = _read_parquet(path, config, option)
    else:
        raise DataError(f"{option} must be a .parquet or .npy file, got {path.suffix or 'no extension'!r}")
    if not table.shape[1]:
        raise DataError(f"{option} holds vectors of width 0: expected at least one number per item")
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise DataError(f"{option} must hold finite numbers, got NaN or infinity for item {ids[wrong[0]]!r}")
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) != len(ids):
        raise DataError(f"{option} must have one vector per item, got {len(ids) - len(rows)} repeated ids")
    return rows, table


def _read_npy(path: Path, config: DataConfig, option: str) -> tuple[list[str], np.ndarray]:
    if not config.vector_ids:
        raise DataError(
            f"{option} needs --data.vector-ids: a text file with the item id of each row, one per line"
        )
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        ids = Path(config.vector_ids).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{option} cannot be read: {error}") from None
    ids = [line.strip() for line in ids if line.strip()]
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DataError(
            f"{option} must be a table of numbers [items, width], got {table.dtype} of shape {table.shape}"
        )
    if len(ids) != len(table):
        raise DataError(
            f"--data.vector-ids {config.vector_ids!r} must name each of the {len(table)} rows of {option}, got "
            f"{len(ids)} ids"
        )
    return ids, np.asarray(table, np.float32)


def _read_parquet(path: Path, config: DataConfig, option: str) -> tuple[list[str], np.ndarray]:
    with reading(f"file {os.fspath(path)!r}"):
        frame = pl.read_parquet(path, glob=False)
    nested = [name for name, kind in frame.schema.items() if isinstance(kind, (pl.List, pl.Array))]
    column = config.vector_column or (nested[0] if len(nested) == 1 else "")
    if column not in nested:
        given = f" {config.vector_column!r}" if config.vector_column else ""
        raise DataError(
            f"{option} needs a column of lists of numbers, named by --data.vector-column{given}: its columns are "
            f"{', '.join(f'{name} ({kind})' for name, kind in frame.schema.items())}"
        )
    id_column = find_column(
        "item",
        config.item_id_column,
        [name for name in frame.columns if name != column],
        required=True,
        option="--data.item-id-column",
    )
    assert id_column is not None  # required=True
    with reading(f"column {id_column!r} of {option}"):
        ids = as_text(whole_as_integers(frame[id_column]), id_column).to_list()
    lists = frame[column]
    lengths = (lists.list.len() if isinstance(frame.schema[column], pl.List) else lists.arr.len()).to_list()
    other = next((row for row, n in enumerate(lengths) if n is None or n != lengths[0]), None)
    if other is not None:
        raise DataError(
            f"{option} must hold vectors of one width: got {lengths[0]} numbers for item {ids[0]!r} and "
            f"{lengths[other]} for item {ids[other]!r}"
        )
    try:
        flat = lists.explode().cast(pl.Float32).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{option}: column {column!r} must hold numbers: {error}") from None
    width = int(lengths[0]) if lengths else 0
    return ids, np.asarray(flat, np.float32).reshape(len(ids), width)
