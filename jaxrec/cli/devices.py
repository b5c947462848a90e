"""Devices of a training run on a CPU, which has one for JAX unless it is asked for more.

A program of one device waits inside each operation until the last core has its part, and some operations run on one core
alone. Devices that share the rows of a batch work side by side and meet once a step, to add their gradients; each holds the
whole state and updates it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from jaxrec.config import RunConfig


def with_devices(config: RunConfig, resume: bool) -> RunConfig:
    """Make the CPU show the devices that a run's mesh needs; call it before anything else uses JAX.

    Nothing changes for a mesh of one device, where the environment sets the number of host devices (``XLA_FLAGS``,
    ``JAX_NUM_CPU_DEVICES``), where JAX computes on something else, or for more devices than cores, unless a run that was
    started on them goes on.

    Args:
      config: of the run.
      resume: whether the run was started before.

    Returns:
      The configuration, in which a ``mesh.data`` of 0 has become the number of devices: one per core, as far as they share
      the rows of a batch equally.
    """
    mesh, cores = config.mesh, physical_cores()
    if _is_set():
        return config
    if not mesh.data:
        rows = config.batches.batch_size // config.training.accumulate_steps
        mesh = dataclasses.replace(mesh, data=shared_by(rows, cores // mesh.item))
    count = mesh.data * mesh.item
    if count > 1 and (resume or count <= cores) and _show_devices(count):
        return dataclasses.replace(config, mesh=mesh)
    return config


def shared_by(rows: int, cores: int) -> int:
    """Return the most devices, at most one per core, that share ``rows`` equally.

    >>> shared_by(64, 2), shared_by(64, 3), shared_by(63, 2)
    (2, 2, 1)
    """
    return max((n for n in range(1, cores + 1) if rows % n == 0), default=1)


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    try:
        cores = {
            tuple(
                Path(f"/sys/devices/system/cpu/cpu{number}/topology/{name}").read_text()
                for name in ("physical_package_id", "core_id")
            )
            for number in allowed
        }
    except OSError:
        return len(allowed)
    return min(len(cores), _quota())


def _quota() -> int:
    """Processors that the control group of a container allows, rounded up; a large number where it allows all."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return 1 << 16


def _is_set() -> bool:
    """Whether the environment sets the number of host devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    return "xla_force_host_platform_device_count" in flags or bool(os.environ.get("JAX_NUM_CPU_DEVICES"))


def _show_devices(count: int) -> bool:
    """Make the CPU show ``count`` devices; return whether they are those that JAX computes on."""
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has its devices already
        return False
    return jax.default_backend() == "cpu" and jax.device_count() == count
