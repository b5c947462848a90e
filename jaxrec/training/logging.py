"""Logging of a run: JSONL metrics, progress bar and signal handling."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm

from jaxrec.files import write_atomically


class MetricsLog:
    """Log with one JSON object per line, none of which stays in memory; with ``path`` None nothing is written.

    On resume, lines of steps after the checkpoint are dropped: they will be written again, unchanged.
    """

    def __init__(self, path: Path | None, resume_step: int | None = None):
        self.path = path
        if path is None:
            return
        kept: list[dict[str, Any]] = []
        if resume_step is not None and path.exists():
            kept = [line for line in read_metrics(path) if line.get("step", 0) <= resume_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def __contains__(self, line: dict[str, Any]) -> bool:
        return self.path is not None and line in read_metrics(self.path)

    def write(self, **values: Any) -> None:
        """Append one line and flush it."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log up to the first that is damaged, as the last may be after a crash."""
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not _is_sound(line):
            break
        lines.append(line)
    return lines


def _is_sound(line: dict[str, Any]) -> bool:
    """Whether what readers of a log look at has the types that the training loop writes."""
    scores = line.get("valid", {})
    return (
        all(isinstance(line.get(name, 0), (int, float)) for name in ("step", "epoch"))
        and all(_are_numbers(line.get(name, [])) for name in ("loss", "gradient_norm"))
        and isinstance(scores, dict)
        and all(map(_are_numbers, scores.values()))
    )


def _are_numbers(values: Any) -> bool:
    """Whether it is a number for each seed, or null for one that has ended."""
    return isinstance(values, list) and all(
        value is None or isinstance(value, (int, float)) for value in values
    )


class ProgressBar:
    """Progress bar over steps on standard error: ETA, real interactions per second, the latest metric."""

    def __init__(self, total_steps: int, first_step: int, enabled: bool):
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not enabled,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
            delay=1e-9,
        )
        self._values: dict[str, str] = {}

    def advance(self, steps: int, **values: str) -> None:
        """Move by ``steps`` and show the latest values."""
        self._values.update(values)
        self._bar.set_postfix(self._values, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        """Stop updating the bar."""
        self._bar.close()


class StopRequest:
    """Signal handler: the first SIGINT or SIGTERM sets ``signal_number``, a second one acts at once.

    Outside the main thread, where Python cannot set handlers, it never triggers.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()
        print(
            "\nStopping after the current chunk of steps and saving. Press Ctrl-C again to quit immediately.",
            file=sys.stderr,
        )

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
