"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from jaxrec.errors import ConfigError


def as_path(value: object, name: str) -> Path:
    """``value`` as a path.

    Args:
      value: text or a path.
      name: of the argument, for the message.

    Raises:
      ConfigError: it is of another type, or holds a character that no path has.
    """
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise ConfigError(f"{name} must be a path; got {value!r:.80}")
    return Path(value)


def as_word(path: object) -> str:
    """Return a path as one word of a shell command, as it is pasted from a line of advice.

    >>> as_word("runs/first"), as_word("my runs")
    ('runs/first', "'my runs'")
    """
    return shlex.quote(str(path))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names a regular file; False for what no path can be."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names a directory; False for what no path can be."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``path`` under a temporary name beside it, flush it to the disk, and rename it.

    A process killed at any moment, or a full disk, leaves the former content of ``path`` in place.

    Args:
      path: the file to write or replace.
      content: text (written as UTF-8), bytes, or a function that writes into an open binary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
