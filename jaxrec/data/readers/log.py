"""An interaction log from a table: columns found, ids encoded, times parsed, low ratings left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data.catalogue import StringArray
from jaxrec.data.interactions import InteractionLog
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.tables import find_column, plain_name, reading
from jaxrec.data.readers.times import as_text, parse_times
from jaxrec.errors import DataError

#: Entry of ``meta["time"]`` of a log without times.
NO_TIMES = {"unit": None, "assumed": "no time column: the order of the rows is the order"}

#: Parts of column names that suggest a time.
_TIME_WORDS = ("time", "date", "when", "day", "created", "stamp", "epoch")


def read_log(frame: pl.LazyFrame, config: DataConfig, where: str) -> tuple[InteractionLog, dict[str, Any]]:
    """Read the interactions of a table.

    Args:
      frame: the table.
      config: columns, time unit and rating threshold.
      where: name of the table, for messages.

    Returns:
      The log, and notes for the dataset's ``meta``: columns, time and warnings.

    Raises:
      DataError: a column, id, time or rating is missing or unusable, or the table is empty.
    """
    columns, warnings = choose_columns(frame, config, where)
    selected = [column for column in columns.values() if column is not None]
    with reading(where):
        table = frame.select(selected).collect(engine="streaming")
    if not table.height:
        raise no_rows(where, columns)
    note: dict[str, Any] = {"columns": columns}
    times, per_second = None, 1
    if columns["time"] is not None:
        times, per_second, note["time"] = parse_times(
            table[columns["time"]], columns["time"], config.time_unit
        )
        table = table.drop(columns["time"])
    else:
        note["time"] = dict(NO_TIMES)
    if warnings:
        note["warnings"] = warnings
    enough = None
    if (rating := columns.get("rating")) is not None:
        enough = parse_ratings(table[rating], rating) >= config.min_rating
        table = table.drop(rating)
    # One column at a time: 20 million ids as text are the largest thing in memory.
    encoded = {}
    for role in ("user", "item"):
        column = columns[role]
        assert column is not None
        encoded[role] = _encode(table[column], role, column)
        table = table.drop(column)
    (users, user_ids), (items, item_ids) = encoded["user"], encoded["item"]
    log = InteractionLog(users, items, times, user_ids, item_ids, per_second)
    if enough is not None:
        log = log.select(enough, {"filter": "min-rating", "minimum": config.min_rating})
    return log, note


def choose_columns(
    frame: pl.LazyFrame, config: DataConfig, where: str
) -> tuple[dict[str, str | None], list[str]]:
    """Find the columns of user, item, time (or None) and, with a lowest rating, rating; and warnings about the others.

    Args:
      frame: the table.
      config: choices of columns.
      where: name of the table, for messages.

    Raises:
      DataError: a column is missing, ambiguous, without use or chosen twice.
    """
    with reading(where):
        names = frame.collect_schema().names()
    columns: dict[str, str | None] = {
        "user": find_column("user", config.user_column, names),
        "item": find_column("item", config.item_column, names),
        "time": find_column("time", config.time_column, names, required=False),
    }
    if config.min_rating is not None:
        columns["rating"] = find_column("rating", config.rating_column, names)
    elif config.rating_column:
        raise DataError(
            "--data.rating-column has no use without --data.min-rating: give the lowest rating to keep"
        )
    selected = [column for column in columns.values() if column is not None]
    if len(set(selected)) < len(selected):
        raise DataError(
            f"user, item, time and rating must be different columns, got {', '.join(map(repr, selected))}"
        )
    warnings = _duplicates(names)
    return columns, warnings if columns["time"] is not None else warnings + _time_warning(names, selected)


def no_rows(where: str, columns: Mapping[str, str | None]) -> DataError:
    """Return the error of a table without rows."""
    listed = ", ".join(repr(column) for column in columns.values() if column is not None)
    return DataError(f"{where} is empty: it has columns {listed} but no rows")


def _duplicates(names: list[str]) -> list[str]:
    """A sentence where the header names a column twice, of which the reader takes the first."""
    repeated = [name.split("_duplicated_")[0] for name in names if "_duplicated_" in name]
    if not repeated:
        return []
    return [
        f"the header repeats {', '.join(map(repr, dict.fromkeys(repeated)))}: the first column of that name is used"
    ]


def _time_warning(names: list[str], selected: list[str]) -> list[str]:
    """A sentence where a table has no known time column but others that may be one."""
    others = [name for name in names if name not in selected]
    likely = [name for name in others if any(word in plain_name(name) for word in _TIME_WORDS)]
    if not others:
        return []
    listed = ", ".join(map(repr, likely or others))
    return [
        "no time column was recognised, so the order of the rows is taken for the order of the interactions; "
        + (f"{listed} may be one: " if likely else f"other columns: {listed}; ")
        + "name it with --data.time-column"
    ]


def parse_ratings(values: pl.Series, column: str) -> np.ndarray:
    """float64[N], NaN where there is no rating."""
    if values.dtype.is_temporal():
        raise DataError(f"rating column {column!r} has type {values.dtype}: expected numbers")
    numbers = (
        values.cast(pl.Float64, strict=False)
        if not values.dtype.is_nested()
        else pl.Series([None] * len(values))
    )
    bad = (numbers.is_null() & values.is_not_null() & (values.cast(pl.String, strict=False) != "")).arg_true()
    if len(bad):
        raise DataError(
            f"rating column {column!r}: {len(bad)} of {len(values)} ratings are not numbers, the first in data row "
            f"{int(bad[0]) + 1} ({values[int(bad[0])]!r}): repair these rows, or choose another --data.rating-column"
        )
    return numbers.fill_null(float("nan")).to_numpy()


def whole_as_integers(values: pl.Series) -> pl.Series:
    """Return the numbers of a column of floats as integers, null where one is missing, if all are whole; else the column."""
    if not values.dtype.is_float():
        return values
    present = values.fill_nan(None)
    whole = present.cast(pl.Int64, strict=False)
    same = whole.null_count() == present.null_count() and bool((whole.cast(values.dtype) == present).all())
    return whole if same else values


def clean_ids(values: pl.Series, role: str, column: str) -> pl.Series:
    """Return ids as integers or text.

    Args:
      values: ids as the table has them.
      role: "user" or "item".
      column: its name, for messages.

    Raises:
      DataError: an id is missing or fractional, or the column holds neither numbers nor text.
    """
    dtype = values.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration, pl.Time):
        raise DataError(f"{role} column {column!r} has type {dtype}: expected integers or text")
    if dtype.is_float():
        values = values.fill_nan(None)
    missing = values.is_null().arg_true()
    if len(missing):
        raise DataError(
            f"{role} column {column!r}: {len(missing)} of {len(values)} ids are missing, the first in data "
            f"row {int(missing[0]) + 1}: drop or repair these rows"
        )
    if dtype.is_float():
        values = whole_as_integers(values)
        if values.dtype.is_float():
            raise DataError(f"{role} column {column!r} has fractional ids: give integers or text")
    if values.dtype.is_integer() and values.dtype != pl.Int128:
        return values
    with reading(f"{role} column {column!r}"):
        return as_text(values, column)


def _encode(values: pl.Series, role: str, column: str) -> tuple[np.ndarray, StringArray]:
    """int32[N] codes by first appearance, and the original ids as text."""
    values = clean_ids(values, role, column)
    if values.dtype.is_integer():
        return _encode_integers(values.to_numpy())
    with reading(f"{role} column {column!r}"):
        distinct = values.unique(maintain_order=True)
        codes = values.cast(pl.Enum(distinct)).to_physical().cast(pl.Int32)
        return codes.to_numpy(), StringArray.of(distinct.to_list())


def _encode_integers(values: np.ndarray) -> tuple[np.ndarray, StringArray]:
    distinct, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int32), StringArray.of(map(str, distinct.tolist()))
