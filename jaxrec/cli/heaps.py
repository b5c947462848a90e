"""Heaps of the C library, of which a training process should have few."""

from __future__ import annotations

import ctypes
import os

#: Heaps of a process that trains, whatever its number of threads.
HEAPS = 2
_M_ARENA_MAX = -8  # of malloc.h


def limit_heaps(most: int = HEAPS) -> bool:
    """Make threads share ``most`` heaps; call it before they start.

    The GNU C library gives up to eight for each core to its threads, and a heap keeps what its thread has freed. Every
    checkpoint starts threads, so that a run would grow with each of the first dozens of them. Arrays of more than some
    megabytes lie in no heap.

    Returns:
      Whether it took effect: not with another C library, nor where the environment sets the number (``MALLOC_ARENA_MAX``,
      ``GLIBC_TUNABLES``).
    """
    if os.environ.get("MALLOC_ARENA_MAX") or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # others have mallopt, too, with other numbers
        return bool(library.mallopt(_M_ARENA_MAX, most))
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return False
