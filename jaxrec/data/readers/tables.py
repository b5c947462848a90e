"""Any table becomes a lazy Polars frame: delimited text, Parquet, Arrow, Polars, pandas, pyarrow, NumPy."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data.catalogue import id_text
from jaxrec.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
#: Separators that a message proposes where the first line holds one and a single column was read.
OTHER_SEPARATORS = ("::", "\t", ";", "|", ",")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".ipc", ".feather")
UNDERSTOOD = ".csv, .tsv (also .gz), .parquet, .arrow, .feather, .ipc, .txt (also .gz)"
#: Extensions of files that a public dataset reads -> its name.
READ_BY_NAME = {".inter": "recbole", ".pkl": "pickled"}

#: Control characters that stand for a separator of several characters while a fast parser reads the text.
_STAND_INS = ("\x1f", "\x1e", "\x1d", "\x1c", "\x01", "\x02")


@dataclasses.dataclass(frozen=True)
class TextFormat:
    r"""Format of delimited text.

    Attributes:
      separator: between fields, of any length; ``\t`` is a tab; empty = by the file's extension.
      has_header: whether the first line names the columns; without one they are column_1, column_2, ...
      encoding: of the characters.
    """

    separator: str = ""
    has_header: bool = True
    encoding: str = "utf-8"


def suffix_of(path: Path) -> str:
    """Return the lower-case extension, without a final ``.gz``."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def describe_file(path: Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a file, for ``meta["source"]``."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def parquet_files(directory: Path) -> list[Path]:
    """Return the Parquet files below a directory in the order of their paths; none where it holds a saved dataset.

    Files and folders whose names start with "_" or "." are the notes of whoever wrote the others.
    """
    if (directory / "meta.json").exists():
        return []
    files = (path for path in directory.rglob("*") if path.suffix.lower() in PARQUET and path.is_file())
    return sorted(path for path in files if not any(p[0] in "_." for p in path.relative_to(directory).parts))


