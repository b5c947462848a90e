"""`load_dataset`: one door from any log of interactions to a `SequenceDataset`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from jaxrec.data.bundled import BUNDLED, load_bundled
from jaxrec.data.catalogue import StringArray
from jaxrec.data.dataset import SequenceDataset, open_dataset
from jaxrec.data.interactions import (
    Filter,
    FirstOfPair,
    InteractionLog,
    KCore,
    OnePass,
    apply_filters,
    filter_dataset,
    to_dataset,
)
from jaxrec.data.readers.items import ItemTableOptions, attributes_from, titles_from
from jaxrec.data.readers.tables import (
    UNDERSTOOD,
    describe_file,
    find_column,
    scan_file,
    scan_table,
    suffix_of,
)
from jaxrec.data.readers.text import TextLayout, read_text
from jaxrec.data.readers.times import TimeUnit, parse_times
from jaxrec.errors import ConfigError, DataError


def load_dataset(
    source: Any,
    *,
    name: str | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    time_unit: TimeUnit = "auto",
    separator: str | None = None,
    has_header: bool = True,
    layout: TextLayout = "auto",
    filter: Literal["none", "k-core", "one-pass"] = "none",
    min_interactions: int = 5,
    first_of_pair: bool = False,
    item_table: Any = None,
    item_id_column: str | None = None,
    title_column: str | None = None,
    attribute_columns: Sequence[str] = (),
    attribute_separator: str = "|",
    item_attributes: Mapping[str, Sequence[Any]] | str | os.PathLike[str] | None = None,
) -> SequenceDataset:
    """Load interactions from anything.

    Args:
      source: "movietweetings" (bundled); the path of a .csv, .tsv (also .gz), .parquet, .arrow, .feather or
        .ipc file; of a .txt (also .gz) with ``user item`` or ``user item item ...`` a line; of a directory
        that `SequenceDataset.save` wrote; a Polars, pandas or pyarrow table; a NumPy array [N, 2] or [N, 3]
        or a structured one; a dict of arrays; or a tuple of arrays (users, items[, times]).
      name: of the dataset; by default that of the file.
      user_column, item_column, time_column: by default the usual names are looked for (user_id, userId,
        movieId, timestamp, ...). Without any time column the order of the rows is the order of the
        interactions.
      time_unit: of numeric times: "s", "ms", "us", "ns", or "auto" to judge by their size.
      separator, has_header: of delimited text; without a header the columns are column_1, column_2, ...
      layout: of a .txt file: "pairs" (``user item``), "sequences" (``user item item ...``) or "auto".
      first_of_pair: keep only the first row of each (user, item).
      filter: "k-core" (iterative) or "one-pass" (SASRec's, once, on raw counts), after ``first_of_pair``.
      min_interactions: fewest interactions of a user and of an item for the filter.
      item_table: a table of items (file, Polars, pandas or pyarrow) for titles and attributes.
      item_id_column, title_column, attribute_columns: its columns; id and title by the usual names.
      attribute_separator: parts the attributes inside one cell, as in "Crime|Drama".
      item_attributes: attributes as a mapping or JSON file {item id: [attribute, ...]}, the form of S3-Rec.

    Returns:
      The dataset. Users are numbered by first appearance in the source, items by first appearance in the
      sequences; interactions are sorted by (user, time), and ties keep the order of the source.

    Raises:
      DataError: a column, a time or an id is missing or unusable, the file is empty or absent, or nothing is
        left after the filters. The message names the column, counts the rows and gives the first.
    """
    kinds: dict[str, tuple[type[KCore] | type[OnePass], ...]] = {
        "none": (),
        "k-core": (KCore,),
        "one-pass": (OnePass,),
    }
    if filter not in kinds:
        raise ConfigError(f"filter must be one of {', '.join(kinds)}; got {filter!r}")
    filters: list[Filter] = [FirstOfPair()] if first_of_pair else []
    filters.extend(kind(min_interactions) for kind in kinds[filter])
    items = ItemTableOptions(
        item_table,
        item_id_column,
        title_column,
        tuple(attribute_columns),
        attribute_separator,
        item_attributes,
    )
    ready = _ready_made(source)
    if ready is not None:
        if items.given or any(v is not None for v in (user_column, item_column, time_column, separator)):
            raise DataError(
                f"{source!r} is a finished dataset: columns, separator and item tables apply to raw logs only"
            )
        return filter_dataset(ready, filters) if filters else ready

    frame, described, default_name = _open_source(source, separator, has_header, layout)
    names = frame.collect_schema().names()
    columns = {
        "user": find_column("user", user_column, names),
        "item": find_column("item", item_column, names),
        "time": find_column("time", time_column, names, required=False),
    }
    log, time_note = _read_log(frame, columns, time_unit, str(described.get("file", "the table")))
    return to_dataset(
        apply_filters(log, filters),
        meta={"name": name or default_name, "source": described, "columns": columns, "time": time_note},
        titles=titles_from(items),
        attributes=attributes_from(items),
    )


def _ready_made(source: Any) -> SequenceDataset | None:
    """The bundled or the saved dataset that ``source`` names, if it does."""
    if isinstance(source, SequenceDataset):
        return source
    if isinstance(source, str) and source in BUNDLED:
        return load_bundled(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return open_dataset(path)
    return None


def _open_source(
    source: Any, separator: str | None, has_header: bool, layout: TextLayout
) -> tuple[pl.LazyFrame, dict[str, Any], str]:
    """Lazy frame, description and default name of a raw log."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise DataError(
                f"no file {str(path)!r}: give an existing file ({UNDERSTOOD}), the directory of a saved "
                f"dataset, or the name of a bundled one ({', '.join(BUNDLED)})"
            )
        described = describe_file(path)
        default_name = path.name.split(".")[0]
        if suffix_of(path) == ".txt" and separator is None:
            frame, found = read_text(path, layout)
            return frame.lazy(), {**described, "layout": found}, default_name
        return scan_file(path, separator, has_header), described, default_name
    table = scan_table(source)
    if table is None:
        raise DataError(
            f"cannot read interactions from {type(source).__name__}: expected a path, a Polars, pandas or "
            "pyarrow table, a NumPy array, a dict of arrays or a tuple (users, items[, times])"
        )
    return table[0], {"table": table[1]}, "table"


