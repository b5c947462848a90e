"""A long run: whether its memory stays flat and its speed steady.

The resident memory (without pages of files) and the processor time of a training process are read every few seconds, its
steps from its log. Steps per second of processor time do not depend on what else the machine does.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from experiments.reliability.base import walks
from experiments.reliability.processes import PATIENCE, Group
from experiments.reliability.trials import Trial, TrialLog
from jaxrec.training.logging import read_metrics

#: Share of the run before memory and speed are compared: compiling, first saves, caches that fill.
WARM_UP = 0.2
#: Growth of the memory per hour, and loss of speed per hour, that count as none: shares of the mean.
FLAT = 0.02
STEADY = 0.05
#: Seconds below which there is nothing to judge.
LEAST_SECONDS = 180.0
OPTIONS = shlex.split(
    "--preset smoke --quiet --json --batches.batch-size 32 --batches.max-length 16 --encoder.width 16 "
    "--evaluation.ks 5 10 --training.epochs 10000000 --training.evaluate-every 100 --training.chunk-steps 500"
)


class Sample(NamedTuple):
    """One reading.

    Attributes:
      seconds: since the start of the process.
      mebibytes: resident memory, but for pages of files, which the system takes and gives back as it likes.
      processor: seconds of processor time.
      steps: of training, as the log says.
    """

    seconds: float
    mebibytes: float
    processor: float
    steps: int


class Slope(NamedTuple):
    """Change per hour as a share of the mean, with the ends of its 95 % interval."""

    share: float
    low: float
    high: float


def slope(hours: Sequence[float], values: Sequence[float]) -> Slope:
    """Least-squares change of ``values`` per hour over their mean; the interval takes the residuals as independent."""
    x, y = np.asarray(hours, np.float64), np.asarray(values, np.float64)
    if len(x) < 4:
        raise ValueError(f"a slope needs 4 readings or more, got {len(x)}")
    centred = x - x.mean()
    spread = float(centred @ centred)
    change = float(centred @ y) / spread
    residuals = y - y.mean() - change * centred
    error = math.sqrt(float(residuals @ residuals) / (len(x) - 2) / spread)
    width = float(t.ppf(0.975, len(x) - 2)) * error
    return Slope(*(float(v / y.mean()) for v in (change, change - width, change + width)))


def _sample(pid: int, run: Path, started: float) -> Sample | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    log = run / "log.jsonl"
    steps = 0
    if log.exists():
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b'{"step"')]
        steps = json.loads(lines[-1])["step"] if lines else 0
    ticks = int(fields[11]) + int(fields[12])
    return Sample(
        round(time.monotonic() - started, 2),
        round(int(status.split("RssAnon:")[1].split()[0]) / 2**10, 2),
        ticks / os.sysconf("SC_CLK_TCK"),
        steps,
    )


def figures(samples: list[Sample], readings: int = 12) -> dict[str, Any]:
    """Memory and speed over equal stretches of the run after its warm-up, their slopes, and a verdict in words."""
    last = samples[-1].seconds
    readings = min(readings, int(len(samples) * (1 - WARM_UP)) // 3)
    edges = np.linspace(WARM_UP * last, last, readings + 1)
    times = np.array([sample.seconds for sample in samples])
    parts = [
        samples[a:b]
        for a, b in zip(np.searchsorted(times, edges[:-1]), np.searchsorted(times, edges[1:]), strict=True)
    ]
    parts = [part for part in parts if len(part) > 1 and part[-1].steps > part[0].steps]
    hours = [float(np.mean([sample.seconds for sample in part])) / 3600 for part in parts]
    memory = [float(np.mean([sample.mebibytes for sample in part])) for part in parts]
    speed = [(part[-1].steps - part[0].steps) / (part[-1].processor - part[0].processor) for part in parts]
    growth, pace = slope(hours, memory), slope(hours, speed)
    return {
        "minutes": round(last / 60, 1),
        "steps": samples[-1].steps,
        "memory_mebibytes": [round(value, 1) for value in memory],
        "steps_per_processor_second": [round(value, 1) for value in speed],
        "memory_per_hour": growth._asdict(),
        "speed_per_hour": pace._asdict(),
        "verdict": f"memory {_verdict(growth, FLAT, 'flat', 'grows')}, speed "
        f"{_verdict(Slope(-pace.share, -pace.high, -pace.low), STEADY, 'steady', 'falls')}",
    }


def _verdict(change: Slope, bound: float, none: str, some: str) -> str:
    """``none`` where the whole interval lies below ``bound``, ``some`` where it lies above 0 and its middle above."""
    if change.high < bound:
        return none
    return some if change.low > 0 and change.share > bound else "undecided"


def endurance(
    seed: int, count: int, seconds: float, work: Path, log: TrialLog, only: int | None = None
) -> None:
    """Train for ``count`` minutes, or as long as the time allows, and judge memory and speed.

    Args:
      seed: of the run.
      count: minutes of training.
      seconds: after which it is stopped.
      work: folder of the run.
      log: of the trials; one that has it is not repeated.
      only: 0, to do it again.
    """
    if not log.missing(1, only):
        return
    if min(seconds, 60.0 * count) < LEAST_SECONDS:
        raise SystemExit(f"endurance needs {LEAST_SECONDS / 60:g} minutes or more: --minutes 20")
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "run", ignore_errors=True)
    if not (work / "data").exists():
        walks(400, 200).save(work / "data")
    run, output = work / "run", work / "run.out"
    arguments = ["train", "--workdir", str(run), "--data", str(work / "data"), *OPTIONS]
    arguments += ["--training.seeds", str(seed)]
    started = time.monotonic()
    # A program of its own: a fork has the heaps of its parent, and objects that the collector leaves out.
    write = (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    group = Group(
        [
            os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "jaxrec", *arguments],
                os.environ,
                file_actions=[write, (os.POSIX_SPAWN_DUP2, 1, 2)],
            )
        ]
    )
    end = started + min(seconds, 60.0 * count)
    samples: list[Sample] = []
    status = None
    while status is None and time.monotonic() < end:
        status = group.ended(5.0)
        sample = _sample(group.pids[0], run, started)
        if sample is not None and status is None:
            samples.append(sample)
    if status is None:
        os.kill(group.pids[0], signal.SIGTERM)
        status = group.ended(PATIENCE)
    if status != 143:
        group.kill()
        log.add(Trial(0, "training", "wrong", f"status {status}: {output.read_text()[-300:]}", 0))
        return
    found = figures(samples)
    found["log_lines"] = len(read_metrics(run / "log.jsonl"))
    broken = "grows" in found["verdict"] or "falls" in found["verdict"]
    minutes = round(samples[-1].seconds / 60)
    log.add(Trial(0, "training", "wrong" if broken else "accepted", json.dumps(found), minutes))
