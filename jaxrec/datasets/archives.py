"""Reading official archives: members of zip and tar files, gzip, JSON lines and delimited tables."""

from __future__ import annotations

import ast
import codecs
import gzip
import io
import json
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.readers.tables import first_line, plain_name, reading
from jaxrec.errors import DataError

#: A file may unpack to that many bytes, and beyond them to that many times the size of its archive: logs of interactions
#: pack to a third or a tenth, a decompression bomb to a thousandth.
HARMLESS, RATIO = 2**28, 100

_STAND_IN = "\x1f"


def member(path: Path, name: str) -> bytes:
    """Return the content of the one member of a zip archive whose path ends in ``name``.

    Raises:
      DataError: not a zip archive, damaged, or not exactly one such member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            matches = [m for m in archive.infolist() if m.filename == name or m.filename.endswith("/" + name)]
            if len(matches) != 1:
                raise DataError(
                    f"archive {path.name!r} has {len(matches)} members named {name!r}, expected one; "
                    f"it holds {', '.join(archive.namelist()[:20])}"
                )
            if stat.S_ISLNK(matches[0].external_attr >> 16):
                raise DataError(
                    f"member {name!r} of {path.name!r} is a symbolic link, expected a file; links are never followed"
                )
            if matches[0].file_size > _most_bytes(path):
                raise _bomb(path)
            with archive.open(matches[0]) as file:
                return file.read(matches[0].file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise DataError(f"archive {path.name!r} is not a readable zip file: {error}") from None


def _most_bytes(path: Path) -> int:
    return max(HARMLESS, RATIO * path.stat().st_size)


def _bomb(path: Path) -> DataError:
    return DataError(
        f"archive {path.name!r} unpacks to more than {_most_bytes(path):,} bytes, {RATIO} times its size or more: no log of "
        "interactions does, so it is damaged or a decompression bomb; download it again"
    )


class _Limited(io.RawIOBase):
    """A compressed file that refuses to unpack beyond `_most_bytes`."""

    def __init__(self, file: Any, path: Path):
        super().__init__()
        self._file, self._path, self._left = file, path, _most_bytes(path)

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the file, as far as the limit goes."""
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise _bomb(self._path)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, rather than plain or gzip-compressed text."""
    return zipfile.is_zipfile(path) or (path.is_file() and tarfile.is_tarfile(path))


def content(path: Path, name: str = "") -> bytes:
    """Return the content of a file: of the member ``name`` of a zip or tar archive, or of the file itself, unpacked.

    Raises:
      DataError: the archive is damaged or lacks the member.
    """
    if zipfile.is_zipfile(path) and name:
        return member(path, name)
    try:
        if name and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                unpacked: bytes = _tar_file(archive, path, name).read()
                return unpacked
        with _binary(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"file {path.name!r} is damaged: {error}") from None


def has_member(path: Path, name: str) -> bool:
    """Whether an archive holds a file whose path ends in ``name``.

    Raises:
      DataError: the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        else:
            with tarfile.open(path) as tar:
                names = [entry.name for entry in tar if entry.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"archive {path.name!r} is damaged: {error}") from None
    return any(one == name or one.endswith("/" + name) for one in names)


def _tar_file(archive: tarfile.TarFile, path: Path, name: str) -> Any:
    for entry in archive:
        # Links and devices are never followed.
        if entry.isfile() and (entry.name == name or entry.name.endswith("/" + name)):
            return io.BufferedReader(_Limited(archive.extractfile(entry), path))
    raise DataError(f"archive {path.name!r} has no member named {name!r}")


def _binary(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(_Limited(gzip.open(path, "rb"), path))
    return path.open("rb")


def records(path: Path, name: str = "") -> Iterator[dict[str, Any]]:
    """Iterate over a file with one object per line: JSON, or Python literals as in older dumps (never evaluated).

    Args:
      path: text, gzip-compressed text, or an archive, which is read as a stream.
      name: of the member, where ``path`` is an archive.

    Raises:
      DataError: a line is neither, or the file is damaged.
    """
    try:
        if name and zipfile.is_zipfile(path):
            yield from _objects(io.BytesIO(member(path, name)), path)
        elif name and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                yield from _objects(_tar_file(archive, path, name), path)
        else:
            with _binary(path) as file:
                yield from _objects(file, path)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"file {path.name!r} is damaged: {error}") from None


