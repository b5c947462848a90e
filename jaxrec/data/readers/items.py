"""Titles and attributes of items, looked up by original item id."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.log import whole_as_integers
from jaxrec.data.readers.tables import (
    USUAL_NAMES,
    TextFormat,
    find_column,
    plain_name,
    reading,
    scan_file,
    scan_table,
)
from jaxrec.data.readers.times import as_text
from jaxrec.errors import DataError
from jaxrec.files import is_file

_TITLES = ("title", "name", "itemname", "movietitle", "itemtitle")

#: Functions from the dataset's item ids, in order, to titles and to attributes.
Titles = Callable[[Sequence[str]], Sequence[str]]
Attributes = Callable[[Sequence[str]], AttributeTable]


def read_items(
    config: DataConfig, table: Any = None, attributes: Any = None
) -> tuple[Titles | None, Attributes | None]:
    """Read titles and attributes from the item table and the attribute file that ``config`` names.

    Args:
      config: names of files and columns.
      table: a table in memory in place of ``config.item_table``.
      attributes: a mapping {item id: [attribute, ...]} in place of ``config.item_attributes``.

    Returns:
      A function from item ids to titles ("" where there is none) and one to an `AttributeTable`; None where no source
      was named.

    Raises:
      DataError: a file or column is missing or unusable, or columns are named without a table.
    """
    table = config.item_table or None if table is None else table
    attributes = config.item_attributes or None if attributes is None else attributes
    # A file of vectors has a column of ids, too.
    id_column = "" if config.item_vectors else config.item_id_column
    columns = (id_column, config.title_column, config.attribute_columns)
    if table is None and any(columns):
        raise DataError(
            "--data.item-id-column, --data.title-column and --data.attribute-columns need --data.item-table, "
            "which was not given"
        )
    if attributes is not None and config.attribute_columns:
        raise DataError("give --data.attribute-columns or --data.item-attributes, not both")
    frame = None if table is None else _open(table, config)
    return (
        None if frame is None else _titles(frame, config),
        _listed_attributes(attributes)
        if attributes is not None
        else _column_attributes(frame, config)
        if frame is not None and config.attribute_columns
        else None,
    )


class NewItems(NamedTuple):
    """Rows of a table of items; ``attributes`` and ``similar`` are lists of names, and each is None where it is absent."""

    ids: list[str]
    titles: list[str] | None
    attributes: list[list[str]] | None
    similar: list[list[str]] | None


def read_new_items(config: DataConfig, table: Any) -> NewItems:
    """Read a table of items that a catalogue does not have.

    Args:
      config: names of its columns.
      table: a file, or a Polars, pandas or pyarrow table.

    Raises:
      DataError: a file or column is missing or unusable, there is no item, or an id is empty or given twice.
    """
    frame = _open(table, config, "--items")
    written = _text(frame, _id_column(frame, config), "id")
    ids = [name.strip() for name in written]
    empty = next((row for row, name in enumerate(ids) if not name), None)
    if not ids or empty is not None:
        where = "no row" if empty is None else f"an empty id in row {empty + 1}"
        raise DataError(f"the table of new items must have an id in every row, got {where}")
    if len(set(ids)) != len(ids):
        twice = next(name for row, name in enumerate(ids) if name in ids[:row])
        raise DataError(f"the table of new items must name each item once, got {twice!r} again")

    def lists(columns: Sequence[str]) -> list[list[str]] | None:
        if not columns:
            return None
        rows: list[list[str]] = [[] for _ in ids]
        for column in columns:
            for row, cell in zip(rows, _text(frame, column, "attribute"), strict=True):
                parts = cell.split(config.attribute_separator) if config.attribute_separator else [cell]
                row.extend(part.strip() for part in parts if part.strip())
        return rows

    titles = _titles(frame, config)
    return NewItems(
        ids,
        None if titles is None else list(titles(written)),
        lists(config.attribute_columns),
        lists(["similar"] if "similar" in frame.columns else []),
    )


def _titles(frame: pl.DataFrame, config: DataConfig) -> Titles | None:
    id_column, title_column = _id_column(frame, config), config.title_column
    if not title_column:
        title_column = next((name for name in frame.columns if plain_name(name) in _TITLES), "")
        if not title_column:
            return None
    titles = dict(zip(_text(frame, id_column, "id"), _text(frame, title_column, "title"), strict=True))
    return lambda item_ids: [titles.get(item, "") for item in item_ids]


def _column_attributes(frame: pl.DataFrame, config: DataConfig) -> Attributes:
    ids = _text(frame, _id_column(frame, config), "id")
    lists: dict[str, list[str]] = {item: [] for item in ids}
    for column in config.attribute_columns:
        for item, cell in zip(ids, _text(frame, column, "attribute"), strict=True):
            parts = cell.split(config.attribute_separator) if config.attribute_separator else [cell]
            lists[item].extend(part.strip() for part in parts if part.strip())
    return lambda item_ids: AttributeTable.from_lists([lists.get(item, []) for item in item_ids])


def _listed_attributes(source: Any) -> Attributes:
    option = "--data.item-attributes"
    if not isinstance(source, Mapping):
        source = _read_json(source, option)
    lists = {}
    for item, values in source.items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
            raise DataError(
                f"{option} must map item ids to lists of attributes, got {values!r} for item {item!r}"
            )
        lists[str(item)] = [str(value) for value in values]
    return lambda item_ids: AttributeTable.from_lists([lists.get(item, []) for item in item_ids])


def _read_json(source: Any, option: str) -> Mapping[str, Any]:
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"{option} must be a mapping or a JSON file, got {type(source).__name__}")
    if not is_file(source):
        raise DataError(f"{option} {str(source)!r} cannot be read: no such file")
    try:
        loaded = json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{option} {str(source)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{option} {str(source)!r} is not valid JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise DataError(
            f"{option} must be a JSON object {{item id: [attributes]}}, got {type(loaded).__name__}"
        )
    return loaded


def _open(table: Any, config: DataConfig, option: str = "--data.item-table") -> pl.DataFrame:
    if isinstance(table, str | os.PathLike):
        path = Path(table)
        if not is_file(path):
            raise DataError(f"{option} {str(path)!r} does not exist: expected the file of a table of items")
        text = TextFormat(config.item_separator, config.item_has_header, config.encoding)
        with reading(f"{option} {str(path)!r}"):
            return scan_file(path, text).collect()
    with reading("the item table"):
        scanned = scan_table(table)
        if scanned is not None:
            return scanned[0].collect()
    raise DataError(f"{option} must be a path or a table, got {type(table).__name__}")


def _id_column(frame: pl.DataFrame, config: DataConfig) -> str:
    others = [name for name in frame.columns if name != config.title_column]
    column = find_column(
        "item",
        config.item_id_column,
        frame.columns if config.item_id_column else others,
        required=False,
        option="--data.item-id-column",
    )
    if column is None:  # what a log may say of anything is in a table of items the id of an item
        column = next((name for name in others if plain_name(name) == "id"), None)
    if column is None:
        raise DataError(
            "no item id column in the item table: give --data.item-id-column "
            f"(columns: {', '.join(map(repr, frame.columns))}); names looked for: {', '.join(USUAL_NAMES['item'][:6])}, "
            "... and id"
        )
    return column


def _text(frame: pl.DataFrame, column: str, role: str) -> list[str]:
    option = {"id": "item-id-column", "title": "title-column", "attribute": "attribute-columns"}[role]
    if column not in frame.columns:
        raise DataError(
            f"--data.{option} {column!r} is not in the item table: its columns are "
            f"{', '.join(map(repr, frame.columns))}"
        )
    values = whole_as_integers(frame[column]) if role == "id" else frame[column]
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise DataError(f"--data.{option} {column!r} has type {values.dtype}: expected text or numbers")
    with reading(f"--data.{option} {column!r}"):
        return as_text(values, column).fill_null("").to_list()
