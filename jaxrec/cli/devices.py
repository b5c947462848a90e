"""Devices of a mesh on a CPU, which has one for JAX unless it is asked for more.

A program of one device waits inside each operation until the last core has its part, and some operations run on one core
alone. Devices that share the rows of a batch work side by side and meet once a step, to add their gradients; each holds the
whole state and updates it.
"""

from __future__ import annotations

import dataclasses
import os

from jaxrec.config import RunConfig
from jaxrec.cores import physical_cores
from jaxrec.sharding import MeshConfig


def with_devices(config: RunConfig, resume: bool = False) -> RunConfig:
    """Make the CPU show the devices that a run's mesh needs; see `shown_mesh`.

    Args:
      config: of the run.
      resume: whether the run was started before.
    """
    rows = config.batches.batch_size // config.training.accumulate_steps
    return dataclasses.replace(config, mesh=shown_mesh(config.mesh, rows, resume))


def shown_mesh(mesh: MeshConfig, rows: int = 0, resume: bool = False) -> MeshConfig:
    """Make the CPU show the devices that a mesh needs; call it before anything else uses JAX.

    Nothing changes for a mesh of one device, where the environment sets the number of host devices (``XLA_FLAGS``,
    ``JAX_NUM_CPU_DEVICES``), where JAX computes on something else, or for more devices than cores, unless a run that was
    started on them goes on.

    Args:
      mesh: what is asked for.
      rows: rows of a batch, which the devices share equally; 0 = any number.
      resume: whether a run that was started on the mesh goes on.

    Returns:
      The mesh, in which a ``data`` of 0 has become the number of devices: one per core, as far as they share the
      rows equally.
    """
    if _is_set():
        return mesh
    cores = physical_cores()
    shown = mesh if mesh.data else dataclasses.replace(mesh, data=shared_by(rows, cores // mesh.item))
    count = shown.data * shown.item
    if count > 1 and (resume or count <= cores) and _show_devices(count):
        return shown
    return mesh


def shared_by(rows: int, cores: int) -> int:
    """Return the most devices, at most one per core, that share ``rows`` equally.

    >>> shared_by(64, 2), shared_by(64, 3), shared_by(63, 2)
    (2, 2, 1)
    """
    return max((n for n in range(1, cores + 1) if rows % n == 0), default=1)


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
