"""SIGKILL at random moments of a run, each run resumed until it ends, and compared with an uninterrupted one.

Every process of a run is forked from this one, which has imported jaxrec but has not started JAX's backend: a process is
then at work within a tenth of a second, so nearly all kills hit the run rather than the imports.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.reliability.base import SMALL
from experiments.reliability.processes import PATIENCE, Group, forked, joining
from experiments.reliability.trials import Trial, TrialLog
from jaxrec.cli.main import main
from jaxrec.training.checkpoint import CheckpointReader

#: Imported by this process, so that the forked ones find them imported.
for _name in ("api", "cli.train", "reporting.examples", "reporting.html", "training.loop"):
    importlib.import_module(f"jaxrec.{_name}")
_TWO_STAGES = [
    "--preset",
    "s3rec-two-stage",
    "--quiet",
    "--json",
    "--batches.max-length",
    "8",
    "--encoder.width",
    "8",
]
_TWO_STAGES += [
    "--encoder.layers",
    "1",
    "--encoder.ffn-width",
    "8",
    "--batches.batch-size",
    "8",
    "--training.epochs",
]
_TWO_STAGES += [
    "4",
    "--training.checkpoint-seconds",
    "0",
    "--training.metric",
    "NDCG@10",
    "--evaluation.ks",
    "5",
    "10",
]
_TWO_STAGES += ["--pretraining.options", "training.epochs=3", "training.evaluate-every=1"]
_TWO_STAGES += ["batches.prefixes-per-sequence=4", "batches.batch-size=16", "training.chunk-steps=4"]
_LONG = [*SMALL, "--training.epochs", "8"]


class Configuration(NamedTuple):
    """A kind of run.

    Attributes:
      options: of ``jaxrec train``.
      devices: forced host devices of each process.
      processes: of the run.
    """

    options: list[str]
    devices: int = 1
    processes: int = 1


CONFIGURATIONS = {
    "packed": Configuration(_LONG),
    "streamed": Configuration([*_LONG, "--training.feed", "streamed", "--batches.mode", "padded"]),
    "two seeds": Configuration([*_LONG, "--seeds", "2"]),
    "2 x 2 mesh": Configuration([*_LONG, "--mesh.data", "2", "--mesh.item", "2"], 4),
    "pretraining and fine-tuning": Configuration(_TWO_STAGES),
    "two processes": Configuration([*_LONG, "--mesh.data", "2", "--mesh.item", "2"], 2, 2),
}
#: Moments after which a kill falls: nothing, or the first sight of a file.
TRIGGERS = ("", "", "config.json", "log.jsonl", "checkpoints/*tmp*", "ranks", "catalogue", "results.json")


def train(run: Path, data: Path, configuration: Configuration) -> Group:
    """Start or continue a run in forks, as its user would."""
    arguments = ["train", "--workdir", str(run)]
    if (run / "config.json").exists():
        arguments += ["--resume", "--quiet", "--json"]
    else:
        arguments += ["--data", str(data), *configuration.options]
    options = joining(configuration.processes)
    return forked(
        lambda number: main([*arguments, *options(number)]),
        run.with_suffix(".out"),
        configuration.devices,
        configuration.processes,
    )


def contents(run: Path) -> dict[str, str]:
    """SHA-256 of every array of the last checkpoint of each stage, of the ranks, and of the results without the clock."""
    found = {}
    for results in sorted(run.rglob("results.json")):
        stage = results.parent
        name = str(stage.relative_to(run))
        for key, value in arrays_of(stage).items():
            found[f"{name}/{key}"] = hashlib.sha256(
                repr((value.dtype, value.shape)).encode() + value.tobytes()
            ).hexdigest()
        kept = json.loads(results.read_text())
        for key in ("timing", "workdir", "versions", "hardware", "config"):
            kept.pop(key, None)
        found[f"{name}/results"] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return found


def arrays_of(run: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint and of the ranks by name, and the step."""
    import jax
    from orbax.checkpoint import v1 as ocp

    step = CheckpointReader(run / "checkpoints").steps()[-1]
    path = (run / "checkpoints" / str(step)).absolute()
    # The devices that saved the arrays may not be here.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {
        part: {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in arrays.items()}
        for part, arrays in ocp.checkpointables_metadata(path).metadata.items()
        if part in ("state", "best")
    }
    arrays = {
        f"{part}/{name}": np.asarray(value)
        for part, flat in ocp.load_checkpointables(path, targets).items()
        for name, value in flat.items()
    }
    for file in sorted((run / "ranks").glob("*.npz")):
        with np.load(file) as ranks:
            arrays.update({f"{file.stem}/{name}": ranks[name] for name in ranks.files})
    arrays["step"] = np.asarray(step, np.int64)
    return arrays


def compared(run: Path) -> dict[str, str] | None:
    """`contents` of a run, read in a fork; None where they cannot be read."""
    target = run.with_suffix(".contents")

    def work(_: int) -> int:
        target.write_bytes(json.dumps(contents(run)).encode())
        return 0

    status = forked(work, run.with_suffix(".out")).ended(PATIENCE)
    return json.loads(target.read_bytes()) if status == 0 else None


class Whole(NamedTuple):
    """An uninterrupted run: what it holds, and how long it took with warm caches, in seconds."""

    contents: dict[str, str]
    seconds: float


