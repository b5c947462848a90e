"""Studies: trials of a search space, chosen by Optuna, trained as resumable runs, and judged on validation alone.

A study is a directory. ``study.json`` says what it searches, ``study.db`` (SQLite) has Optuna's trials, ``trials/NNN`` is
the run directory of each. Several processes work on one study; each holds the lock of the run that it trains. A trial
that is "running" in the database while nobody holds its lock was interrupted, and the next process goes on with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np

from jaxrec.config import RunConfig, differences, from_dict, to_dict
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError, Interrupted, NonFiniteError, RunExistsError
from jaxrec.files import LOCK, write_atomically
from jaxrec.options import Range, validate
from jaxrec.training.loop import Validation, train
from jaxrec.training.run_directory import run_lock
from jaxrec.training.setup import build_task, data_spec
from jaxrec.tuning.space import Space, all_points, default_point, to_toml

#: File whose lock a process holds while it takes a trial.
CLAIM = ".claim"
IDENTITY = "study.json"
#: Trials in a row that may turn out to be known or impossible before the study gives up.
_MOST_SKIPPED = 500


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Size and strategy of a study.

    Attributes:
      budget: trials of the whole study, those of earlier calls and of other processes included.
      pruner: "median" stops a trial whose best validation so far is below the median of the complete ones at the same
        validation, but not that of the configuration itself; "none" trains all to their end.
      seed: of the draws; trial n draws the same whenever and wherever it begins, given the trials before it.
    """

    budget: Annotated[int, Range("[1, inf)")] = 40
    pruner: Literal["median", "none"] = "median"
    seed: Annotated[int, Range("[0, 4294967296)")] = 0

    def __post_init__(self) -> None:
        """Check every option."""
        validate(self, "")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration of a study.

    Attributes:
      number: of its run directory.
      state: "complete", "pruned", "failed" or "running".
      options: {dotted path: value}.
      score: best validation metric, mean over seeds; None before the first validation.
      scores: {number of the validation: metric, mean over seeds}.
      default: whether it is the configuration that the study started from.
      reason: of a failure.
    """

    number: int
    state: Literal["complete", "pruned", "failed", "running"]
    options: dict[str, Any]
    score: float | None
    scores: dict[int, float]
    default: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.number:03d}"


def import_optuna() -> Any:
    """Import Optuna.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("tuning needs Optuna, which is not installed: pip install 'jaxrec[tune]'") from None
    return optuna


