"""Reading official archives: checksums, members, and ``a::b::c`` tables."""

from __future__ import annotations

import gzip
import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.errors import DataError

PathLike = str | os.PathLike[str]


def checked(
    path: PathLike, *, md5: Sequence[str] = (), sha256: Sequence[str] = (), verify: bool = True
) -> dict[str, Any]:
    """Name, size and SHA-256 of an archive, for ``meta["source"]``.

    Args:
      md5, sha256: known digests; the file must have one of them. Without any, nothing is compared.
      verify: False to read another edition of the archive; the digest is recorded all the same.

    Raises:
      DataError: no such file, or a digest that is not known.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"archive {str(file)!r} does not exist: download it from its official source")
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if verify and (md5 or sha256):
        md5_digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest not in sha256 and md5_digest not in md5:
            expected = ", ".join([*(f"sha256 {d}" for d in sha256), *(f"md5 {d}" for d in md5)])
            raise DataError(
                f"archive {file.name!r} has sha256 {digest} and md5 {md5_digest}, expected {expected}: it is "
                "damaged or another edition; download it again, or pass verify=False to read it as it is"
            )
    return {"file": file.name, "bytes": len(content), "sha256": digest}


def member(path: PathLike, name: str) -> bytes:
    """Content of the one member of a zip archive whose path ends in ``name``.

    Raises:
      DataError: not a zip archive, or not exactly one such member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [m for m in archive.namelist() if m == name or m.endswith("/" + name)]
            if len(found) != 1:
                raise DataError(
                    f"archive {Path(path).name!r} has {len(found)} members named {name!r}, expected one; "
                    f"it holds {', '.join(archive.namelist())}"
                )
            return archive.read(found[0])
    except zipfile.BadZipFile as error:
        raise DataError(f"archive {Path(path).name!r} is not a readable zip file: {error}") from None


def unpacked(path: PathLike) -> bytes:
    """Content of a file, through gzip where the name ends in ``.gz``."""
    content = Path(path).read_bytes()
    return gzip.decompress(content) if Path(path).suffix == ".gz" else content


def table(content: bytes, columns: Sequence[str], separator: str, *, encoding: str = "utf-8") -> pl.DataFrame:
    """A table without a header and without quoting as text columns; an empty field is null.

    Args:
      separator: may be longer than one character ("::").

    Raises:
      DataError: a line with another number of fields.
    """
    # Tabs do not occur in the fields of "::" files, and one character is what a fast parser takes.
    text = content.decode(encoding).replace(separator, "\t").replace("\r\n", "\n")
    try:
        frame = pl.read_csv(
            text.encode(), separator="\t", has_header=False, infer_schema=False, quote_char=None
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"expected lines of {len(columns)} fields ({', '.join(columns)}): {error}") from None
    if frame.width != len(columns):
        raise DataError(f"the lines have {frame.width} fields, expected {len(columns)}: {', '.join(columns)}")
    frame.columns = list(columns)
    return frame