def uninterrupted(name: str, folder: Path, data: Path) -> Whole:
    """Train the configuration twice without a kill: the first fills the cache of compiled programs."""
    configuration = CONFIGURATIONS[name]
    found, seconds = [], 0.0
    for number in range(2):
        run = folder / f"whole-{number}"
        for path in folder.glob(f"whole-{number}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        started = time.monotonic()
        status = train(run, data, configuration).ended(600)
        seconds = time.monotonic() - started
        if status != 0:
            raise RuntimeError(
                f"the uninterrupted run {name!r} failed: {run.with_suffix('.out').read_text()[-400:]}"
            )
        found.append(compared(run))
    if not found[0] or found[0] != found[1] or len(found[0]) < 20:
        raise RuntimeError(f"two uninterrupted runs {name!r} differ: nothing to compare with")
    return Whole(found[0], seconds)


def phase(run: Path) -> str:
    """Phase of a run at this moment, as its files show it."""
    if not (run / "config.json").exists():
        return "before the first file"
    if (run / "results.json").exists():
        return "last files"
    if (run / "ranks").exists() or (run / "catalogue").exists():
        return "final writing"
    if any((run / "checkpoints").glob("*tmp*")) or any((run / "pretraining/checkpoints").glob("*tmp*")):
        return "saving"
    if (run / "pretraining").exists() and not (run / "pretraining/results.json").exists():
        return "pretraining"
    return "training and evaluation" if (run / "log.jsonl").exists() else "start"


def _seen(run: Path, trigger: str) -> bool:
    return not trigger or any(run.glob(trigger)) or any(run.glob(f"pretraining/{trigger}"))


def killed_run(
    seed: int, number: int, folder: Path, names: tuple[str, ...], wholes: dict[str, Whole], limit: int
) -> tuple[list[str], Trial]:
    """Kill one run again and again, resume it until it ends, and compare; of two processes both are killed.

    Returns:
      The phase of every kill, and the trial.
    """
    rng = random.Random(f"kills/{seed}/{number}")
    name = names[number % len(names)]
    configuration, whole = CONFIGURATIONS[name], wholes[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run, data = folder / "run", folder.parent / "data"
    phases: list[str] = []
    for _ in range(rng.randint(2, limit)):
        trigger, wait = rng.choice(TRIGGERS), rng.uniform(0, 0.4)
        if not trigger:
            wait = rng.uniform(0, whole.seconds)
        group = train(run, data, configuration)
        status, end = None, time.monotonic() + PATIENCE
        while status is None and not _seen(run, trigger) and time.monotonic() < end:
            status = group.ended(0)
        status = group.ended(wait) if status is None else status
        if status is not None:  # It ended before the kill.
            if status:
                return phases, Trial(number, name, "wrong", _tail(run), len(phases))
            break
        phases.append(phase(run))
        group.kill(rng)
    group = train(run, data, configuration)
    status = group.ended(PATIENCE)
    if status is None:
        group.kill()
        return phases, Trial(number, name, "hang", f"{phases}: {_tail(run)}", len(phases))
    if status != 0:
        return phases, Trial(number, name, "wrong", f"{phases}: status {status}: {_tail(run)}", len(phases))
    found = compared(run)
    if found is None:
        return phases, Trial(number, name, "wrong", f"{phases}: {_tail(run)}", len(phases))
    different = sorted(
        key for key in whole.contents.keys() | found.keys() if whole.contents.get(key) != found.get(key)
    )
    if different:
        return phases, Trial(
            number, name, "wrong", f"{phases}: {len(different)} differ: {different[:4]}", len(phases)
        )
    return phases, Trial(number, name, "resumed", json.dumps(phases), len(phases))


def _tail(run: Path) -> str:
    out = run.with_suffix(".out")
    return out.read_text(errors="replace")[-300:] if out.exists() else ""


def kills(
    seed: int,
    count: int,
    seconds: float,
    work: Path,
    log: TrialLog,
    names: tuple[str, ...] = (),
    limit: int = 5,
    only: int | None = None,
) -> None:
    """Kill runs until ``count`` kills are in the log or the time is over.

    Args:
      seed: with the number of a run it determines where it is killed.
      count: of kills.
      seconds: after which no new run starts.
      work: folder of the runs.
      log: of the trials.
      names: of `CONFIGURATIONS`; default: all.
      limit: most kills of one run.
      only: number of a single run to kill, again if need be.
    """
    from experiments.reliability.base import walks

    end = time.monotonic() + seconds
    trials = log.read()
    if only is None and (sum(trial.count for trial in trials) >= count or seconds <= 0):
        return
    if not (work / "data").exists():
        walks().save(work / "data")
    wholes = {}
    every = names or tuple(CONFIGURATIONS)
    for name in every if only is None else (every[only % len(every)],):
        folder = work / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        wholes[name] = uninterrupted(name, folder, work / "data")
    number = 1 + max((trial.number for trial in trials), default=-1) if only is None else only
    total = sum(trial.count for trial in trials) if only is None else count - 1
    while total < count and time.monotonic() < end:
        _, trial = killed_run(seed, number, work / f"killed-{number}", every, wholes, limit)
        log.add(trial)
        if trial.outcome == "resumed":
            shutil.rmtree(work / f"killed-{number}")
        total, number = total + max(1, trial.count), number + 1


def phases_of(trials: list[Trial]) -> dict[str, int]:
    """Number of kills in each phase."""
    counts: dict[str, Any] = {}
    for trial in trials:
        if trial.outcome == "resumed":
            for name in json.loads(trial.detail):
                counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
