"""The two text forms that circulate: ``user item`` a line (SASRec's ml-1m.txt) and ``user item item ...`` a
line (S3-Rec)."""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from jaxrec.data.readers.tables import scan_delimited
from jaxrec.errors import ConfigError, DataError

TextLayout = Literal["auto", "pairs", "sequences"]


_SAMPLE = 10_000


def open_text(path: Path) -> io.TextIOBase:
    """A UTF-8 text file, unpacked on the way where its name ends in ``.gz``."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8")
    return open(path, encoding="utf-8")


def read_text(path: Path, layout: TextLayout = "auto") -> tuple[pl.DataFrame, str]:
    """Columns ``user`` and ``item`` of a text file, oldest first, and which layout it has.

    Raises:
      DataError: empty file, a line that does not fit, or a file that "auto" cannot tell apart.
    """
    if layout not in ("auto", "pairs", "sequences"):
        raise ConfigError(f"layout must be one of auto, pairs, sequences; got {layout!r}")
    chosen = layout
    if layout == "auto":
        with open_text(path) as file:
            chosen = _guess_layout(path, itertools.islice(file, _SAMPLE))
    if chosen == "pairs":
        return _read_pairs(path), "pairs"
    with open_text(path) as file:
        return parse_sequences(file, str(path)), "sequences"


def _guess_layout(path: Path, lines: Iterable[str]) -> TextLayout:
    widths = {len(line.split()) for line in lines if line.strip()}
    if not widths:
        raise DataError(f"file {str(path)!r} is empty: expected 'user item' or 'user item item ...' a line")
    if widths == {2}:
        return "pairs"
    if len(widths) == 1:
        raise DataError(
            f"every line of {str(path)!r} has {widths.pop()} words: for a table give separator "
            "(and has_header=False if it has no header), for one sequence a line give layout='sequences'"
        )
    return "sequences"


def _read_pairs(path: Path) -> pl.DataFrame:
    with open_text(path) as file:
        separator = "\t" if "\t" in file.readline() else " "
    try:
        frame = scan_delimited(path, separator, has_header=False, quote=None).collect()
    except pl.exceptions.NoDataError:
        raise DataError(f"file {str(path)!r} is empty: expected 'user item' a line") from None
    except pl.exceptions.PolarsError as error:
        raise DataError(f"file {str(path)!r} is not 'user item' a line: {error}") from None
    if frame.width != 2:
        raise DataError(
            f"file {str(path)!r} has {frame.width} words on its first line, expected 'user item'; "
            "for one sequence a line give layout='sequences'"
        )
    return frame.rename({"column_1": "user", "column_2": "item"})


def parse_sequences(lines: Iterable[str], name: str) -> pl.DataFrame:
    """Columns ``user`` and ``item`` of lines ``user item item ...``."""
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
                f"line {number} of {name!r} repeats user {words[0]!r}: expected one line a user; "
                "for 'user item' a line give layout='pairs'"
            )
        seen.add(words[0])
        users.append(words[0])
        lengths.append(len(words) - 1)
        items.extend(words[1:])
    if not users:
        raise DataError(f"file {name!r} is empty: expected 'user item item ...' a line")
    repeated = pl.Series("user", users).gather(np.repeat(np.arange(len(users)), lengths))
    return pl.DataFrame({"user": repeated, "item": pl.Series("item", items)})
