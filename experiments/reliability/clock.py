"""Runs whose clock is set back: the same bits, and no time in the results that cannot be.

`time.time` and `time.time_ns` are replaced in the process of the run, so all Python code sees a clock that goes back at a
random moment, jaxrec's and its libraries'. Files keep the times of the machine: seen from the process they come from the
future. Not covered: native code and `datetime.now`, which ask the machine. Half of the runs are killed by SIGKILL, too, and
resumed under the earlier clock.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.reliability.base import walks
from experiments.reliability.kills import CONFIGURATIONS, Whole, compared, uninterrupted
from experiments.reliability.processes import PATIENCE, forked, resumed
from experiments.reliability.trials import Trial, TrialLog, one_by_one
from jaxrec.cli.main import main

#: Name of a jump -> seconds that the clock goes back.
JUMPS = {"an hour": 3600.0, "a day": 86_400.0, "a year": 3.2e7, "ten years": 3.2e8}


def set_back(after: float, jump: float) -> None:
    """Replace the clock of this process: ``after`` seconds from now it goes back by ``jump`` seconds."""
    clock: Any = time
    seconds, nanoseconds, start = time.time, time.time_ns, time.monotonic()

    def late() -> float:
        return jump if time.monotonic() - start >= after else 0.0

    clock.time = lambda: seconds() - late()
    clock.time_ns = lambda: nanoseconds() - int(late() * 1e9)


def _with_clock(after: float, jump: float, arguments: list[str]) -> Callable[[int], int]:
    def work(_: int) -> int:
        set_back(after, jump)
        return main(arguments)

    return work


def impossible_times(results: dict[str, Any]) -> list[str]:
    """Names of times and rates in ``results.json`` that are negative or not finite."""
    return [name for name, value in results["timing"].items() if not math.isfinite(value) or value < 0]


def trial(seed: int, number: int, folder: Path, data: Path, whole: Whole) -> Trial:
    """Train a run whose clock goes back, in every second trial with a kill, and compare it."""
    rng = random.Random(f"clock/{seed}/{number}")
    name = list(JUMPS)[number % len(JUMPS)]
    jump, killed = JUMPS[name], number // len(JUMPS) % 2 == 1
    kind = f"{name}{', killed' if killed else ''}"
    run, output = folder / "run", folder / "run.out"
    fresh = ["train", "--workdir", str(run), "--data", str(data), *CONFIGURATIONS["packed"].options]
    group = forked(_with_clock(rng.uniform(0, whole.times.results), jump, fresh), output)
    status = group.ended(rng.uniform(0, whole.times.end) if killed else PATIENCE)
    if status is None and killed:
        group.kill()
        # Still earlier than the first process: the clock was set back between them, too.
        group = forked(_with_clock(0.0, 2 * jump, resumed(run, fresh)), output)
        status = group.ended(PATIENCE)
    if status is None:
        group.kill()
        return Trial(number, kind, "hang", output.read_text(errors="replace")[-300:])
    if status != 0:
        return Trial(number, kind, "wrong", f"status {status}: {output.read_text(errors='replace')[-300:]}")
    if compared(run) != whole.contents:
        return Trial(number, kind, "wrong", "the run differs")
    bad = impossible_times(json.loads((run / "results.json").read_text()))
    return Trial(number, kind, "wrong" if bad else "same", f"impossible times: {bad}" if bad else "")


def clock(seed: int, count: int, seconds: float, work: Path, log: TrialLog, only: int | None = None) -> None:
    """Do ``count`` trials, or as many as the time allows; those in ``log`` are not repeated.

    Args:
      seed: with its number it determines a trial.
      count: of trials.
      seconds: after which none starts.
      work: folder of the runs.
      log: of the trials.
      only: number of a single trial to do, again if need be.
    """
    end = time.monotonic() + seconds
    missing = log.missing(count, only)
    if not missing or seconds <= 0:
        return
    (work / "packed").mkdir(parents=True, exist_ok=True)
    if not (work / "data").exists():
        walks().save(work / "data")
    whole = uninterrupted("packed", work / "packed", work / "data")
    one_by_one(
        lambda number, folder: trial(seed, number, folder, work / "data", whole), log, missing, end, work
    )
