"""SIGKILL at random moments of a run, each run resumed until it ends, and compared with an uninterrupted one.

Every process of a run is forked from this one, which has imported jaxrec but has not started JAX's backend: a process is
then at work within a tenth of a second, so nearly all kills hit the run rather than the imports. A run is killed `KILLS`
times. The stratum of every kill is drawn with `SHARES`; the kill falls uniformly within the time that this stratum takes in
the uninterrupted run, counted from the file that opens it. A run goes forward, so the strata are passed in the order of a
run, but for "start", which any resumption has.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import shlex
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.reliability.base import SMALL
from experiments.reliability.processes import PATIENCE, Group, forked, joining, resumed
from experiments.reliability.trials import Trial, TrialLog
from jaxrec.cli.main import main
from jaxrec.training.checkpoint import CheckpointReader

#: Imported by this process, so that the forked ones find them imported.
for _name in ("api", "cli.train", "reporting.examples", "reporting.html", "training.loop"):
    importlib.import_module(f"jaxrec.{_name}")
_TWO_STAGES = shlex.split(
    "--preset s3rec-two-stage --quiet --json --batches.max-length 8 --encoder.width 8 --encoder.layers 1 "
    "--encoder.ffn-width 8 --batches.batch-size 8 --training.epochs 3 --training.checkpoint-seconds 0 "
    "--training.metric NDCG@10 --evaluation.ks 5 10 --pretraining.options training.epochs=3 training.evaluate-every=1 "
    "batches.prefixes-per-sequence=4 batches.batch-size=16 training.chunk-steps=4"
)
_LONG = [*SMALL, "--training.epochs", "4"]
#: Kills of one run.
KILLS = 10


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
#: Number of runs of each kind among 25, those after one another as different as can be.
MIX = {
    "packed": 8,
    "streamed": 6,
    "two seeds": 5,
    "pretraining and fine-tuning": 3,
    "2 x 2 mesh": 2,
    "two processes": 1,
}
#: Strata of a run in their order, with the share of the kills that falls into each. In runs without pretraining its share
#: goes to training.
SHARES = {
    "start": 0.15,
    "pretraining": 0.1,
    "training": 0.15,
    "saving": 0.2,
    "evaluation": 0.1,
    "final writing": 0.25,
    "last files": 0.05,
}
_EARLY, _LATE = ("pretraining", "training", "saving"), ("evaluation", "final writing", "last files")
#: Seconds within which a checkpoint of these runs is written.
_SAVING_SECONDS = 0.1
#: Event of a run -> files whose change shows it.
_SIGNS = {
    "pretraining log": ("pretraining/log.jsonl",),
    "pretraining results": ("pretraining/results.json",),
    "log": ("log.jsonl",),
    "saving": ("checkpoints/*tmp*", "pretraining/checkpoints/*tmp*"),
    "writing": ("ranks", "ranks/*", "catalogue", "catalogue/*", "figures", "figures/*", "report.html"),
    "results": ("results.json",),
}


def train(run: Path, data: Path, configuration: Configuration) -> Group:
    """Start or continue a run in forks, as its user would."""
    fresh = ["train", "--workdir", str(run), "--data", str(data), *configuration.options]
    arguments = resumed(run, fresh)
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


class Timeline(NamedTuple):
    """Seconds from the start of a process to its first sign of an event, and the last step of the run.

    Attributes:
      log: first line of the log of the run itself.
      pretraining: first line of the log of the first stage; 0 without one.
      pretrained: results of the first stage; 0 without one.
      trained: the last checkpoint.
      writing: the first file after the evaluation.
      results: ``results.json``.
      end: the end of the process.
      step: of the last checkpoint.
    """

    log: float
    pretraining: float
    pretrained: float
    trained: float
    writing: float
    results: float
    end: float
    step: int


class Whole(NamedTuple):
    """An uninterrupted run: what it holds, and its times with warm caches."""

    contents: dict[str, str]
    times: Timeline


class Signs:
    """Events of a process that the files of its run show, those of earlier processes apart."""

    def __init__(self, run: Path):
        self._run = run
        self._before = {event: self._files(event) for event in _SIGNS}
        self._seen: set[tuple[str, int, int]] = set()

    def _files(self, event: str) -> set[tuple[str, int, int]]:
        found = set()
        for pattern in _SIGNS[event]:
            for path in self._run.glob(pattern):
                try:
                    status = path.stat()
                except OSError:  # renamed meanwhile
                    continue
                found.add((str(path), status.st_ino, status.st_mtime_ns))
        return found

    def shows(self, event: str) -> bool:
        """Whether a file of the event has come or changed since the start."""
        return bool(self._files(event) - self._before[event])

    def saves(self) -> int:
        """Number of checkpoints that this process has begun to write, as far as `saves` was asked often enough."""
        self._seen |= {(path, inode, 0) for path, inode, _ in self._files("saving") - self._before["saving"]}
        return len(self._seen)


def uninterrupted(name: str, folder: Path, data: Path) -> Whole:
    """Train the configuration twice without a kill: the first fills the cache of compiled programs."""
    configuration = CONFIGURATIONS[name]
    found: list[dict[str, str] | None] = []
    for number in range(2):
        run = folder / f"whole-{number}"
        for path in folder.glob(f"whole-{number}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        times = _timed(run, data, configuration)
        found.append(compared(run))
    if not found[0] or found[0] != found[1] or len(found[0]) < 20:
        raise RuntimeError(f"two uninterrupted runs {name!r} differ: nothing to compare with")
    return Whole(found[0], times._replace(step=CheckpointReader(run / "checkpoints").steps()[-1]))


def _timed(run: Path, data: Path, configuration: Configuration) -> Timeline:
    """Train a run to its end, and note when its files show what."""
    signs, started = Signs(run), time.monotonic()
    group = train(run, data, configuration)
    first: dict[str, float] = {}
    trained, status = 0.0, None
    while status is None and time.monotonic() < started + 600:
        status = group.ended(0.004)
        now = time.monotonic() - started
        for event in _SIGNS:
            if event not in first and signs.shows(event):
                first[event] = now
        if any((run / "checkpoints").glob("*tmp*")):
            trained = now
    if status != 0:
        group.kill()
        raise RuntimeError(f"the uninterrupted run failed: {_tail(run)}")
    end = time.monotonic() - started
    return Timeline(
        first["log"],
        first.get("pretraining log", 0.0),
        first.get("pretraining results", 0.0),
        trained,
        first["writing"],
        first["results"],
        end,
        0,
    )


def strata_of(rng: random.Random, kills: int, pretraining: bool) -> list[str]:
    """Strata of the kills of one run, in the order in which they are passed."""
    shares = dict(SHARES)
    if not pretraining:
        shares["training"] += shares.pop("pretraining")
    drawn = rng.choices(list(shares), list(shares.values()), k=kills)
    late = sorted((name for name in drawn if name in _LATE), key=_LATE.index)
    early = [name for name in drawn if name in ("training", "saving")]
    rng.shuffle(early)
    ordered = [name for name in drawn if name == "pretraining"] + early + late
    for _ in range(drawn.count("start")):
        ordered.insert(rng.randint(0, len(ordered)), "start")
    return ordered


class Moment(NamedTuple):
    """A moment of a process: so many seconds after a sign (empty = after its start; "saving": of so many checkpoints)."""

    sign: str
    seconds: float
    saves: int = 0


def moment_of(rng: random.Random, stratum: str, run: Path, times: Timeline) -> Moment:
    """Draw the moment of a kill within a stratum."""
    trained = (run / "checkpoints" / str(times.step)).exists()
    if stratum == "start":
        return Moment("", rng.uniform(0, times.pretraining or times.log))
    if stratum == "pretraining":
        return Moment("pretraining log", rng.uniform(0, times.pretrained - times.pretraining))
    if stratum == "training":
        return Moment("log", rng.uniform(0, times.trained - times.log))
    if stratum == "saving":
        return Moment("saving", rng.uniform(0, _SAVING_SECONDS), rng.randint(1, 2))
    if stratum == "evaluation":
        return Moment("log" if trained else "trained", rng.uniform(0, times.writing - times.trained))
    if stratum == "final writing":
        return Moment("writing", rng.uniform(0, times.results - times.writing))
    return Moment("results", rng.uniform(0, times.end - times.results))


def phase(run: Path, signs: Signs, step: int) -> str:
    """Phase of a process at this moment, as its files show it."""
    if signs.shows("results"):
        return "last files"
    if signs.shows("writing"):
        return "final writing"
    if signs.shows("log"):
        if any((run / "checkpoints").glob("*tmp*")):
            return "saving"
        return "evaluation" if (run / "checkpoints" / str(step)).exists() else "training"
    if signs.shows("pretraining log") and not (run / "pretraining/results.json").exists():
        return "saving" if any((run / "pretraining/checkpoints").glob("*tmp*")) else "pretraining"
    return "start"


def _due(run: Path, signs: Signs, moment: Moment, step: int) -> bool:
    if moment.sign == "trained":
        return (run / "checkpoints" / str(step)).exists()
    if moment.saves:
        return signs.saves() >= moment.saves
    return not moment.sign or signs.shows(moment.sign)


class Killed(NamedTuple):
    """Of a run that is killed again and again: drawn strata and phases at the kills."""

    drawn: list[str]
    phases: list[str]

    def trial(self, number: int, name: str, outcome: str, detail: str = "") -> Trial:
        """The trial that these kills make; the detail of one that held lists the kills."""
        listed = json.dumps({"drawn": self.drawn, "phases": self.phases})
        return Trial(number, name, outcome, f"{detail} {listed}".strip(), len(self.phases))


def configuration_of(number: int, names: tuple[str, ...]) -> str:
    """Name of the configuration of run ``number``, among ``names``."""
    slots = [((i + 0.5) / MIX[name], name) for name in names for i in range(MIX[name])]
    return sorted(slots)[number % len(slots)][1]


def killed_run(
    seed: int, number: int, folder: Path, name: str, whole: Whole, kills: int = KILLS
) -> tuple[list[str], Trial]:
    """Kill one run again and again, resume it until it ends, and compare; of two processes both are killed.

    Returns:
      The phase of every kill, and the trial.
    """
    rng = random.Random(f"kills/{seed}/{number}")
    configuration, times = CONFIGURATIONS[name], whole.times
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run, data = folder / "run", folder.parent / "data"
    killed = Killed([], [])
    for stratum in strata_of(rng, kills, times.pretrained > 0):
        if stratum in _EARLY and (run / "checkpoints" / str(times.step)).exists():
            stratum = rng.choice(_LATE)  # The run has passed what was drawn.
        elif stratum == "pretraining" and (run / "pretraining/results.json").exists():
            stratum = "training"
        moment = moment_of(rng, stratum, run, times)
        signs = Signs(run)
        group = train(run, data, configuration)
        status, end = None, time.monotonic() + PATIENCE
        while status is None and not _due(run, signs, moment, times.step) and time.monotonic() < end:
            status = group.ended(0.004)
        status = group.ended(moment.seconds) if status is None else status
        if status:
            return killed.phases, killed.trial(number, name, "wrong", f"status {status}: {_tail(run)}")
        if status is None:
            killed.drawn.append(stratum)
            killed.phases.append(phase(run, signs, times.step))
            group.kill(rng)
    group = train(run, data, configuration)
    status = group.ended(PATIENCE)
    if status is None:
        group.kill()
        return killed.phases, killed.trial(number, name, "hang", _tail(run))
    if status != 0:
        return killed.phases, killed.trial(number, name, "wrong", f"status {status}: {_tail(run)}")
    found = compared(run)
    if found is None:
        return killed.phases, killed.trial(number, name, "wrong", _tail(run))
    different = sorted(
        key for key in whole.contents.keys() | found.keys() if whole.contents.get(key) != found.get(key)
    )
    if different:
        return killed.phases, killed.trial(number, name, "wrong", f"{len(different)} differ: {different[:4]}")
    return killed.phases, killed.trial(number, name, "resumed")


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
      only: number of a single run to kill, again if need be.
    """
    from experiments.reliability.base import walks

    end = time.monotonic() + seconds
    trials = log.read()
    total = sum(trial.count for trial in trials) if only is None else count - 1
    if total >= count or seconds <= 0:
        return
    if not (work / "data").exists():
        walks().save(work / "data")
    wholes: dict[str, Whole] = {}
    every = names or tuple(CONFIGURATIONS)
    number = 1 + max((trial.number for trial in trials), default=-1) if only is None else only
    while total < count and time.monotonic() < end:
        name = configuration_of(number, every)
        if name not in wholes:
            folder = work / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            wholes[name] = uninterrupted(name, folder, work / "data")
        _, trial = killed_run(
            seed, number, work / f"killed-{number}", name, wholes[name], min(KILLS, count - total)
        )
        log.add(trial)
        if trial.outcome == "resumed":
            shutil.rmtree(work / f"killed-{number}")
        total, number = total + max(1, trial.count), number + 1


def phases_of(trials: list[Trial]) -> dict[str, dict[str, int]]:
    """Number of kills drawn for each stratum, in each phase, and of each configuration."""
    counts: dict[str, dict[str, int]] = {"drawn": {}, "phases": {}, "configurations": {}}
    for trial in trials:
        counts["configurations"].setdefault(trial.kind, 0)
        counts["configurations"][trial.kind] += trial.count
        kills: dict[str, list[str]] = json.loads(trial.detail[trial.detail.rindex("{") :])
        for part, names in kills.items():
            for name in names:
                counts[part][name] = counts[part].get(name, 0) + 1
    order: list[str] = list(SHARES)
    return {
        "drawn": dict(sorted(counts["drawn"].items(), key=lambda pair: order.index(pair[0]))),
        "phases": dict(sorted(counts["phases"].items(), key=lambda pair: order.index(pair[0]))),
        "configurations": counts["configurations"],
    }
