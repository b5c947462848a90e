"""The costliest operations of a compiled step, from a trace of `jax.profiler`."""

from __future__ import annotations

import collections
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax

from experiments.scaling.steps import Program

#: They contain the operations that are counted.
CONTAINERS = ("while", "call", "conditional")


def costliest(program: Program, directory: Path, count: int = 5) -> dict[str, Any]:
    """Trace a chunk of steps and sum up its operations.

    Returns:
      The operations with the most time: their names in the compiled program, where they come from in the source, seconds
      per chunk and the share of all operations' time.

    Raises:
      RuntimeError: the trace names no operation of the program.
    """
    jax.block_until_ready(program.run())
    shutil.rmtree(directory, ignore_errors=True)
    with jax.profiler.trace(str(directory)):
        jax.block_until_ready(program.run())
    total: collections.Counter[str] = collections.Counter()
    with warnings.catch_warnings():
        # Python 3.13 warns of a type that jaxlib makes here, and jaxlib aborts where the warning is an error.
        warnings.simplefilter("ignore", DeprecationWarning)
        for file in directory.rglob("*.xplane.pb"):
            total.update(_durations(jax.profiler.ProfileData.from_file(str(file))))
    if not total:
        raise RuntimeError(f"the trace in {directory} names no operation of the compiled program")
    origins = dict(re.findall(r"%?([\w.-]+) = [^\n]*?op_name=\"([^\"]+)\"", program.compiled.as_text()))
    everything = sum(total.values())
    return {
        "operations_seconds": everything / 1e9,
        "top": [
            {
                "operation": operation,
                "origin": origins.get(operation, ""),
                "seconds": nanoseconds / 1e9,
                "share": nanoseconds / everything,
            }
            for operation, nanoseconds in total.most_common(count)
        ],
    }


def _durations(data: jax.profiler.ProfileData) -> collections.Counter[str]:
    """Nanoseconds of each operation of compiled programs."""
    total: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = next((str(value) for key, value in event.stats if key == "hlo_op"), "")
                if operation and not operation.startswith(CONTAINERS):
                    total[operation] += event.duration_ns
    return total