def _objects(lines: Any, path: Path) -> Iterator[dict[str, Any]]:
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode().strip()
            if not line:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = ast.literal_eval(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise DataError(f"line {number} of {path!s} is neither JSON nor a Python literal") from None
        if not isinstance(record, dict):
            raise DataError(f"line {number} of {path!s} holds a {type(record).__name__}, expected an object")
        yield record


def columns_of(
    path: Path, fields: dict[str, str], name: str = "", required: Sequence[str] = ("user", "item")
) -> pl.DataFrame:
    """Collect fields of the objects of a file into a table of text.

    Args:
      path: as for `records`.
      fields: column -> field of the objects.
      name: of the member.
      required: columns that every object must have; objects without one are an error.

    Raises:
      DataError: a required field is absent, or the file is damaged.
    """
    columns: dict[str, list[str | None]] = {column: [] for column in fields}
    for number, record in enumerate(records(path, name), start=1):
        for column, field in fields.items():
            value = record.get(field)
            if value is None and column in required:
                raise DataError(
                    f"object {number} of {path!s} has no {field!r}: expected {', '.join(fields.values())}"
                )
            columns[column].append(None if value is None else str(value))
    if not columns[next(iter(columns))]:
        raise DataError(f"file {path!s} is empty: expected one object per line")
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def table(
    text: bytes, columns: Sequence[str], separator: str, *, encoding: str = "utf-8", quote: str | None = None
) -> pl.DataFrame:
    """Read a table without a header as text columns; an empty field is null.

    Args:
      text: the whole file.
      columns: their names.
      separator: may be longer than one character ("::").
      encoding: of the text.
      quote: the quoting character, or None.

    Raises:
      DataError: wrong encoding, or a line with another number of fields.
    """
    expected = f"expected lines of {len(columns)} fields ({', '.join(columns)})"
    try:
        text = text if encoding == "utf-8" else text.decode(encoding).encode()
        text = text.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
        if len(separator) > 1:
            # Control characters do not occur in these files, and one character is faster to parse.
            text, separator = text.replace(separator.encode(), _STAND_IN.encode()), _STAND_IN
        frame = pl.read_csv(text, separator=separator, has_header=False, infer_schema=False, quote_char=quote)
    except UnicodeDecodeError as error:
        raise DataError(f"{expected} in {encoding}: {error}") from None
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{expected}: {first_line(error)}") from None
    if frame.width != len(columns):
        raise DataError(f"the lines have {frame.width} fields, expected {len(columns)}: {', '.join(columns)}")
    frame.columns = list(columns)
    return frame


def headed_table(text: bytes, columns: dict[str, str], separator: str = ",") -> pl.DataFrame:
    """Read some columns of a table with a header, as text.

    Args:
      text: the whole file.
      columns: new name -> name in the header, compared without case, "_" and "-".
      separator: of the fields.

    Raises:
      DataError: a column is absent or named twice, or a line does not fit.
    """
    if b"\x00" in text.partition(b"\n")[0]:
        raise DataError(
            f"expected a table in UTF-8 with the columns {', '.join(columns.values())}: its header holds null bytes"
        )
    try:
        frame = pl.read_csv(text.replace(b"\r\n", b"\n"), separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"expected a table with the columns {', '.join(columns.values())}: {first_line(error)}"
        ) from None
    # The reader marks a repeated name.
    named = [plain_name(name.split("_duplicated_")[0]) for name in frame.columns]
    present = dict(zip(named, frame.columns, strict=True))
    repeated = [name for name in columns.values() if named.count(plain_name(name)) > 1]
    if repeated:
        raise DataError(
            f"the header names {', '.join(map(repr, repeated))} more than once: its columns are "
            f"{', '.join(name.split('_duplicated_')[0] for name in frame.columns)}"
        )
    absent = [name for name in columns.values() if plain_name(name) not in present]
    if absent:
        raise DataError(
            f"the table lacks {', '.join(map(repr, absent))}: its columns are {', '.join(map(repr, frame.columns))}"
        )
    return frame.select(pl.col(present[plain_name(name)]).alias(new) for new, name in columns.items())


def parquet_columns(path: Path, columns: dict[str, str]) -> pl.LazyFrame:
    """Open some columns of a Parquet file; nothing is read but its footer.

    Args:
      path: of the file.
      columns: new name -> name in the file.

    Raises:
      DataError: the file is damaged or lacks a column.
    """
    with reading(f"archive {path.name!r}"):
        frame = pl.scan_parquet(path, glob=False)
        present = frame.collect_schema().names()
    absent = [name for name in columns.values() if name not in present]
    if absent:
        raise DataError(
            f"{path.name!r} lacks {', '.join(map(repr, absent))}: its columns are {', '.join(map(repr, present))}"
        )
    return frame.select(pl.col(name).alias(new) for new, name in columns.items())
