"""Processes of the campaign: forks that have imported jaxrec, one or several to a run, waited for and killed together."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

#: Seconds after which a process that was not killed counts as stuck.
PATIENCE = 180.0


class Group:
    """Processes that work on one thing: it ended when all of them have.

    Args:
      pids: process ids of children.
    """

    def __init__(self, pids: Sequence[int]):
        self.pids = tuple(pids)
        self._pending = list(pids)
        self._statuses: list[int] = []

    def ended(self, seconds: float) -> int | None:
        """First exit status that is not 0 (negative: signal) of children that all ended in time, else 0; None: some run."""
        end = time.monotonic() + seconds
        while True:
            for pid in list(self._pending):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self._pending.remove(pid)
                    self._statuses.append(os.waitstatus_to_exitcode(status))
            if not self._pending:
                return next((status for status in self._statuses if status), 0)
            if time.monotonic() > end:
                return None
            time.sleep(0.004)

    def kill(self, rng: random.Random | None = None) -> None:
        """Send SIGKILL and wait; with ``rng`` to one after the other in random order, up to .2 seconds apart."""
        if rng is not None:
            rng.shuffle(self._pending)
        for number, pid in enumerate(self._pending):
            if rng is not None and number:
                time.sleep(rng.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
        for pid in self._pending:
            os.waitpid(pid, 0)
        self._pending = []


@functools.cache
def _warm() -> None:
    """Do once what every process would do again: read the fonts, build the options. Then spare forks the old objects."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from jaxrec.cli.main import main

    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main(["train", "--no-such-option"])
    figure = Figure()
    FigureCanvasAgg(figure)
    figure.subplots().set_title("a")
    figure.savefig(io.BytesIO(), format="png")
    gc.collect()
    gc.freeze()


def ready() -> None:
    """Prepare this process for forks.

    Raises:
      RuntimeError: JAX's backend or another thread of Python runs here, so that a fork could wait for what it lacks.
    """
    from jax._src import xla_bridge

    _warm()
    if xla_bridge.backends_are_initialized() or threading.active_count() > 1:
        raise RuntimeError("a process whose JAX backend or threads have started must not fork")


def forked(work: Callable[[int], int], output: Path, devices: int = 1, processes: int = 1) -> Group:
    """Run ``work(number)`` in forks.

    Args:
      work: returns the exit status.
      output: file for what they print.
      devices: forced host devices of each.
      processes: how many.
    """
    ready()
    sys.stdout.flush()
    sys.stderr.flush()
    pids = []
    for number in range(processes):
        pid = os.fork()
        if not pid:
            _work(work, number, output, devices)
        pids.append(pid)
    return Group(pids)


def _work(work: Callable[[int], int], number: int, output: Path, devices: int) -> None:
    status = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        status = work(number)
        # As at the end of a Python process, which `os._exit` cuts short: processes of one run wait for each other.
        import jax

        jax.distributed.shutdown()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def resumed(run: Path, fresh: list[str]) -> list[str]:
    """Arguments by which a user continues a run; ``fresh``, those of its start, where it has no configuration yet."""
    if not (run / "config.json").exists():
        return fresh
    return ["train", "--workdir", str(run), "--resume", "--quiet", "--json"]


def joining(processes: int) -> Callable[[int], list[str]]:
    """Return the function that gives the options by which process ``number`` of a run finds the others."""
    if processes == 1:
        return lambda number: []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--distributed.mode", "manual", "--distributed.coordinator", f"127.0.0.1:{port}"]
    common += ["--distributed.processes", str(processes)]
    return lambda number: [*common, "--distributed.process", str(number)]
