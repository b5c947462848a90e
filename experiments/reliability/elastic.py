"""Runs that change their devices and processes at every resumption, compared with one device, to rounding."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.reliability.base import SMALL, walks
from experiments.reliability.kills import arrays_of
from experiments.reliability.processes import PATIENCE, forked, joining
from experiments.reliability.trials import Trial, TrialLog, one_by_one
from jaxrec.cli.main import main
from jaxrec.training.logging import read_metrics

EPOCHS = 6
#: Greatest difference of an array or a loss that is rounding.
TOLERANCE = 2e-5
# A checkpoint at the end of every process; those in between are the subject of the kills.
_OPTIONS = [*SMALL, "--training.patience", "0", "--training.select", "last"]
_OPTIONS += ["--training.checkpoint-seconds", "3600"]


class Layout(NamedTuple):
    """Devices along each axis of the mesh, all processes together, and the processes."""

    data: int
    item: int
    processes: int = 1

    def __str__(self) -> str:
        """Name, as in "4 x 2"."""
        return f"{self.data} x {self.item}" + (" in two processes" if self.processes > 1 else "")


_TWO = Layout(2, 2, 2)
#: Sequences of every campaign; further ones are drawn.
SEQUENCES = (
    (Layout(8, 1), Layout(4, 1), Layout(2, 1), Layout(1, 1)),
    (Layout(1, 1), Layout(2, 1), Layout(4, 1), Layout(8, 1)),
    (_TWO, Layout(1, 1), _TWO),
    (Layout(1, 1), _TWO, Layout(1, 1)),
    (Layout(2, 4), Layout(2, 2), Layout(1, 2), Layout(1, 1)),
    (Layout(1, 1), Layout(1, 2), Layout(2, 2), Layout(2, 4)),
)
LAYOUTS = tuple(dict.fromkeys(layout for sequence in SEQUENCES for layout in sequence))


def sequence_of(seed: int, number: int) -> tuple[tuple[Layout, ...], tuple[int, ...]]:
    """Layouts of a trial, and the epochs at which each ends."""
    rng = random.Random(f"elastic/{seed}/{number}")
    drawn = tuple(rng.choice(LAYOUTS) for _ in range(rng.randint(3, 5)))
    layouts = SEQUENCES[number] if number < len(SEQUENCES) else drawn
    return layouts, (*sorted(rng.sample(range(1, EPOCHS), len(layouts) - 1)), EPOCHS)


def stage(run: Path, data: Path, layout: Layout, epochs: int) -> str:
    """Train or continue a run up to an epoch; return the fault, empty = none."""
    words = ["train", "--workdir", str(run), "--quiet", "--json", "--training.epochs", str(epochs)]
    words += ["--mesh.data", str(layout.data), "--mesh.item", str(layout.item)]
    words += ["--resume"] if (run / "config.json").exists() else ["--data", str(data), *_OPTIONS]
    options = joining(layout.processes)
    output = run.with_suffix(".out")
    devices = layout.data * layout.item // layout.processes
    group = forked(lambda number: main([*words, *options(number)]), output, devices, layout.processes)
    status = group.ended(PATIENCE)
    if status is None:
        group.kill()
        return "no end"
    return "" if status == 0 else f"exit status {status}: {output.read_text(errors='replace')[-300:]}"


class Content(NamedTuple):
    """Values to compare: arrays of the last checkpoint, losses of all chunks, and the ranks of the test targets."""

    arrays: dict[str, np.ndarray]
    losses: list[float]
    ranks: np.ndarray


def content_of(run: Path) -> Content:
    """Read a finished run in a fork, since reading starts JAX's backend."""
    target = run.with_suffix(".npz")

    def work(_: int) -> int:
        np.savez(target, **_without_padding(arrays_of(run)))
        return 0

    if forked(work, run.with_suffix(".out")).ended(PATIENCE) != 0:
        raise RuntimeError(f"the run cannot be read: {run.with_suffix('.out').read_text()[-300:]}")
    with np.load(target) as file:
        arrays = {name: file[name] for name in file.files}
    losses = [line["loss"][0] for line in read_metrics(run / "log.jsonl") if "loss" in line]
    ranks = arrays["test_seed0/ranks"]
    trained = {name: value for name, value in arrays.items() if name.startswith(("state/", "best/", "step"))}
    return Content(trained, losses, ranks)


def _without_padding(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays without the rows of zeros that a mesh adds, and without what softmax leaves undetermined."""
    items = len(walks().item_ids) + 1
    whole = {}
    for name, value in arrays.items():
        if name.endswith("items/table"):
            value = value[:, :items]
        if name.endswith("projections/bias"):
            # A bias of all keys moves no softmax: its gradient is rounding alone, which Adam scales up.
            width = value.shape[1] // 3
            value = np.delete(value, np.s_[width : 2 * width], axis=1)
        whole[name] = value
    return whole


def difference(one: Content, other: Content) -> tuple[float, str]:
    """Greatest difference of two runs and where it is; infinite where they cannot be compared."""
    if one.arrays.keys() != other.arrays.keys() or len(one.losses) != len(other.losses):
        return float("inf"), "other arrays or chunks"
    pairs: list[tuple[str, Any, Any]] = [(name, one.arrays[name], other.arrays[name]) for name in one.arrays]
    pairs.append(("losses", one.losses, other.losses))
    worst, place = 0.0, ""
    for name, a, b in pairs:
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return float("inf"), f"the shape of {name}"
        gap = float(np.max(np.abs(x - y), initial=0.0))
        if not np.isfinite(gap):
            return float("inf"), name
        if gap > worst:
            worst, place = gap, name
    return worst, place


def trial(seed: int, number: int, folder: Path, data: Path, whole: Content) -> Trial:
    """Train a run through its layouts, and compare it with the run on one device."""
    layouts, ends = sequence_of(seed, number)
    kind = "two processes and one" if any(layout.processes > 1 for layout in layouts) else "one process"
    described = " -> ".join(f"{layout} to epoch {end}" for layout, end in zip(layouts, ends, strict=True))
    run = folder / "run"
    for layout, end in zip(layouts, ends, strict=True):
        fault = stage(run, data, layout, end)
        if fault:
            return Trial(
                number, kind, "hang" if fault == "no end" else "wrong", f"{described}: {layout}: {fault}"
            )
    here = content_of(run)
    gap, place = difference(whole, here)
    moved = float(np.mean(whole.ranks != here.ranks)) if whole.ranks.shape == here.ranks.shape else 1.0
    detail = f"{described}: greatest difference {gap:.2g} ({place}), {moved:.1%} of ranks differ"
    return Trial(number, kind, "resumed" if gap <= TOLERANCE and moved <= 0.05 else "wrong", detail)


def elastic(
    seed: int, count: int, seconds: float, work: Path, log: TrialLog, only: int | None = None
) -> None:
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
    data, reference = work / "data", work / "whole" / "run"
    if not data.exists():
        walks().save(data)
    shutil.rmtree(work / "whole", ignore_errors=True)
    (work / "whole").mkdir()
    fault = stage(reference, data, Layout(1, 1), EPOCHS)
    if fault:
        raise RuntimeError(f"the run on one device failed: {fault}")
    whole = content_of(reference)
    if not np.isfinite(whole.losses).all() or len(whole.arrays) < 20:
        raise RuntimeError("the run on one device has nothing to compare with")
    one_by_one(lambda number, folder: trial(seed, number, folder, data, whole), log, missing, end, work)
