"""Titles and attributes of items, looked up by original item id."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.readers.tables import find_column, scan_file, scan_table
from jaxrec.errors import DataError

_TITLES = ("title", "name", "itemname", "movietitle", "itemtitle")


@dataclasses.dataclass(frozen=True)
class ItemTableOptions:
    """Where titles and attributes come from; the fields are the arguments of `load_dataset`."""

    table: Any = None
    id_column: str | None = None
    title_column: str | None = None
    attribute_columns: tuple[str, ...] = ()
    attribute_separator: str = "|"
    attributes: Mapping[str, Sequence[Any]] | str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.table is None and (self.id_column or self.title_column or self.attribute_columns):
            raise DataError(
                "item_id_column, title_column and attribute_columns need item_table, which was not given"
            )
        if self.attributes is not None and self.attribute_columns:
            raise DataError("give attribute_columns or item_attributes, not both")

    @property
    def given(self) -> bool:
        """Whether there is any source."""
        return self.table is not None or self.attributes is not None


def titles_from(options: ItemTableOptions) -> Callable[[Sequence[str]], Sequence[str]] | None:
    """A function from item ids to titles ("" where there is none), or None without a title column."""
    if options.table is None:
        return None
    frame = _open(options.table)
    id_column, title_column = _id_column(options, frame), options.title_column
    if title_column is None:
        title_column = next((c for c in frame.columns if c.lower().replace("_", "") in _TITLES), None)
        if title_column is None:
            return None
    _require(title_column, "title_column", frame)
    titles = dict(zip(_ids(frame, id_column), frame[title_column].cast(pl.String).fill_null(""), strict=True))
    return lambda item_ids: [titles.get(item, "") for item in item_ids]


def attributes_from(options: ItemTableOptions) -> Callable[[Sequence[str]], AttributeTable] | None:
    """A function from item ids to an `AttributeTable`, or None where no attributes were named."""
    if options.attributes is not None:
        lists = {
            str(item): [str(value) for value in values]
            for item, values in _mapping(options.attributes).items()
        }
    elif options.attribute_columns:
        frame = _open(options.table)
        ids = _ids(frame, _id_column(options, frame))
        lists = {item: [] for item in ids}
        for column in options.attribute_columns:
            _require(column, "attribute_columns", frame)
            for item, cell in zip(ids, frame[column].cast(pl.String).fill_null(""), strict=True):
                parts = cell.split(options.attribute_separator) if options.attribute_separator else [cell]
                lists[item].extend(part.strip() for part in parts if part.strip())
    else:
        return None
    return lambda item_ids: AttributeTable.from_lists([lists.get(item, []) for item in item_ids])


def _open(table: Any) -> pl.DataFrame:
    if isinstance(table, str | os.PathLike):
        path = Path(table)
        if not path.is_file():
            raise DataError(f"item_table {str(path)!r} does not exist")
        return scan_file(path, None, True).collect()
    found = scan_table(table)
    if found is None:
        raise DataError(f"item_table must be a path or a table, got {type(table).__name__}")
    return found[0].collect()


def _id_column(options: ItemTableOptions, frame: pl.DataFrame) -> str:
    if options.id_column is not None:
        _require(options.id_column, "item_id_column", frame)
        return options.id_column
    column = find_column(
        "item", None, [c for c in frame.columns if c != options.title_column], required=False
    )
    if column is None:
        raise DataError(
            "no item id column in item_table: give item_id_column "
            f"(columns found: {', '.join(map(repr, frame.columns))})"
        )
    return column


def _require(column: str, field: str, frame: pl.DataFrame) -> None:
    if column not in frame.columns:
        raise DataError(
            f"{field} {column!r} is not in item_table: its columns are {', '.join(map(repr, frame.columns))}"
        )


def _ids(frame: pl.DataFrame, column: str) -> list[str]:
    return frame[column].cast(pl.String).fill_null("").to_list()


def _mapping(source: Any) -> Mapping[str, Sequence[Any]]:
    if isinstance(source, Mapping):
        return source
    try:
        loaded = json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"item_attributes {str(source)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"item_attributes {str(source)!r} is not valid JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise DataError(
            f"item_attributes must be a JSON object {{item id: [attributes]}}, got {type(loaded).__name__}"
        )
    return loaded
