"""Full and read-only disks, and too few file descriptors: one clear line, nothing lost, and a resume to the same bits.

A file that may not grow further (RLIMIT_FSIZE) stands for a full disk at that write, and, where this process may mount one,
a small memory disk is filled. A folder without write permission belongs to another user than the process.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from experiments.reliability.base import SMALL, walks
from experiments.reliability.kills import compared
from experiments.reliability.processes import PATIENCE, forked, resumed
from experiments.reliability.trials import Trial, TrialLog, one_by_one
from jaxrec.cli.main import main

#: User without rights, for read-only folders.
NOBODY = 65534
KINDS = ("largest file", "descriptors", "read-only folder", "small disk")


def _under(limit: int, value: int, arguments: list[str]) -> Callable[[int], int]:
    def work(_: int) -> int:
        # Without a handler the kernel ends the process; with one ignored the write fails, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(limit, (value, value))
        return main(arguments)

    return work


def _as_nobody(arguments: list[str]) -> Callable[[int], int]:
    def work(_: int) -> int:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return main(arguments)

    return work


def _small_disk(folder: Path, kibibytes: int) -> bool:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    try:
        return subprocess.run(words, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


def _ended_in_words(status: int | None, output: Path) -> str:
    """Fault in the end of a failed command; empty = none."""
    text = output.read_text(errors="replace") if output.exists() else ""
    if status is None:
        return "no end"
    if status not in (0, 1):
        return f"exit status {status}: {text[-200:]}"
    if "Traceback" in text:
        return f"traceback: {text[-300:]}"
    if status == 1 and not any(line.startswith("jaxrec: ") for line in text.splitlines()):
        return f"no message: {text[-200:]}"
    return ""


def trial(seed: int, number: int, folder: Path, whole: dict[str, str]) -> Trial:
    """Run a command under a limit, judge its message, then finish the run without the limit."""
    rng = random.Random(f"limits/{seed}/{number}")
    kind = KINDS[number % len(KINDS)]
    run, data = folder / "disk" / "run", folder.parent / "data"
    fresh = ["train", "--data", str(data), "--workdir", str(run), *SMALL]
    mounted = False
    if kind == "small disk":
        mounted = _small_disk(folder / "disk", rng.randrange(4, 600))
        if not mounted:
            return Trial(number, "small disk, not mounted", "refused", "this process may not mount", 0)
    else:
        (folder / "disk").mkdir()
    try:
        if kind == "largest file":
            most = rng.choice([0, 10, 200, 2000, 8000, 20_000, 60_000, 200_000])
            work = _under(resource.RLIMIT_FSIZE, most, fresh)
        elif kind == "descriptors":
            work = _under(resource.RLIMIT_NOFILE, rng.randrange(8, 60), fresh)
        elif kind == "read-only folder":
            (folder / "disk").chmod(0o555)
            work = _as_nobody(fresh)
        else:
            work = lambda _: main(fresh)  # noqa: E731
        output = folder / "limited.out"
        group = forked(work, output)
        status = group.ended(PATIENCE)
        if status is None:
            group.kill()
            return Trial(number, kind, "hang", output.read_text(errors="replace")[-300:])
        # Where what it prints fills its file, too, only the status can tell.
        speechless = kind == "largest file" and output.stat().st_size >= most
        problem = "" if speechless and status == 1 else _ended_in_words(status, output)
        if problem:
            return Trial(number, kind, "raw error", problem)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder / "disk")], check=True, timeout=20)
        (folder / "disk").chmod(0o755)
        return _finished(number, kind, status, run, fresh, whole, folder)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder / "disk")], capture_output=True, timeout=20)


def _finished(
    number: int, kind: str, status: int, run: Path, fresh: list[str], whole: dict[str, str], folder: Path
) -> Trial:
    """Continue the run without a limit, and compare it with one that never met any."""
    arguments = resumed(run, fresh)
    output = folder / "continued.out"
    again = forked(lambda _: main(arguments), output)
    end = again.ended(PATIENCE)
    if end is None:
        again.kill()
        return Trial(number, kind, "hang", "the resume did not end")
    if end != 0:
        return Trial(number, kind, "wrong", f"the resume ended with {end}: {output.read_text()[-300:]}")
    found = compared(run)
    if found != whole:
        return Trial(number, kind, "wrong", "the resumed run differs")
    first = (folder / "limited.out").read_text(errors="replace").strip().splitlines()
    return Trial(
        number, kind, "resumed" if status else "accepted", first[-1][:200] if status and first else ""
    )


def limits(seed: int, count: int, seconds: float, work: Path, log: TrialLog, only: int | None = None) -> None:
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
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)
    if not (work / "data").exists():
        walks().save(work / "data")
    shutil.rmtree(work / "whole", ignore_errors=True)
    (work / "whole").mkdir()
    arguments = ["train", "--data", str(work / "data"), "--workdir", str(work / "whole/run"), *SMALL]
    status = forked(lambda _: main(arguments), work / "whole.out").ended(600)
    whole = compared(work / "whole/run") if status == 0 else None
    if whole is None:
        raise RuntimeError(f"the run without limits failed: {(work / 'whole.out').read_text()[-400:]}")
    one_by_one(lambda number, folder: trial(seed, number, folder, whole), log, missing, end, work)
