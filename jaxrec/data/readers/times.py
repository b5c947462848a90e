"""Times as they come in tables: seconds, milliseconds, ISO 8601 text, datetimes or compact dates."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from jaxrec.errors import ConfigError, DataError

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]

#: What ``meta["time"]`` says of a unit that the caller stated.
GIVEN = "given"

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

#: Seconds since 1970 that "auto" takes for times: from 1973 to 5138. Smaller numbers pass as ordinals in seconds.
PLAUSIBLE = (1e8, 1e11)

#: First day of year 1 and last day of year 9999, in days since 1970.
_DAYS = (-719_162, 2_932_896)

# Text without an offset is read as UTC.
_ISO_FORMATS = (
    ("%Y-%m-%d %H:%M:%S%.f", False),
    ("%Y-%m-%d %H:%M:%S%.f%#z", True),
    ("%Y-%m-%d %H:%M", False),
    ("%Y-%m-%d %H:%M%#z", True),
    ("%Y-%m-%d", False),
)


def parse_times(
    values: pl.Series, column: str, unit: TimeUnit = "auto"
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Read the times of a column as integers.

    Args:
      values: numbers, text (numbers or ISO 8601) or dates.
      column: its name, for messages.
      unit: of numbers; "auto" judges by their size, on the assumption that the times lie between 1973 and 5138, and
        reads numbers such as 20200102 and 202001020304 as dates.

    Returns:
      int64[N]; how many of their unit make a second; and the assumptions, for ``meta["time"]``.

    Raises:
      DataError: a time is missing, not a number and not a date, not finite, beyond 64 bits, or in another unit than the
        rest; the message counts them and names the first row.
    """
    if unit != "auto" and unit not in PER_SECOND:
        raise ConfigError(f"--data.time-unit must be one of auto, {', '.join(PER_SECOND)}; got {unit!r}")
    if values.dtype == pl.Categorical or isinstance(values.dtype, pl.Enum):
        values = values.cast(pl.String)
    _refuse(values.is_null(), values, column, "missing")
    if values.dtype == pl.String:
        return _from_text(values, column, unit)
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        return _from_datetimes(values)
    if values.dtype.is_integer():
        return _from_integers(values, column, unit)
    if values.dtype.is_float() or values.dtype.is_decimal():
        return _from_floats(values.cast(pl.Float64), column, unit)
    raise DataError(
        f"time column {column!r} has type {values.dtype}: expected numbers, dates or ISO 8601 text"
    )


def _refuse(bad: pl.Series, values: pl.Series, column: str, fault: str, advice: str = "") -> None:
    rows = bad.arg_true()
    if len(rows):
        value = "" if fault == "missing" else f" ({values[int(rows[0])]!r})"
        raise DataError(
            f"time column {column!r}: {len(rows)} of {len(values)} times are {fault}, the first in data row "
            f"{int(rows[0]) + 1}{value}: {advice or 'repair or drop these rows'}"
        )


def _from_text(values: pl.Series, column: str, unit: TimeUnit) -> tuple[np.ndarray, int, dict[str, Any]]:
    stripped = values.str.strip_chars()
    integers = stripped.cast(pl.Int64, strict=False)
    if not integers.null_count():
        return _from_integers(integers, column, unit)
    floats = stripped.cast(pl.Float64, strict=False)
    if not floats.null_count():
        return _from_floats(floats, column, unit)
    dates = _parse_iso(stripped)
    if not dates.null_count():
        return _from_datetimes(dates)
    iso = "ISO 8601 dates such as 2013-04-03T20:11:47Z"
    if floats.null_count() == dates.null_count() == len(values):
        _refuse(
            dates.is_null(),
            values,
            column,
            f"neither numbers nor {iso}",
            "convert the column to one of the two",
        )
    numeric = floats.null_count() <= dates.null_count()
    _refuse(
        (floats if numeric else dates).is_null(), values, column, "not numbers" if numeric else f"not {iso}"
    )
    raise AssertionError("unreachable: some value was null")


def _parse_iso(text: pl.Series) -> pl.Series:
    plain = text.str.replace("T", " ", literal=True).str.replace(r"[Zz]$", "+00:00")
    # Polars takes the day of 02-01-20 for a year.
    plain = plain.set(~plain.str.contains(r"^\d{4}-"), None)
    dates: pl.Series | None = None
    for form, zoned in _ISO_FORMATS:
        parsed = plain.str.to_datetime(form, time_unit="us", strict=False, exact=True)
        if zoned:
            parsed = parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        dates = parsed if dates is None else dates.zip_with(dates.is_not_null(), parsed)
        if not dates.null_count():
            break
    assert dates is not None
    return dates


def as_text(values: pl.Series, column: str) -> pl.Series:
    """Return the values of a column as text.

    Args:
      values: text, numbers or dates.
      column: its name, for messages.

    Raises:
      DataError: a date lies outside the years 1 to 9999, which no text can name.
    """
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        # Of a date beyond, Polars would not raise an error but panic, and print a stack trace by itself.
        days = values.to_physical().cast(pl.Int64) // _per_day(values.dtype)
        far = ((days < _DAYS[0]) | (days > _DAYS[1])).arg_true()
        if len(far):
            raise DataError(
                f"column {column!r}: {len(far)} of {len(values)} dates lie outside the years 1 to 9999, the first in data "
                f"row {int(far[0]) + 1}: repair or drop these rows"
            )
    return values.cast(pl.String)


