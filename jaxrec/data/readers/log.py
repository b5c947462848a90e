"""An interaction log from a table: columns found, ids encoded, times parsed, low ratings left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from jaxrec.data.catalogue import StringArray
from jaxrec.data.interactions import InteractionLog
from jaxrec.data.readers.tables import find_column, plain_name, reading
from jaxrec.data.readers.times import parse_times
from jaxrec.errors import DataError

if TYPE_CHECKING:
    from jaxrec.data.readers.load import DataConfig

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
    chosen = [column for column in columns.values() if column is not None]
    if len(set(chosen)) < len(chosen):
        raise DataError(
            f"user, item, time and rating must be different columns, got {', '.join(map(repr, chosen))}"
        )
    with reading(where):
        table = frame.select(chosen).collect(engine="streaming")
    if not table.height:
        raise DataError(f"{where} is empty: it has columns {', '.join(map(repr, chosen))} but no rows")
    note: dict[str, Any] = {"columns": columns}
    warnings = _duplicates(names)
    times, per_second = None, 1
    if columns["time"] is not None:
        times, per_second, note["time"] = parse_times(
            table[columns["time"]], columns["time"], config.time_unit
        )
        table = table.drop(columns["time"])
    else:
        note["time"] = {"unit": None, "assumed": "no time column: the order of the rows is the order"}
        warnings += _time_warning(names, chosen)
    if warnings:
        note["warnings"] = warnings
    enough = None
    if (rating := columns.get("rating")) is not None:
        enough = _ratings(table[rating], rating) >= config.min_rating
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


def _duplicates(names: list[str]) -> list[str]:
    """A sentence where the header names a column twice, of which the reader takes the first."""
    repeated = [name.split("_duplicated_")[0] for name in names if "_duplicated_" in name]
    if not repeated:
        return []
    return [
        f"the header repeats {', '.join(map(repr, dict.fromkeys(repeated)))}: the first column of that name is used"
    ]


def _time_warning(names: list[str], chosen: list[str]) -> list[str]:
    """A sentence where a table has no known time column but others that may be one."""
    others = [name for name in names if name not in chosen]
    likely = [name for name in others if any(word in plain_name(name) for word in _TIME_WORDS)]
    if not others:
        return []
    listed = ", ".join(map(repr, likely or others))
    return [
        "no time column was recognised, so the order of the rows is taken for the order of the interactions; "
        + (f"{listed} may be one: " if likely else f"other columns: {listed}; ")
        + "name it with --data.time-column"
    ]


def _ratings(values: pl.Series, column: str) -> np.ndarray:
    """float64[N], NaN where there is no rating."""
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


def _encode(values: pl.Series, role: str, column: str) -> tuple[np.ndarray, StringArray]:
    """int32[N] codes by first appearance, and the original ids as text."""
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
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count() or not bool((whole.cast(dtype) == values).all()):
            raise DataError(f"{role} column {column!r} has fractional ids: give integers or text")
        values = whole
    if values.dtype.is_integer() and values.dtype not in (pl.Int128,):
        return _encode_integers(values.to_numpy())
    with reading(f"{role} column {column!r}"):
        text = values.cast(pl.String)
        distinct = text.unique(maintain_order=True)
        codes = text.cast(pl.Enum(distinct)).to_physical().cast(pl.Int32)
        return codes.to_numpy(), StringArray.of(distinct.to_list())


def _encode_integers(values: np.ndarray) -> tuple[np.ndarray, StringArray]:
    distinct, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int32), StringArray.of(map(str, distinct.tolist()))
