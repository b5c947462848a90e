"""Files that appear whole or not at all, and folders that one process writes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxrec.errors import ConfigError, DataError

#: File whose lock the process holds that writes the folder it is in.
LOCK = ".lock"


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


def lock_folder(path: Path) -> int:
    """Lock a folder for this process, by a file `LOCK` in it that says ``pid N``.

    The lock is the kernel's (`flock`): it ends with the process, however that ends. On a network file system it is
    as good as that system's locks (NFS 4 has them); where there are none, a line on standard error says so.

    Args:
      path: an existing folder.

    Returns:
      A descriptor, to be closed where the lock shall end.

    Raises:
      BlockingIOError: another process holds it; ``strerror`` is its ``pid N``.
    """
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise BlockingIOError(error.errno, owner or "of unknown number") from None
    except OSError as error:
        print(
            f"jaxrec: the file system of {path} has no locks ({error.strerror}): see to it that no other process uses this "
            "folder",
            file=sys.stderr,
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()}\n".encode(), 0)
    return descriptor


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for temporary files, removed in the end.

    What a killed process left in it is removed first.

    Args:
      path: of the result, which names the folder.

    Raises:
      DataError: another process has it in use.
    """
    path = path.resolve()
    work = path.with_name(f".{path.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = lock_folder(work)
    except BlockingIOError as error:
        raise DataError(
            f"another process ({error.strerror}) is writing {path}, with its temporary files in {work}: wait until it ends, "
            "stop it, or choose another directory (--out)"
        ) from None
    try:
        for leftover in work.iterdir():
            if leftover.name != LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield work
    finally:
        shutil.rmtree(work)
        os.close(descriptor)
