"""Trials: calls under guard in this process, their outcomes, and the log that lets a campaign continue."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.cli.main import main
from jaxrec.errors import JaxrecError

#: Outcomes that are right.
HELD = ("accepted", "same", "refused", "fell back", "resumed")
#: Outcomes that are failures: a traceback, no end, another answer, a file changed, code executed, the process died.
BROKEN = ("raw error", "hang", "wrong", "overwritten", "executed", "crash")
#: Name of the file that a planted pickle creates when it is executed.
CANARY = "canary"
#: Folders of an absolute path, at the start of a word; what trials ask for themselves stays.
_ABSOLUTE = re.compile(r"(?<![\w./])/(?!dev/null|dev/zero)(?:[^\s/'\":;,]+/)+")
#: Seconds without a finished trial after which a worker is stuck.
STUCK_SECONDS = 90.0


class Trial(NamedTuple):
    """One trial.

    Attributes:
      number: of the trial; with the seed it determines everything that the trial does.
      kind: what was done.
      outcome: one of `HELD` or `BROKEN`.
      detail: message, for a reader.
      count: how many events the trial stands for (kills of one run).
      seconds: of processor time, with child processes, since the trial before.
      commit: of the code that was tried.
    """

    number: int
    kind: str
    outcome: str
    detail: str = ""
    count: int = 1
    seconds: float = 0.0
    commit: str = ""


class Answer(NamedTuple):
    """Of a guarded call.

    Attributes:
      status: exit status, or None after an exception.
      value: what a function returned, or the JSON object of a command.
      problem: "", "raw error" or "hang".
      message: standard error, or the exception in one line.
    """

    status: int | None
    value: Any
    problem: str
    message: str


class TooLong(BaseException):
    """The time of a call is over; no handler of `Exception` catches it."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `TooLong` after so many seconds."""

    def ring(*_: object) -> None:
        raise TooLong

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def call(function: Callable[[], Any], seconds: float = 10.0) -> Answer:
    """Call ``function``: a `JaxrecError` is a refusal, any other exception a raw error, a late end a hang."""
    try:
        with alarm(seconds):
            return Answer(0, function(), "", "")
    except JaxrecError as error:
        message = str(error)
        # A list of what differs is laid out in lines; the message itself is one.
        return Answer(1, None, "" if message.strip() else "raw error", message)
    except TooLong:
        return Answer(None, None, "hang", f"no end in {seconds:g} s")
    except BaseException as error:
        return Answer(None, None, "raw error", one_line(error))


