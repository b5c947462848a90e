"""Persistent compilation cache: JAX's own, in a directory of the user."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

#: Programs that compile faster are not worth a file. The chunk of training steps takes seconds, the dozen programs of one
#: recommendation a tenth of a second each.
LEAST_SECONDS = 0.02


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/jaxrec/compiled/<kind of processor>``; a home may be shared by machines of several kinds.

    Code compiled for a CPU uses its instruction set, and would stop another CPU that lacks a part of it.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = [platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        kind.append(platform.processor())
    return home / "jaxrec" / "compiled" / hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]


def enable_compilation_cache() -> Path | None:
    """Turn the cache on, before the first compilation; the directory that holds it, or None where it is off.

    ``JAX_COMPILATION_CACHE_DIR`` and the other settings of JAX's cache have the last word, and a directory that cannot be
    written leaves the cache off: a run never fails for it.
    """
    import jax

    settings: Any = jax.config
    if not settings.jax_enable_compilation_cache:
        return None
    if settings.jax_compilation_cache_dir:
        return Path(settings.jax_compilation_cache_dir)
    try:
        # Only the user may write here: what is read back is executed.
        directory = cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK) or directory.stat().st_uid != os.getuid():
            return None
    except (OSError, RuntimeError):
        return None
    settings.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        settings.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return directory