def _per_day(dtype: pl.DataType) -> int:
    """Number of units of a date or datetime that make a day."""
    return 86_400 * PER_SECOND[dtype.time_unit] if isinstance(dtype, pl.Datetime) else 1


def _from_datetimes(values: pl.Series) -> tuple[np.ndarray, int, dict[str, Any]]:
    note = {"unit": "datetime", "assumed": "UTC where the text gives no offset; stored in whole seconds"}
    # The physical numbers never overflow, whatever the year; Polars' own conversions do.
    numbers = values.to_physical().cast(pl.Int64).to_numpy()
    if values.dtype == pl.Date:
        return numbers * 86_400, 1, note
    assert isinstance(values.dtype, pl.Datetime)
    return _coarsest(numbers, PER_SECOND[values.dtype.time_unit], note)


def _from_integers(values: pl.Series, column: str, unit: TimeUnit) -> tuple[np.ndarray, int, dict[str, Any]]:
    narrow = values.cast(pl.Int64, strict=False)
    _refuse(narrow.is_null(), values, column, "beyond 64 bits")
    numbers = np.ascontiguousarray(narrow.to_numpy(), np.int64)
    if unit == "auto" and (dates := _compact_dates(numbers)) is not None:
        return dates, 1, {"unit": "date", "assumed": "numbers such as 20200102 are dates, in UTC"}
    note = _unit_note(numbers, values, column, unit)
    return numbers, PER_SECOND[note["unit"]], note


def _from_floats(values: pl.Series, column: str, unit: TimeUnit) -> tuple[np.ndarray, int, dict[str, Any]]:
    _refuse(~values.is_finite(), values, column, "not finite")
    _refuse(values.abs() >= 2.0**63, values, column, "beyond 64 bits")
    numbers = values.to_numpy()
    if np.all(numbers == np.floor(numbers)):
        return _from_integers(values.cast(pl.Int64), column, unit)
    note = _unit_note(numbers, values, column, unit)
    scale = 1e6 / PER_SECOND[note["unit"]]
    _refuse(values.abs() * scale >= 2.0**63, values, column, "beyond 64 bits in microseconds")
    # Fractions still order the events of one second, so they stay until after the sort.
    return _coarsest(np.round(numbers * scale).astype(np.int64), PER_SECOND["us"], note)


def _coarsest(
    values: np.ndarray, per_second: int, note: dict[str, Any]
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Whole seconds where every value is one, so that the sort key stays small."""
    if not np.any(values % per_second):
        return values // per_second, 1, note
    return values, per_second, note


def _unit_note(numbers: np.ndarray, values: pl.Series, column: str, unit: TimeUnit) -> dict[str, Any]:
    """The unit of numeric times and where it comes from."""
    if unit != "auto":
        return {"unit": unit, "assumed": GIVEN}
    names = list(PER_SECOND)
    sizes = np.abs(numbers.astype(np.float64))
    place = _unit_of(float(np.median(sizes))) if len(sizes) else 0
    lowest = PLAUSIBLE[0] * PER_SECOND[names[place]]
    highest = PLAUSIBLE[1] * PER_SECOND[names[place]] if place < 3 else np.inf
    other = (sizes >= highest) | ((sizes >= PLAUSIBLE[0]) & (sizes < lowest))
    if other.any():
        first = names[_unit_of(float(sizes[int(np.argmax(other))]))]
        _refuse(
            pl.Series(other), values, column, f"in another unit ({first}) than the median ({names[place]})",
            "bring all times to one unit, or give it by --data.time-unit if it is one",
        )  # fmt: skip
    return {"unit": names[place], "assumed": "from the size of the numbers"}


def _unit_of(size: float) -> int:
    """Index into `PER_SECOND` of the unit that puts a size before the year 5138."""
    return sum(size >= PLAUSIBLE[1] * per_second for per_second in (1, 1_000, 1_000_000))


def _compact_dates(numbers: np.ndarray) -> np.ndarray | None:
    """Seconds of numbers that are all dates YYYYMMDD, YYYYMMDDhhmm or YYYYMMDDhhmmss from 1970 to 2100, else None."""
    if not len(numbers):
        return None
    low, high = int(numbers.min()), int(numbers.max())
    # Digits of the time of day. As seconds or milliseconds such numbers would lie in 1970, in 1976 or after 2500.
    digits = next((d for d in (0, 4, 6) if low >= 19700101 * 10**d and high < 21010101 * 10**d), None)
    if digits is None:
        return None
    days, clock = np.divmod(numbers, 10**digits)
    clock = clock * 10 ** (6 - digits)
    year, month, day = days // 10_000, days // 100 % 100, days % 100
    hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 60)
    if not valid.all():
        return None
    months = (year - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (month - 1)
    dates = months.astype("datetime64[D]") + (day - 1)
    if np.any(dates.astype("datetime64[M]") != months):  # the 31st of a month of 30 days
        return None
    seconds = dates.astype("datetime64[s]").astype(np.int64)
    return seconds + hour * 3600 + minute * 60 + second
