"""Any table becomes a lazy Polars frame: text, Parquet, Arrow, Polars, pandas, pyarrow, NumPy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jaxrec.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".ipc", ".feather")
UNDERSTOOD = ".csv, .tsv (also .gz), .parquet, .arrow, .feather, .ipc, .txt (also .gz)"


def suffix_of(path: Path) -> str:
    """Lower-case extension, without a final ``.gz``."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def describe_file(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, for ``meta["source"]``."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def scan_file(path: Path, separator: str | None, has_header: bool) -> pl.LazyFrame:
    """A lazy frame of a file. Delimited text keeps every column as text, so that ids such as 0111161 stay
    whole.

    Raises:
      DataError: empty file, or an extension that is not understood.
    """
    suffix = suffix_of(path)
    if path.stat().st_size == 0:
        raise DataError(f"file {str(path)!r} is empty: expected a table of interactions")
    if suffix in PARQUET:
        return pl.scan_parquet(path)
    if suffix in ARROW:
        return pl.scan_ipc(path)
    if suffix in (".csv", ".tsv") or separator is not None:
        return scan_delimited(path, separator or SEPARATORS[suffix], has_header)
    raise DataError(
        f"file {str(path)!r} has an unknown extension: understood are {UNDERSTOOD}; or give separator"
    )


def scan_delimited(path: Path, separator: str, has_header: bool, quote: str | None = '"') -> pl.LazyFrame:
    """Delimited text, all columns as text; without a header they are column_1, column_2, ..."""
    frame = pl.scan_csv(
        path, separator=separator, has_header=has_header, infer_schema=False, quote_char=quote
    )
    if has_header:
        return frame
    names = frame.collect_schema().names()
    return frame.rename({name: f"column_{number}" for number, name in enumerate(names, start=1)})


def scan_table(source: Any) -> tuple[pl.LazyFrame, str] | None:
    """A lazy frame of a table in memory and what kind it was, or None where ``source`` is none."""
    if isinstance(source, pl.LazyFrame):
        return source, "polars"
    if isinstance(source, pl.DataFrame):
        return source.lazy(), "polars"
    if isinstance(source, np.ndarray):
        return _from_numpy(source), "numpy"
    if isinstance(source, Mapping):
        return pl.DataFrame({name: _series(name, values) for name, values in source.items()}).lazy(), "arrays"
    if isinstance(source, tuple) and 2 <= len(source) <= 3:
        named = dict(zip(("user", "item", "time"), source, strict=False))
        return pl.DataFrame({name: _series(name, values) for name, values in named.items()}).lazy(), "arrays"
    # By module name: neither pandas nor pyarrow need be installed.
    module = type(source).__module__.split(".")[0]
    if module == "pandas" and hasattr(source, "columns"):
        return pl.DataFrame({str(c): _series(str(c), source[c]) for c in source.columns}).lazy(), "pandas"
    if module == "pyarrow" and hasattr(source, "column_names"):
        frame = pl.from_arrow(source)
        assert isinstance(frame, pl.DataFrame)
        return frame.lazy(), "pyarrow"
    return None


def _from_numpy(array: np.ndarray) -> pl.LazyFrame:
    if array.dtype.names:
        return pl.DataFrame({name: _series(name, array[name]) for name in array.dtype.names}).lazy()
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise DataError(
            "a NumPy array of interactions must be [N, 2] (user, item) or [N, 3] (user, item, time), or "
            f"structured; got shape {array.shape}"
        )
    names = ("user", "item", "time")[: array.shape[1]]
    return pl.DataFrame({name: _series(name, array[:, i]) for i, name in enumerate(names)}).lazy()


def _series(name: str, values: Any) -> pl.Series:
    array = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    if array.dtype.kind == "O" or array.dtype.kind in "USa":
        # Objects are text, None or NaN; numbers among text are written as text.
        missing = [value is None or value != value for value in array.tolist()]
        text = [None if gone else _text(value) for value, gone in zip(array.tolist(), missing, strict=True)]
        return pl.Series(name, text, dtype=pl.String)
    return pl.Series(name, np.ascontiguousarray(array))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# Compared without case, '_', '-' and spaces: user_id, userId and User-ID are one name.
USUAL_NAMES = {
    "user": ("userid", "user", "uid", "visitorid", "customerid", "reviewerid", "sessionid", "session"),
    "item": (
        "itemid", "item", "iid", "movieid", "movie", "artistid", "trackid", "songid", "productid", "asin",
        "parentasin", "businessid", "bookid", "animeid", "gameid", "newsid", "articleid", "locationid",
        "poiid", "videoid",
    ),
    "time": (
        "timestamp", "time", "unixtime", "unixreviewtime", "datetime", "date", "ts", "eventtime", "createdat",
        "checkintime",
    ),
}  # fmt: skip


def _plain(name: str) -> str:
    return "".join(c for c in name.strip().lstrip("\ufeff").lower() if c not in "_- ")


def find_column(role: str, given: str | None, names: Sequence[str], *, required: bool = True) -> str | None:
    """The column for a role ("user", "item" or "time").

    Args:
      given: the caller's choice, or None to look for the usual names.
      names: columns of the table.
      required: whether None may be the answer.

    Raises:
      DataError: the given column is absent, or no or several usual names are present; the message lists the
        columns.
    """
    found = ", ".join(map(repr, names)) or "none"
    if given is not None:
        if given not in names:
            raise DataError(f"{role}_column {given!r} is not in the table: its columns are {found}")
        return given
    matches = [name for name in names if _plain(name) in USUAL_NAMES[role]]
    if len(matches) > 1:
        raise DataError(
            f"the {role} column is ambiguous: {', '.join(map(repr, matches))} all fit; "
            f"choose with {role}_column (columns found: {found})"
        )
    if not matches and required:
        raise DataError(
            f"no {role} column found: give {role}_column (columns found: {found}; "
            f"names looked for: {', '.join(USUAL_NAMES[role][:6])}, ...)"
        )
    return matches[0] if matches else None
