"""Several processes: how they find each other, and what they must agree on. All else is JAX's own.

Every process runs the same program on the same data and configuration; arrays and collectives span them all.
Only the first one writes logs and results. What depends on a clock, a signal or a disk is decided by one
process and sent to the others, since processes that disagree would deadlock.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec.errors import ConfigError, DistributedError

#: Seconds for which a process that ends waits for the others, then to take them down. One that is finished has met them
#: before (`meet`); one that failed alone would leave them in a collective for as long.
SHUTDOWN_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Connection of this process to the others; the numbers of a run do not depend on it.

    Attributes:
      mode: "off" (one process), "auto" (JAX recognises Slurm, Open MPI, Kubernetes and TPU pods), or "manual" (the
        three below).
      coordinator: HOST:PORT of process 0, reachable from all.
      processes: how many there are.
      process: number of this one, from 0.
      timeout_seconds: how long to wait for the others at the start.
    """

    mode: Literal["off", "auto", "manual"] = "off"
    coordinator: str = ""
    processes: int = 0
    process: int = -1
    timeout_seconds: int = 300

    def __post_init__(self) -> None:
        if self.mode not in ("off", "auto", "manual"):
            raise ConfigError(f"--distributed.mode must be one of off, auto, manual; got {self.mode!r}")
        is_explicit = bool(self.coordinator) or self.processes != 0 or self.process != -1
        if is_explicit and self.mode != "manual":
            raise ConfigError(
                "--distributed.coordinator, --distributed.processes and --distributed.process belong to --distributed.mode "
                f"manual, got {self.mode}"
            )
        if self.mode == "manual" and not (
            ":" in self.coordinator and self.processes >= 1 and 0 <= self.process < self.processes
        ):
            raise ConfigError(
                "--distributed.mode manual needs --distributed.coordinator HOST:PORT, --distributed.processes (at least 1) "
                f"and --distributed.process (from 0 to processes - 1); got {self.coordinator!r}, {self.processes} and "
                f"{self.process}"
            )
        if self.timeout_seconds < 1:
            raise ConfigError(f"--distributed.timeout-seconds must be at least 1, got {self.timeout_seconds}")


def join(config: DistributedConfig) -> None:
    """Wait for all processes. Call it once, before anything else touches JAX.

    Raises:
      DistributedError: not all of them came in time, or the launcher was not recognised.
    """
    if config.mode == "off":
        return
    arguments: dict[str, Any] = {}
    if config.mode == "manual":
        arguments = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process,
        }
    who = f"process {config.process} of {config.processes}" if arguments else "this process"
    at = f" at {config.coordinator}" if arguments else ""
    # At its own time-out JAX ends the process without a Python error, so the waiting is done here.
    patience = config.timeout_seconds + 3600
    error: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **arguments, initialization_timeout=patience, shutdown_timeout_seconds=SHUTDOWN_SECONDS
            )
        except Exception as problem:
            error.append(problem)

    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(config.timeout_seconds)
    if joining.is_alive():
        raise DistributedError(
            f"{who} waited {config.timeout_seconds} s{at}, and not all processes joined: start every one within that "
            "time with the same coordinator and number of processes, see that the port of process 0 can be reached "
            "from all hosts, or raise --distributed.timeout-seconds"
        )
    if error:
        reason = (str(error[0]).strip().splitlines() or [type(error[0]).__name__])[0][:300]
        raise DistributedError(
            f"{who} could not join the others{at}: {reason}. With --distributed.mode auto the launcher must be one that "
            "JAX recognises; otherwise use manual with --distributed.coordinator, --distributed.processes and "
            "--distributed.process"
        ) from error[0]


def is_first() -> bool:
    """Whether this process writes the logs and results of the run."""
    return jax.process_index() == 0


def meet() -> None:
    """Wait for all processes, however long one of them takes; at the end of a program JAX waits `SHUTDOWN_SECONDS` only."""
    decided(True)


def decided(value: bool) -> bool:
    """The value of the first process, in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def highest(value: int) -> int:
    """The greatest of all processes' values, in all of them."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value, np.int32))))
