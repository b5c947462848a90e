"""Named arrays in a directory: ``.npy`` files that can be memory-mapped, and a ``meta.json`` with their digests."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxrec.errors import DataError
from jaxrec.files import is_directory, write_atomically

#: Version 2 adds digests; version 1 is still read.
VERSION = 2
READABLE = (1, 2)

#: Bytes of an array that is compared in full whenever it is opened.
SMALL = 8 * 2**20

#: Of a larger array that many blocks of that many bytes are compared, the first and the last among them.
BLOCKS, BLOCK = 64, 4096

_AGAIN = "build it again from the source"


def write_arrays(
    directory: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Write arrays; ``meta.json`` comes last, so an interrupted save is recognised as incomplete.

    Args:
      directory: new or empty.
      arrays: one-dimensional arrays by name.
      meta: entries of ``meta.json``, "format" among them.

    Raises:
      DataError: ``directory`` is a file, or a directory that holds anything.
    """
    path = Path(directory)
    check_empty(path)
    path.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
        entries[name] = {"dtype": array.dtype.str, "length": len(array), "sample": _sample(array)}
    meta = {**meta, "version": VERSION, "arrays": entries}
    meta["digest"] = _meta_digest(meta)
    write_atomically(path / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")


def check_empty(path: Path) -> None:
    """Check that a directory is new or empty.

    Raises:
      DataError: it is a file, or holds anything.
    """
    try:
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise DataError(f"directory {str(path)!r:.200} cannot be used: {error.strerror}") from None
    if occupied:
        raise DataError(
            f"directory {str(path)!r} is not empty: give a new or empty directory, nothing was written"
        )


def read_arrays(
    directory: str | os.PathLike[str], formats: tuple[str, ...], advice: str, in_memory: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Open arrays, memory-mapped, and compare them with their digests: small ones in full, large ones by samples.

    Args:
      directory: that `write_arrays` wrote.
      formats: accepted values of "format" in ``meta.json``.
      advice: how to repair a directory of another kind, for messages.
      in_memory: read the arrays rather than map them, so that later changes of the files do not reach them.

    Returns:
      The arrays by name, and the content of ``meta.json``.

    Raises:
      DataError: the directory is missing, foreign, truncated or changed.
    """
    path = Path(directory)
    meta = _read_meta(path, formats, advice)
    arrays = {}
    for name, expected in meta["arrays"].items():
        arrays[name] = _open_array(path, name, expected, in_memory)
        if "sample" in expected and _sample(arrays[name]) != expected["sample"]:
            raise DataError(
                f"dataset file {str(path / f'{name}.npy')!r} has changed since it was saved: its digest is not the one in "
                f"meta.json; {_AGAIN}"
            )
    return arrays, meta


def _sample(array: np.ndarray) -> str:
    """SHA-256 of a small array, or of blocks spread over a large one."""
    content = np.ascontiguousarray(array).view(np.uint8)
    digest = hashlib.sha256(f"{array.dtype.str}:{len(array)};".encode())
    if len(content) <= SMALL:
        digest.update(content.data)
    else:
        for start in np.linspace(0, len(content) - BLOCK, BLOCKS).astype(np.int64).tolist():
            digest.update(content[start : start + BLOCK].tobytes())
    return digest.hexdigest()


def _meta_digest(meta: Mapping[str, Any]) -> str:
    content = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _is_regular(file: Path) -> bool:
    """Whether the path is a file, not a pipe whose opening would block."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError):
        return False


def _read_meta(path: Path, formats: tuple[str, ...], advice: str) -> dict[str, Any]:
    file = path / "meta.json"
    if not is_directory(path):
        raise DataError(f"dataset directory {str(path)!r:.200} does not exist: {advice}")
    if not _is_regular(file):
        raise DataError(
            f"directory {str(path)!r} has no meta.json, so it is no dataset or an interrupted save: {advice}"
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(file)!r} is not valid JSON ({error}): save the dataset again") from None
    if not isinstance(meta, dict) or meta.get("format") not in formats:
        kind = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise DataError(f"{str(file)!r} has format {kind!r}, expected {formats[0]!r}: {advice}")
    if meta.get("version") not in READABLE:
        raise DataError(
            f"dataset {str(path)!r} has version {meta.get('version')!r}, this release reads versions "
            f"{', '.join(map(str, READABLE))}: {_AGAIN}"
        )
    changed = f"dataset {str(path)!r} has an altered meta.json: "
    entries = meta.get("arrays")
    if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
        raise DataError(f"{changed}its list of arrays is damaged; {_AGAIN}")
    if any(not name.isidentifier() for name in entries):
        raise DataError(f"{changed}it names files outside the dataset; {_AGAIN}")
    if meta["version"] > 1 and meta.get("digest") != _meta_digest(meta):
        raise DataError(f"{changed}its digest is another; {_AGAIN}")
    if not isinstance(meta.get("fingerprint", ""), str):
        raise DataError(f"{changed}its fingerprint is no text; {_AGAIN}")
    return cast("dict[str, Any]", meta)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("length"), int)
    )


def _open_array(path: Path, name: str, expected: dict[str, Any], in_memory: bool) -> np.ndarray:
    file = path / f"{name}.npy"
    if not _is_regular(file):
        raise DataError(f"dataset {str(path)!r} lacks the file {file.name}: {_AGAIN}")
    try:
        with file.open("rb") as opened:
            if opened.read(6) != b"\x93NUMPY":
                raise ValueError("no .npy file")
        array = np.load(file, mmap_mode=None if in_memory else "r", allow_pickle=False)
    except Exception as error:
        # NumPy raises errors of many kinds for a damaged header, from tokenize.TokenError to OverflowError.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"dataset file {str(file)!r} is truncated or damaged ({reason}): {_AGAIN}") from None
    if array.dtype.str != expected["dtype"] or array.shape != (expected["length"],):
        raise DataError(
            f"dataset file {str(file)!r} holds {array.dtype.str} of shape {array.shape}, meta.json says "
            f"{expected['dtype']} of length {expected['length']}: {_AGAIN}"
        )
    return array
