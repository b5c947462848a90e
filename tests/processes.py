"""Two processes that find each other on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pair_of(program, flags, seconds):
    """[(exit status, all output)] of two processes that run ``program`` with a common port and their own number.

    Args:
      program: text in Python; its arguments are the port and 0 or 1.
      flags: of XLA.
      seconds: after which both are killed.
    """
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, port, str(number)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
