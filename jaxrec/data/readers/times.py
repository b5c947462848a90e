"""Times as they come in tables: seconds, milliseconds, ISO 8601 text or datetimes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from jaxrec.errors import ConfigError, DataError

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]


PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


# Text without an offset is read as UTC.
_ISO_FORMATS = (
    ("%Y-%m-%d %H:%M:%S%.f", False),
    ("%Y-%m-%d %H:%M:%S%.f%#z", True),
    ("%Y-%m-%d %H:%M", False),
    ("%Y-%m-%d", False),
)


def parse_times(
    values: pl.Series, column: str, unit: TimeUnit = "auto"
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Times of a column as integers.

    Args:
      values: numbers, text (numbers or ISO 8601) or dates.
      column: its name, for messages.
      unit: of numbers; "auto" judges by their size, on the assumption that the times lie between 1973 and
        5138.

    Returns:
      int64[N]; how many of their unit make a second; and what was assumed, for ``meta["time"]``.

    Raises:
      DataError: a time is missing, not a number and not a date, or not finite; the message counts them and
        names the first row.
    """
    if unit != "auto" and unit not in PER_SECOND:
        raise ConfigError(f"time_unit must be one of auto, {', '.join(PER_SECOND)}; got {unit!r}")
    if values.dtype == pl.Categorical or isinstance(values.dtype, pl.Enum):
        values = values.cast(pl.String)
    _refuse(values.is_null(), values, column, "missing")
    if values.dtype == pl.String:
        return _from_text(values, column, unit)
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        return _from_datetimes(values)
    if values.dtype.is_integer():
        return _from_integers(values.cast(pl.Int64).to_numpy(), unit)
    if values.dtype.is_float() or values.dtype.is_decimal():
        return _from_floats(values.cast(pl.Float64), column, unit)
    raise DataError(
        f"time column {column!r} has type {values.dtype}: expected numbers, dates or ISO 8601 text"
    )


def _refuse(bad: pl.Series, values: pl.Series, column: str, what: str) -> None:
    rows = bad.arg_true()
    if len(rows):
        value = "" if what == "missing" else f" ({values[int(rows[0])]!r})"
        raise DataError(
            f"time column {column!r}: {len(rows)} of {len(values)} times are {what}, the first in data row "
            f"{int(rows[0]) + 1}{value}: repair or drop these rows"
        )


def _from_text(values: pl.Series, column: str, unit: TimeUnit) -> tuple[np.ndarray, int, dict[str, Any]]:
    stripped = values.str.strip_chars()
    integers = stripped.cast(pl.Int64, strict=False)
    if not integers.null_count():
        return _from_integers(integers.to_numpy(), unit)
    floats = stripped.cast(pl.Float64, strict=False)
    if not floats.null_count():
        return _from_floats(floats, column, unit)
    dates = _parse_iso(stripped)
    if not dates.null_count():
        return _from_datetimes(dates)
    numeric = floats.null_count() <= dates.null_count()
    what = "not numbers" if numeric else "not ISO 8601 dates such as 2013-04-03T20:11:47Z"
    _refuse((floats if numeric else dates).is_null(), values, column, what)
    raise AssertionError("unreachable: some value was null")


def _parse_iso(text: pl.Series) -> pl.Series:
    plain = text.str.replace("T", " ", literal=True).str.replace(r"[Zz]$", "+00:00")
    found: pl.Series | None = None
    for form, zoned in _ISO_FORMATS:
        parsed = plain.str.to_datetime(form, time_unit="us", strict=False, exact=True)
        if zoned:
            parsed = parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        found = parsed if found is None else found.zip_with(found.is_not_null(), parsed)
        if not found.null_count():
            break
    assert found is not None
    return found


def _from_datetimes(values: pl.Series) -> tuple[np.ndarray, int, dict[str, Any]]:
    micro = values.cast(pl.Datetime("us")).dt.timestamp("us").to_numpy()
    note = {"unit": "datetime", "assumed": "UTC where the text gives no offset; stored in whole seconds"}
    return _coarsest(micro, PER_SECOND["us"], note)


def _from_integers(values: np.ndarray, unit: TimeUnit) -> tuple[np.ndarray, int, dict[str, Any]]:
    assumed = unit == "auto"
    chosen = _guess(values) if assumed else unit
    note = {"unit": chosen, "assumed": "from the size of the numbers" if assumed else "given"}
    return np.ascontiguousarray(values, np.int64), PER_SECOND[chosen], note


def _from_floats(values: pl.Series, column: str, unit: TimeUnit) -> tuple[np.ndarray, int, dict[str, Any]]:
    _refuse(~values.is_finite(), values, column, "not finite")
    numbers = values.to_numpy()
    if np.all(numbers == np.floor(numbers)):
        return _from_integers(numbers.astype(np.int64), unit)
    assumed = unit == "auto"
    chosen = _guess(numbers) if assumed else unit
    note = {"unit": chosen, "assumed": "from the size of the numbers" if assumed else "given"}
    # Fractions still order the events of one second, so they are kept until after the sort.
    return _coarsest(np.round(numbers * (1e6 / PER_SECOND[chosen])).astype(np.int64), PER_SECOND["us"], note)


def _coarsest(
    values: np.ndarray, per_second: int, note: dict[str, Any]
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Whole seconds where every value is one, so that the sort key stays small."""
    if not np.any(values % per_second):
        return values // per_second, 1, note
    return values, per_second, note


def _guess(values: np.ndarray) -> str:
    """Unit of times whose median is between 1973 and 5138; smaller numbers (ordinals) pass as seconds."""
    size = float(np.median(np.abs(values.astype(np.float64)))) if len(values) else 0.0
    for unit, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17)):
        if size < limit:
            return unit
    return "ns"