def describe_parts(directory: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Return name, number, size and a digest of the names and sizes of files, for ``meta["source"]``."""
    listed = [f"{path.relative_to(directory).as_posix()}:{path.stat().st_size}" for path in files]
    return {
        "file": directory.name or directory.resolve().name,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256_of_names_and_sizes": hashlib.sha256("\n".join(listed).encode()).hexdigest(),
    }


def scan_parts(files: Sequence[Path]) -> pl.LazyFrame:
    """Open Parquet files as one lazy frame, one after the other."""
    return pl.scan_parquet(list(files), hive_partitioning=False, glob=False)


@contextlib.contextmanager
def reading(subject: str) -> Iterator[None]:
    """Turn whatever a reader raises on bad input, a panic included, into a one-line `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (
        pl.exceptions.PolarsError,
        OSError,
        ValueError,
        EOFError,
        OverflowError,
        TypeError,
        zlib.error,
    ) as error:
        raise DataError(f"{subject} cannot be read as a table: {first_line(error)}{_advice(error)}") from None
    except BaseException as error:
        # A panic of the Rust reader derives from BaseException.
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{subject} cannot be read as a table: {first_line(error)}") from None


def _advice(error: BaseException) -> str:
    """Advice where the text is in another encoding, or nothing."""
    other = isinstance(error, UnicodeDecodeError) or "invalid utf-8" in str(error)
    return "; if it is text in another encoding, name it (--data.encoding latin-1)" if other else ""


def check_encoding(encoding: str) -> str:
    """Return the name of an encoding, or raise `DataError` where Python does not know it."""
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(
            f"--data.encoding {encoding!r} is unknown: expected a name such as utf-8, latin-1 or utf-16"
        ) from None
    return encoding


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; those of Polars go on with advice on its own arguments."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def scan_file(path: Path, text: TextFormat) -> pl.LazyFrame:
    """Open a file as a lazy frame. Delimited text keeps every column as text, so that ids such as 0111161 stay whole.

    Raises:
      DataError: empty file, or an extension that is not understood.
    """
    suffix = suffix_of(path)
    if path.stat().st_size == 0:
        raise DataError(f"file {str(path)!r} is empty: expected a table of interactions")
    if suffix in PARQUET:
        return pl.scan_parquet(path, glob=False)
    if suffix in ARROW:
        return pl.scan_ipc(path, glob=False)
    if suffix in SEPARATORS or text.separator:
        return scan_delimited(path, text.separator.replace("\\t", "\t") or SEPARATORS[suffix], text)
    name = READ_BY_NAME.get(suffix)
    other = f"; such files are read by --data {name} --data.archive {path}" if name else ""
    raise DataError(
        f"file {str(path)!r} has an unknown extension: understood are {UNDERSTOOD}; for delimited text give "
        f"--data.separator{other}"
    )


def scan_delimited(path: Path, separator: str, text: TextFormat, quote: str | None = '"') -> pl.LazyFrame:
    """Open delimited text, all columns as text; without a header they are column_1, column_2, ...

    Args:
      path: plain or gzip-compressed text.
      separator: one character for a lazy scan; a longer one, or another encoding than UTF-8, is read at once.
      text: header and encoding.
      quote: the quoting character, or None; a separator of several characters goes without.
    """
    options: dict[str, Any] = {
        "has_header": text.has_header,
        "infer_schema": False,
        # Files with "::" know no quoting: a title may begin with a quotation mark.
        "quote_char": quote if len(separator) == 1 else None,
    }
    if len(separator.encode()) == 1 and is_utf8(text.encoding):
        frame = pl.scan_csv(path, separator=separator, glob=False, **options)
    else:
        content, separator = _simplify(path, separator, text.encoding)
        frame = pl.read_csv(content, separator=separator, **options).lazy()
    if text.has_header:
        return frame
    names = frame.collect_schema().names()
    return frame.rename({name: f"column_{number}" for number, name in enumerate(names, start=1)})


def is_utf8(encoding: str) -> bool:
    """Whether the name of an encoding is one of UTF-8."""
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def _simplify(path: Path, separator: str, encoding: str) -> tuple[io.BytesIO, str]:
    """UTF-8 text whose fields are separated by one byte, and that byte."""
    raw = path.read_bytes()
    content = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode(check_encoding(encoding))
    if len(separator.encode()) > 1:
        stand_in = next((c for c in _STAND_INS if c not in content), None)
        if stand_in is None:
            raise DataError(
                f"file {str(path)!r} holds control characters, so {separator!r} cannot separate its fields"
            )
        content, separator = content.replace(separator, stand_in), stand_in
    return io.BytesIO(content.encode()), separator


def scan_table(source: Any) -> tuple[pl.LazyFrame, str] | None:
    """Return a lazy frame of a table in memory and its kind, or None where ``source`` is none."""
    if isinstance(source, pl.LazyFrame):
        return source, "polars"
    if isinstance(source, pl.DataFrame):
        return source.lazy(), "polars"
    if isinstance(source, np.ndarray):
        return _from_numpy(source), "numpy"
    if isinstance(source, Mapping):
        return _from_arrays(source), "arrays"
    if isinstance(source, tuple) and 2 <= len(source) <= 3:
        return _from_arrays(dict(zip(("user", "item", "time"), source, strict=False))), "arrays"
    # By module name: neither pandas nor pyarrow need be installed.
    module = type(source).__module__.split(".")[0]
    if module == "pandas" and hasattr(source, "columns"):
        return pl.DataFrame({str(c): _series(str(c), source[c]) for c in source.columns}).lazy(), "pandas"
    if module == "pyarrow" and hasattr(source, "column_names"):
        frame = pl.from_arrow(source)
        assert isinstance(frame, pl.DataFrame)
        return frame.lazy(), "pyarrow"
    return None


def _from_arrays(columns: Mapping[Any, Any]) -> pl.LazyFrame:
    series = {str(name): _series(str(name), values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DataError(f"the columns of the table must have the same length, got {listed}")
    return pl.DataFrame(series).lazy()


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
    if array.ndim != 1:
        raise DataError(f"column {name!r} must be one-dimensional, got shape {array.shape}")
    if array.dtype.kind in "OUSa":
        # Objects are text, None or NaN; numbers among text are written as text.
        text = [None if _is_missing(value) else _text(name, value) for value in array.tolist()]
        return pl.Series(name, text, dtype=pl.String)
    if array.dtype.kind == "M" and np.datetime_data(array.dtype)[0] not in ("ms", "us", "ns"):
        array = array.astype("datetime64[us]")
    return pl.Series(name, np.ascontiguousarray(array))


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ == "NAType":  # the missing value of pandas
        return True
    different = value != value  # NaN and NaT differ from themselves
    return isinstance(different, bool) and different


def _text(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple, dict, set, np.ndarray)):
        raise DataError(
            f"column {name!r} holds a {type(value).__name__}: expected one number or text per row"
        )
    text = value.decode() if isinstance(value, bytes) else id_text(value)
    text.encode()  # lone surrogates are no text
    return text


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
    "rating": ("rating", "ratings", "stars", "score", "overall", "userrating", "weight"),
}  # fmt: skip


def plain_name(name: str) -> str:
    """Return a column name without case, '_', '-' and spaces."""
    return "".join(c for c in name.strip().lstrip("\ufeff").lower() if c not in "_- ")


def find_column(
    role: str, choice: str, names: Sequence[str], *, required: bool = True, option: str = ""
) -> str | None:
    """Find the column for a role ("user", "item", "time" or "rating").

    Args:
      role: of the column.
      choice: the caller's choice, or "" to look for the usual names.
      names: columns of the table.
      required: whether None may be the answer.
      option: that chooses the column, for messages; by default ``--data.<role>-column``.

    Raises:
      DataError: the chosen column is absent, or no or several usual names are present; the message lists the columns.
    """
    option = option or f"--data.{role}-column"
    listed = ", ".join(map(repr, names)) or "none"
    if choice:
        if choice not in names:
            raise DataError(f"{option} {choice!r} is not in the table: its columns are {listed}")
        return choice
    matches = [name for name in names if plain_name(name) in USUAL_NAMES[role]]
    if len(matches) > 1:
        raise DataError(
            f"the {role} column is ambiguous: {', '.join(map(repr, matches))} all fit; choose with {option} "
            f"(columns: {listed})"
        )
    if not matches and required:
        raise DataError(f"no {role} column found: {_advice_on_columns(role, names, option)}")
    return matches[0] if matches else None


def _advice_on_columns(role: str, names: Sequence[str], option: str) -> str:
    """Likely reason why a table has no column of a usual name, and what to do."""
    listed = ", ".join(map(repr, names)) or "none"
    separator = next((mark for mark in OTHER_SEPARATORS if len(names) == 1 and mark in names[0]), "")
    if separator:
        return (
            f"the first line, {listed}, looks separated by {separator!r}: give --data.separator {separator!r}"
        )
    if list(names) == ["column_1"]:
        return "lines without a header have one column: give --data.separator"
    # pandas numbers the columns that it reads without a header from 0.
    if names and (names[0] == "column_1" or list(names) == [str(number) for number in range(len(names))]):
        return f"columns without a header are numbered: give {option}, such as {names[0]} (columns: {listed})"
    if any(_is_number(name) for name in names):
        return (
            f"the first line, {listed}, looks like an interaction: for a file without a header give --data.no-has-header "
            "and columns by number, as --data.user-column column_1 --data.item-column column_2 --data.time-column column_3"
        )
    return f"give {option} (columns: {listed}; names looked for: {', '.join(USUAL_NAMES[role][:6])}, ...)"


def _is_number(text: str) -> bool:
    """Whether text is a number, as no name of a column is."""
    try:
        float(text.split("_duplicated_")[0])
    except ValueError:
        return False
    return True
