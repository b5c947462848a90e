"""Tuning in one call, from a dataset and a preset to the test value of the trial that validation chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxrec.config import RunConfig, check_importable
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.errors import ConfigError
from jaxrec.presets import named_config
from jaxrec.reporting.results import write_run
from jaxrec.runs import Run
from jaxrec.training.loop import train
from jaxrec.training.run_directory import run_lock
from jaxrec.training.setup import prepare
from jaxrec.tuning.report import Oracle, TuningResult, best_trial, training_seconds
from jaxrec.tuning.space import search_space
from jaxrec.tuning.study import Study, StudyOptions, Trial, claim, open_study


def tune(  # noqa: PLR0913 - the options of the command
    dataset: SequenceDataset | None = None,
    config: RunConfig | str = "sasrec",
    out: str | Path = "",
    *,
    budget: int = 40,
    space: Mapping[str, Any] | str | Path | None = None,
    pruner: Literal["median", "none"] = "median",
    seed: int = 0,
    oracle: bool = False,
    progress: bool = True,
) -> TuningResult:
    """Search the options of a configuration by the validation metric, and rank the test targets of the best trial.

    The first trial is the configuration itself. A study goes on where it was interrupted, by the same call; several
    processes may work on one. Needs the extra ``tune``.

    Args:
      dataset: from `load_dataset`; None = the one that ``config.data`` names.
      config: a `RunConfig`, the name of a preset, or the directory of a run for its configuration.
      out: directory of the study.
      budget: trials of the whole study, those of earlier calls and of other processes included.
      space: options to search, as {option: dimension} or a file (`jaxrec.tuning.space`); None = those that the sections of
        ``config`` declare.
      pruner: "median" stops trials that lag behind; "none" trains all to their end.
      seed: of the draws.
      oracle: rank the test targets of every complete trial too, to show how far test data would have misled the choice.
      progress: print a line per trial on standard error.

    Raises:
      ConfigError: the space or the budget is impossible, ``out`` has another study, or no trial came to its end.
      RunExistsError: ``out`` has other files.
      Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    options = StudyOptions(budget, pruner, seed)
    if not str(out):
        raise ConfigError("--out must be the directory of the study; got none")
    if isinstance(config, str):
        config = named_config(config)
    if dataset is not None:
        config = dataclasses.replace(config, data=DataConfig.of(dataset))
    if config.pretraining.preset:
        raise ConfigError(
            f"--pretraining.preset {config.pretraining.preset} would train a first stage in every trial: train it once, and "
            "tune from its run with --preset s3rec --init-from RUN"
        )
    check_importable(config)
    dimensions = search_space(config, space)
    # Refuse what cannot work before anything is written.
    dataset = prepare(config, dataset).dataset
    with open_study(Path(out), config, dimensions, dataset, options) as study:
        study.run(progress)
        return conclude(study, oracle)


def conclude(study: Study, oracle: bool = False) -> TuningResult:
    """Rank the test targets of the best trial, once, and write the report, unless trials are still being trained.

    Args:
      study: with all its trials begun.
      oracle: rank the test targets of every other complete trial too.

    Raises:
      ConfigError: no trial came to its end.
    """
    with claim(study.directory):
        trials = study.trials()
        if not any(trial.state == "complete" for trial in trials):
            reasons = [trial.reason for trial in trials if trial.reason]
            raise ConfigError(
                f"no trial of the study in {study.directory} came to its end"
                + (f": {reasons[0]}" if reasons else "")
                + "; give a larger --budget or another space"
            )
        finished = all(trial.state != "running" for trial in trials)
        best = best_trial(trials)
        test = ranked(study, best) if finished else None
        tests: dict[str, float] = {}
        if oracle and finished:
            complete = [trial for trial in trials if trial.state == "complete"]
            tests = {trial.name: ranked(study, trial)[study.config.metric] for trial in complete}
        result = TuningResult(
            study.directory,
            study.config.metric,
            trials,
            {trial.name: training_seconds(study.path(trial)) for trial in trials},
            test,
            Oracle(tests, best.name) if tests else None,
        )
        if finished:
            result.write()
    return result


def ranked(study: Study, trial: Trial) -> dict[str, float]:
    """Test metrics of a complete trial, mean over seeds; its run is finished with them, unless it was before."""
    folder = study.path(trial)
    if not (folder / "results.json").exists():
        with run_lock(folder):
            config = study.config_of(trial.options)
            write_run(train(config, study.dataset, folder, resume=True, progress=False))
    return Run(folder, study.dataset).metrics
