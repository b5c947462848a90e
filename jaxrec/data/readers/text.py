"""Text in lines: ``user item`` (SASRec's ml-1m.txt) or ``user item item ...``, one user per line (S3-Rec)."""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from jaxrec.data.readers.tables import (
    TextFormat,
    check_encoding,
    is_utf8,
    reading,
    scan_delimited,
)
from jaxrec.errors import DataError

TextLayout = Literal["auto", "pairs", "sequences"]


_SAMPLE = 10_000


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOBase:
    """Open a text file, unpacked on the way where its name ends in ``.gz``."""
    # As the reader of tables does, leave out the mark that some editors put before the text.
    encoding = "utf-8-sig" if is_utf8(encoding) else check_encoding(encoding)
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding=encoding)
    return open(path, encoding=encoding)


def read_text(path: Path, layout: TextLayout = "auto", encoding: str = "utf-8") -> tuple[pl.DataFrame, str]:
    """Read columns ``user`` and ``item`` of a text file, oldest first, and say which layout it has.

    Raises:
      DataError: empty or unreadable file, a line that does not fit, or a file that "auto" cannot tell apart.
    """
    with reading(f"file {str(path)!r}"):
        kind = layout
        if layout == "auto":
            with open_text(path, encoding) as file:
                kind = _guess_layout(path, itertools.islice(file, _SAMPLE))
        if kind == "pairs":
            return _read_pairs(path, encoding), "pairs"
        with open_text(path, encoding) as file:
            return parse_sequences(file, str(path)), "sequences"


def _guess_layout(path: Path, lines: Iterable[str]) -> TextLayout:
    widths = {len(line.split()) for line in lines if line.strip()}
    if not widths:
        raise DataError(f"file {str(path)!r} is empty: expected 'user item' or 'user item item ...' per line")
    if widths == {2}:
        return "pairs"
    if len(widths) == 1:
        raise DataError(
            f"every line of {str(path)!r} has {widths.pop()} words: for a table give --data.separator "
            "(and --data.no-has-header if it has no header), for one sequence per line --data.layout sequences"
        )
    return "sequences"


def _read_pairs(path: Path, encoding: str) -> pl.DataFrame:
    with open_text(path, encoding) as file:
        separator = "\t" if "\t" in file.readline() else " "
    try:
        text = TextFormat(separator, has_header=False, encoding=encoding)
        frame = scan_delimited(path, separator, text, quote=None).collect()
    except pl.exceptions.NoDataError:
        raise DataError(f"file {str(path)!r} is empty: expected 'user item' per line") from None
    except pl.exceptions.PolarsError:
        return _split_pairs(path, encoding)
    if frame.width != 2 or any(column.null_count() for column in frame):
        return _split_pairs(path, encoding)
    return frame.rename({"column_1": "user", "column_2": "item"})


def _split_pairs(path: Path, encoding: str) -> pl.DataFrame:
    """Pairs with blanks of any number and kind between, before and after the words."""
    users: list[str] = []
    items: list[str] = []
    with open_text(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2:
                raise DataError(
                    f"file {str(path)!r} is not 'user item' per line: line {number} has {len(words)} words; for one "
                    "sequence per line give --data.layout sequences"
                )
            users.append(words[0])
            items.append(words[1])
    return pl.DataFrame({"user": users, "item": items})


def parse_sequences(lines: Iterable[str], name: str) -> pl.DataFrame:
    """Read columns ``user`` and ``item`` from lines ``user item item ...``."""
    users: list[str] = []
    lengths: list[int] = []
    items: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) == 1:
            raise DataError(f"line {number} of {name!r} has a user ({words[0]!r}) but no item")
        if words[0] in seen:
            raise DataError(
                f"line {number} of {name!r} repeats user {words[0]!r}: expected one line per user; "
                "for 'user item' per line give --data.layout pairs"
            )
        seen.add(words[0])
        users.append(words[0])
        lengths.append(len(words) - 1)
        items.extend(words[1:])
    if not users:
        raise DataError(f"file {name!r} is empty: expected 'user item item ...' per line")
    repeated = pl.Series("user", users).gather(np.repeat(np.arange(len(users)), lengths))
    return pl.DataFrame({"user": repeated, "item": pl.Series("item", items)})