def _read_log(
    frame: pl.LazyFrame, columns: Mapping[str, str | None], time_unit: TimeUnit, where: str
) -> tuple[InteractionLog, dict[str, Any]]:
    chosen = [column for column in columns.values() if column is not None]
    if len(set(chosen)) < len(chosen):
        raise DataError(f"user, item and time must be different columns, got {', '.join(map(repr, chosen))}")
    try:
        table = frame.select(chosen).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{where} cannot be read as a table: {error}") from None
    if not table.height:
        raise DataError(f"{where} is empty: it has columns {', '.join(map(repr, chosen))} but no rows")
    times, per_second, note = (
        None,
        1,
        {"unit": None, "assumed": "no time column: the order of the rows is the order"},
    )
    if columns["time"] is not None:
        times, per_second, note = parse_times(table[columns["time"]], columns["time"], time_unit)
        table = table.drop(columns["time"])
    # One column at a time: 20 million ids as text are the largest thing in memory.
    encoded = {}
    for role in ("user", "item"):
        column = columns[role]
        assert column is not None
        encoded[role] = _encode(table[column], role, column)
        table = table.drop(column)
    (users, user_ids), (items, item_ids) = encoded["user"], encoded["item"]
    return InteractionLog(users, items, times, user_ids, item_ids, per_second), note


def _encode(values: pl.Series, role: str, column: str) -> tuple[np.ndarray, StringArray]:
    """int32[N] codes by first appearance, and the original ids as text."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
    missing = values.is_null().arg_true()
    if len(missing):
        raise DataError(
            f"{role} column {column!r}: {len(missing)} of {len(values)} ids are missing, the first in data "
            f"row {int(missing[0]) + 1}: drop or repair these rows"
        )
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count() or not bool((whole.cast(values.dtype) == values).all()):
            raise DataError(f"{role} column {column!r} has fractional ids: give integers or text")
        values = whole
    if values.dtype.is_integer():
        return _encode_integers(values.to_numpy())
    text = values.cast(pl.String)
    distinct = text.unique(maintain_order=True)
    codes = text.cast(pl.Enum(distinct)).to_physical().cast(pl.Int32)
    return codes.to_numpy(), StringArray.of(distinct.to_list())


def _encode_integers(values: np.ndarray) -> tuple[np.ndarray, StringArray]:
    distinct, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int32), StringArray.of(map(str, distinct.tolist()))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which interactions, and how they are filtered (see `jaxrec.data.load_dataset`).

    Attributes:
      source: "movietweetings" (bundled), a CSV/TSV/Parquet/Arrow/text file, or the directory of a saved dataset.
      user_column: name of the user column; empty = recognised by the usual names.
      item_column: name of the item column; empty = recognised by the usual names.
      time_column: name of the time column; empty = recognised by the usual names, or file order where there is none.
      first_of_pair: keep only the first interaction of a user with an item.
      filter: drop users and items with fewer than ``min_interactions``: "one-pass" once (the original SASRec's),
        "k-core" until none is left, "none" never.
      min_interactions: threshold of the filter.
      item_table: a file with a row an item, for titles; empty = none.
      title_column: its column of titles; empty = recognised by the usual names.
    """

    source: str = "movietweetings"
    user_column: str = ""
    item_column: str = ""
    time_column: str = ""
    first_of_pair: bool = False
    filter: Literal["none", "k-core", "one-pass"] = "none"
    min_interactions: int = 5
    item_table: str = ""
    title_column: str = ""

    def load(self) -> SequenceDataset:
        """The dataset."""
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "source"
        }
        return load_dataset(self.source, **{name: value for name, value in options.items() if value})