class Study:
    """A study on disk that this process works on; see `open_study`."""

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        space: Space,
        dataset: SequenceDataset,
        options: StudyOptions,
    ):
        self.directory = directory
        self.config = config
        self.space = space
        self.dataset = dataset
        self.options = options
        self._optuna = import_optuna()
        distributions = self._optuna.distributions
        self._distributions = {
            path: distributions.CategoricalDistribution(dimension.values)
            if hasattr(dimension, "values")
            else (distributions.IntDistribution if dimension.integer else distributions.FloatDistribution)(
                dimension.low, dimension.high, log=dimension.log
            )
            for path, dimension in space.items()
        }
        file = directory.absolute() / "study.db"
        # Connected by its path, since "?" and braces have a meaning of their own in an address.
        connect = functools.partial(sqlite3.connect, file, timeout=120, check_same_thread=False)
        self._storage = self._optuna.storages.RDBStorage(
            "sqlite:///study.db", engine_kwargs={"creator": connect}
        )
        pruners = self._optuna.pruners
        self._study = self._optuna.create_study(
            study_name="tune",
            storage=self._storage,
            direction="maximize",
            load_if_exists=True,
            pruner=pruners.MedianPruner(n_warmup_steps=2)
            if options.pruner == "median"
            else pruners.NopPruner(),
        )

    def close(self) -> None:
        """Close the connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def path(self, trial: Trial) -> Path:
        """Run directory of a trial."""
        return self.directory / "trials" / trial.name

    def config_of(self, options: dict[str, Any]) -> RunConfig:
        """The configuration of a trial.

        Raises:
          ConfigError: its options do not go together.
        """
        return self.config.updated(options)

    def trials(self) -> list[Trial]:
        """The trials that were begun, by number; what was drawn and not trained is left out."""
        return [
            self._record(entry)
            for entry in self._study.get_trials(deepcopy=False)
            if entry.state.name != "WAITING" and "skipped" not in entry.user_attrs
        ]

    def _record(self, entry: Any) -> Trial:
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        state: Any = names[entry.state.name]
        scores = dict(sorted(entry.intermediate_values.items()))
        return Trial(
            entry.number,
            state,
            dict(entry.params),
            entry.value if state == "complete" else max(scores.values(), default=None),
            scores,
            entry.params == default_point(self.config, self.space),
            entry.user_attrs.get("reason", ""),
        )

    def run(self, progress: bool = True) -> None:
        """Train until the study has as many trials as its budget.

        Args:
          progress: print a line per trial on standard error.

        Raises:
          ConfigError: the budget is below the trials that there are, or the options hardly ever go together.
          Interrupted: SIGINT or SIGTERM; the state of the trial was saved.
        """
        done = len(self.trials())
        if done > self.options.budget:
            raise ConfigError(
                f"--budget must be at least the {done} trials that the study in {self.directory} has; got "
                f"{self.options.budget}: give a larger one, or another --out"
            )
        skipped, problem = 0, ""
        while skipped < _MOST_SKIPPED:
            with contextlib.ExitStack() as stack:
                with claim(self.directory):
                    trial = self._take(stack)
                if trial is None:
                    return
                problem = self._unusable(trial) or self._train(trial)
                if problem:
                    trial.set_user_attr("skipped", problem)
                    self._tell(trial.number, "FAIL")
                    skipped += 1
                    continue
                skipped = 0
                if progress:
                    print(self._line(trial.number), file=sys.stderr)
        raise ConfigError(
            f"--space: none of {_MOST_SKIPPED} draws in a row was new and valid; the last: {problem}. Choose values that go "
            "together"
        )

    def _take(self, stack: contextlib.ExitStack) -> Any:
        """A trial that was interrupted, or else a new one, with its directory locked; None where the budget is used."""
        optuna = self._optuna
        waiting = False
        for entry in self._study.get_trials(deepcopy=False):
            waiting |= entry.state.name == "WAITING"
            if entry.state.name != "RUNNING":
                continue
            with contextlib.ExitStack() as lock:
                try:
                    lock.enter_context(run_lock(self._folder(entry.number)))
                except RunExistsError:
                    continue  # another process trains it
                if self._study._storage.get_trial(entry._trial_id).state.is_finished():
                    continue  # another process ended it since the trials were listed
                if set(entry.params) == set(self.space):
                    stack.enter_context(lock.pop_all())
                    # There is no public way to go on with a trial of a process that died.
                    return optuna.trial.Trial(self._study, entry._trial_id)
                self._study._storage.set_trial_user_attr(
                    entry._trial_id, "skipped", "interrupted before it began"
                )
                self._tell(entry.number, "FAIL")
        known = self.trials()
        if len(known) >= self.options.budget:
            return None
        default = default_point(self.config, self.space)
        if not waiting and not any(trial.options == default for trial in known):
            self._study.enqueue_trial(default)
        elif not waiting and not self._enqueue_last_points():
            return None
        drawn = len(self._study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.options.seed, drawn]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = self._study.ask(self._distributions)
        stack.enter_context(run_lock(self._folder(trial.number)))
        return trial

    def _enqueue_last_points(self) -> bool:
        """Enqueue one of the points that are left where they are few, since draws would repeat; False where none is left."""
        points = all_points(self.space)
        if points is None:
            return True
        tried = [entry.params for entry in self._study.get_trials(deepcopy=False)]
        left = [point for point in points if point not in tried]
        if left and len(left) <= max(2, len(points) // 2):
            order = np.random.SeedSequence([self.options.seed, len(tried)]).generate_state(1)[0]
            self._study.enqueue_trial(left[int(order) % len(left)])
        return bool(left)

    def _folder(self, number: int) -> Path:
        return self.directory / "trials" / f"{number:03d}"

    def _unusable(self, trial: Any) -> str:
        """The reason why a trial need not be trained: known already, or impossible; else the empty string."""
        twins = [
            entry.number
            for entry in self._study.get_trials(deepcopy=False)
            if entry.params == trial.params and entry.number < trial.number
        ]
        if twins:
            return f"the same as trial {twins[0]}"
        if trial.params == default_point(self.config, self.space):
            return ""
        try:
            config = self.config_of(trial.params)
            build_task(config, data_spec(config, self.dataset))
        except ConfigError as error:
            return str(error)
        return ""

    def _train(self, trial: Any) -> str:
        """Train a trial, or what is left of it, and record how it ended; return the reason if it cannot begin, else ""."""
        folder = self._folder(trial.number)
        begun = (folder / "config.json").exists()
        if not begun:  # a process was killed before it had written anything of use
            for path in folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        default = trial.params == default_point(self.config, self.space)
        reported = set(self._study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def follow(validation: Validation) -> None:
            if validation.number not in reported:
                trial.report(float(np.mean(validation.scores)), validation.number)
            if not validation.finished and not default and trial.should_prune():
                raise self._optuna.TrialPruned

        try:
            fitted = train(
                self.config_of(trial.params),
                self.dataset,
                folder,
                resume=begun,
                progress=False,
                on_validation=follow,
                rank=False,
            )
        except self._optuna.TrialPruned:
            self._tell(trial.number, "PRUNED")
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped in trial {trial.number:03d}, whose state is saved; continue with the same command",
                stopped.signal_number,
            ) from None
        except NonFiniteError as error:
            self._fail(trial, str(error))
        except (ConfigError, DataError) as error:
            # What `_unusable` does not see: options against the data, the devices or other sections.
            if begun or default:
                raise
            return str(error)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self._fail(trial, "out of memory")
        else:
            self._tell(trial.number, "COMPLETE", float(np.mean(fitted.host_state.best)))
        return ""

    def _fail(self, trial: Any, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self._tell(trial.number, "FAIL")

    def _tell(self, number: int, state: str, value: float | None = None) -> None:
        self._study.tell(number, value, state=self._optuna.trial.TrialState[state])

    def _line(self, number: int) -> str:
        begun = [trial for trial in self.trials() if trial.number <= number]
        trial = begun[-1]
        score = "" if trial.score is None else f", valid {self.config.metric} {trial.score:.4f}"
        options = ", ".join(
            f"{path.replace('_', '-')} {f'{value:.4g}' if isinstance(value, float) else value}"
            for path, value in trial.options.items()
        )
        # The number counts draws that were skipped, too.
        return f"trial {trial.name}, {len(begun)} of {self.options.budget}: {trial.state}{score}  ({options})"


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Wait until no other process takes a trial of the study in ``directory``, and keep the others waiting."""
    descriptor = os.open(directory / CLAIM, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_study(
    directory: Path, config: RunConfig, space: Space, dataset: SequenceDataset, options: StudyOptions
) -> Iterator[Study]:
    """Open the study in ``directory``, which is made if there is none.

    Args:
      directory: of the study.
      config: of the first trial.
      space: dimensions by dotted path.
      dataset: of every trial.
      options: budget and strategy.

    Raises:
      ConfigError: the budget exceeds the space, or the directory has a study of another dataset, configuration or space.
      RunExistsError: the directory has other files.
    """
    optuna = import_optuna()
    points = all_points(space)
    if points is not None and len(points) < options.budget:
        raise ConfigError(
            f"--budget must be at most the {len(points)} points of the space; got {options.budget}: give a smaller one, or "
            "more values"
        )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with claim(directory):
            _check_identity(directory, config, space, dataset)
            study = Study(directory, config, space, dataset, options)
        try:
            yield study
        finally:
            study.close()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _digests(dataset: SequenceDataset) -> dict[str, str]:
    """Digests of what the fingerprint of a dataset leaves out and models may read; "" where there is none."""
    attributes, vectors = dataset.attributes, dataset.item_vectors
    contents = {
        "vectors": [] if vectors is None else [vectors],
        "attributes": [] if attributes is None else [attributes.offsets, attributes.values],
    }
    return {name: _digest(arrays) for name, arrays in contents.items()}


def _digest(arrays: Sequence[Any]) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()[:16] if arrays else ""


def _searched(config: RunConfig) -> dict[str, Any]:
    """Plain values of the configuration that a study searches around; its data are known by their fingerprint."""
    return {name: section for name, section in to_dict(config).items() if name != "data"}


def _check_identity(directory: Path, config: RunConfig, space: Space, dataset: SequenceDataset) -> None:
    """Write what the study searches, or refuse to go on with one that searches something else."""
    identity = {
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, **_digests(dataset)},
        "config": _searched(config),
        "space": dict(line.split(" = ", 1) for line in to_toml(space).splitlines()),
    }
    file = directory / IDENTITY
    if not file.exists():
        if any(path.name != CLAIM for path in directory.iterdir()):
            raise RunExistsError(
                f"--out {directory} holds files but no study: expected a new or empty directory, or that of a study"
            )
        write_atomically(file, json.dumps(identity, indent=2) + "\n")
        return
    try:
        saved = json.loads(file.read_text())
        # Studies of earlier versions: options in their form of today, and no digests.
        saved["config"] = _searched(from_dict(saved["config"]))
        saved["dataset"] = {**_digests(dataset), **saved["dataset"]}
        changed = differences(saved, identity)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{file} is damaged ({error}): choose another --out") from None
    advice = "give what the study began with, or choose another --out"
    if "dataset.fingerprint" in changed:
        raise ConfigError(
            f"--out {directory} has a study of another dataset: expected {saved['dataset']['name']!r} with fingerprint "
            f"{saved['dataset']['fingerprint'][:16]}, got {dataset.name!r} with {dataset.fingerprint[:16]}; {advice}"
        )
    for what in ("vectors", "attributes"):
        if f"dataset.{what}" in changed:
            raise ConfigError(
                f"--out {directory} has a study with other {what} of items: expected those of digest "
                f"{saved['dataset'][what] or 'none'}, got {identity['dataset'][what] or 'none'}; {advice}"
            )
    for part, kind in (("config.", "with another preset or other options"), ("space.", "of another space")):
        listed = [(name.removeprefix(part), *pair) for name, pair in changed.items() if name.startswith(part)]
        if listed:
            shown = "; ".join(f"{name}: has {a}, got {b}" for name, a, b in listed[:3])
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            raise ConfigError(f"--out {directory} has a study {kind}: {shown}{more}; {advice}")