def command(*arguments: object, seconds: float = 10.0) -> Answer:
    """``jaxrec ARGUMENTS`` in this process; what native code writes to descriptor 2 is read, too."""
    out, err = io.StringIO(), io.StringIO()
    status: int | None = None
    problem = raw = ""
    with native_errors() as native, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with alarm(seconds):
                status = main([str(argument) for argument in arguments])
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 1
        except TooLong:
            problem, raw = "hang", f"no end in {seconds:g} s"
        except BaseException as error:
            problem, raw = "raw error", one_line(error)
    text = err.getvalue()
    if not problem and ("Traceback" in text or "panicked" in text + native.getvalue()):
        problem, raw = "raw error", (text + native.getvalue())[-300:]
    if problem:
        return Answer(None, None, problem, raw)
    value: Any = None
    if status == 0 and "--json" in arguments:
        try:
            value = json.loads(out.getvalue().splitlines()[-1], parse_constant=_refuse)
        except (ValueError, IndexError) as error:
            return Answer(None, None, "raw error", f"exit status 0 without one JSON object: {error}")
    if status == 1:
        lines = [line for line in text.splitlines() if line.startswith("jaxrec: ")]
        if not lines:
            return Answer(None, None, "raw error", f"exit status 1 without a message: {text[-200:]!r}")
    if status == 2 and not text.strip():
        return Answer(None, None, "raw error", "exit status 2 without a message")
    return Answer(status, value, "", text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@contextlib.contextmanager
def native_errors() -> Iterator[io.StringIO]:
    """Text written to descriptor 2 itself, filled in at the end."""
    text = io.StringIO()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text.write(file.read().decode(errors="replace"))


def one_line(error: BaseException) -> str:
    """Type and message of an exception, and the last place of jaxrec that it passed."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "/jaxrec/" in frame.filename]
    place = f" at {Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}{place}"


def stamp(folder: Path) -> tuple[tuple[str, int, int, int, int], ...]:
    """Path, inode, size, and times of change of every file below ``folder`` but locks: no write leaves it as it was."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.name != ".lock" and path.is_file() and not path.is_symlink():
            status = path.stat()
            found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` but locks, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != ".lock":
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_folders(text: str, work: Path) -> str:
    """``text`` with names in place of folders, so that a record says nothing about a disk.

    Args:
      text: a message.
      work: folder of the trials, named WORK; beside it Python, home and the temporary folder get names.
    """
    places = {"WORK": work, "REPOSITORY": Path.cwd(), "PYTHON": Path(sys.prefix), "HOME": Path.home()}
    places["TEMPORARY"] = Path(tempfile.gettempdir())
    for name, folder in places.items():
        for path in {folder.absolute(), folder.resolve()}:
            if path != path.parent:
                # Not where it is but the beginning of a longer name.
                text = re.sub(rf"{re.escape(str(path))}(?![\w-])", name, text)
    return _ABSOLUTE.sub("FOLDER/", text)


class TrialLog:
    """Finished trials of one part, one JSON line each; a campaign started again continues behind the last.

    Args:
      path: of the file.
      commit: of the code, noted with every trial.
    """

    def __init__(self, path: Path, commit: str = ""):
        self.path = path
        self.commit = commit
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[Trial]:
        """Whole lines; the last may be cut off by a kill."""
        if not self.path.exists():
            return []
        trials = {}
        for line in self.path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, TypeError):
                trial = Trial(**json.loads(line))
                trials[trial.number] = trial
        return sorted(trials.values())

    def missing(self, count: int, only: int | None = None) -> list[int]:
        """Numbers below ``count`` that have no trial yet; with ``only`` that number, whether it has one or not."""
        already = {trial.number for trial in self.read()}
        return [number for number in range(count) if number not in already] if only is None else [only]

    def add(self, trial: Trial) -> None:
        """Append a trial; its detail without the folders of this machine."""
        trial = trial._replace(
            detail=without_folders(trial.detail, self.path.parent),
            seconds=round(processor_seconds(), 3),
            commit=self.commit,
        )
        self.append(trial)

    def append(self, trial: Trial) -> None:
        """Append a trial as it is."""
        with self.path.open("ab") as file:
            file.write(b"\n" + json.dumps(trial._asdict()).encode())


def one_by_one(
    target: Callable[[int, Path], Trial], log: TrialLog, missing: list[int], end: float, work: Path
) -> None:
    """Do trials in this process, each in a fresh folder; that of one that failed stays for a look.

    Args:
      target: does trial ``number`` in a folder.
      log: takes the results.
      missing: numbers of the trials.
      end: `time.monotonic` after which none starts.
      work: folder for theirs.
    """
    for number in missing:
        if time.monotonic() > end:
            return
        folder = work / f"{log.path.stem}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found = target(number, folder)
        log.add(found)
        if found.outcome in HELD:
            shutil.rmtree(folder, ignore_errors=True)


def processor_seconds() -> float:
    """Processor time of this process and its ended children since the last call; at first since its start."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    before = _METER.get(os.getpid(), 0.0)
    _METER[os.getpid()] = total
    return total - before


#: Process id -> processor time at the last trial.
_METER: dict[int, float] = {}


def run_trials(
    target: Callable[[int, Path], Trial],
    log: TrialLog,
    count: int,
    seconds: float,
    work: Path,
    share: int = 1500,
    only: int | None = None,
) -> None:
    """Do the trials that the log lacks, in worker processes that are replaced after ``share`` trials.

    Args:
      target: of a module, does trial ``number`` in a fresh folder.
      log: takes the results.
      count: of trials in all.
      seconds: after which no new trial starts.
      work: folder for files.
      share: trials per worker.
      only: number of a single trial to do.
    """
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    while time.monotonic() < end:
        already = {trial.number for trial in log.read()}
        wanted = range(count) if only is None else [only]
        missing = [number for number in wanted if number not in already][:share]
        if not missing:
            return
        left = end - time.monotonic()
        worker = context.Process(target=_work, args=(target, log, missing, left, work), daemon=True)
        worker.start()
        stuck = _watch(worker, log)
        if stuck or worker.exitcode:
            finished = {trial.number for trial in log.read()}
            culprit = next((number for number in missing if number not in finished), None)
            if culprit is not None:
                detail = f"no end in {STUCK_SECONDS:g} s" if stuck else f"exit status {worker.exitcode}"
                log.add(Trial(culprit, "unknown", "hang" if stuck else "crash", detail))


def _watch(worker: Any, log: TrialLog) -> bool:
    """Wait for a worker; True where it was killed because the log stood still."""
    size, since = -1, time.monotonic()
    while worker.is_alive():
        worker.join(0.5)
        now = log.path.stat().st_size if log.path.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        if time.monotonic() - since > STUCK_SECONDS:
            worker.kill()
            worker.join()
            return True
    return False


def _work(
    target: Callable[[int, Path], Trial], log: TrialLog, numbers: list[int], seconds: float, work: Path
) -> None:
    end = time.monotonic() + seconds
    sys.stdin.close()
    for number in numbers:
        if time.monotonic() > end:
            return
        folder = work / f"trial-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log.add(target(number, folder))
        shutil.rmtree(folder, ignore_errors=True)
        if number == numbers[0]:
            gc.collect()
            gc.freeze()  # What the first trial has loaded stays: nothing to look through again.
