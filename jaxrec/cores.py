"""Processors that this process may use: a scheduler, a container or ``taskset`` may allow fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Processors that this process may use; two threads of one core count twice."""
    return max(1, min(len(_allowed()), _quota()))


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once."""
    allowed = _allowed()
    try:
        cores = {
            tuple(
                Path(f"/sys/devices/system/cpu/cpu{number}/topology/{name}").read_text()
                for name in ("physical_package_id", "core_id")
            )
            for number in allowed
        }
    except OSError:
        return available_cores()
    return min(len(cores), _quota())


def _allowed() -> set[int]:
    """Numbers of the processors that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota() -> int:
    """Processors that the control group of a container allows, rounded up; a large number where it allows all."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return 1 << 16
