"""The first stage of a run: another preset, trained in a folder of its directory, whose encoder the run starts from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jaxrec.config import NAMED_SECTIONS, RunConfig, check_importable, save_config
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, Interrupted
from jaxrec.files import as_word
from jaxrec.presets import PRESETS
from jaxrec.reporting.results import write_run
from jaxrec.training.checkpoint import CheckpointReader
from jaxrec.training.distributed import decided, is_first
from jaxrec.training.loop import train
from jaxrec.training.run_directory import PRETRAINING, claim_directory_together, run_lock
from jaxrec.training.setup import prepare

#: Sections and options that both stages have in common.
_SHARED = (
    *("data", "split", "encoder", "evaluation", "mesh"),
    *("batches.max_length", "batches.position_origin", "training.seeds", "training.over_seeds"),
    *("training.metric", "training.feed", "training.resident_share"),
    *("training.checkpoint_seconds", "training.keep_checkpoints"),
)


def first_stage(config: RunConfig) -> RunConfig:
    """The configuration of a run's first stage.

    Raises:
      ConfigError: there is no such preset or option, an option does not fit, or the preset has a first stage itself.
    """
    stage = PRESETS[config.pretraining.preset]()
    if stage.pretraining.preset:
        raise ConfigError(
            f"--pretraining.preset must be a preset of one stage; got {config.pretraining.preset!r}, which has two; "
            f"choose {stage.pretraining.preset}"
        )
    # Its own metric may not exist for the run's list lengths.
    stage = stage.updated({"training.metric": ""})
    for path in _SHARED:
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        stage = stage.updated({path: value})
    for option in config.pretraining.options:
        typed, _, text = option.partition("=")
        path = typed.replace("-", "_")
        if path in _SHARED or path.partition(".")[0] in _SHARED:
            raise ConfigError(
                f"--pretraining.options cannot set {typed}, which both stages share: set --{typed.replace('_', '-')} of "
                "the run"
            )
        stage = stage.updated(
            {path: NAMED_SECTIONS[path][text]() if path in NAMED_SECTIONS else _value(text)}
        )
    return stage


def _value(text: str) -> Any:
    """A number, truth value or list as JSON writes it, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def pretrain(
    config: RunConfig,
    dataset: SequenceDataset | None,
    directory: Path,
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> None:
    """Train the first stage of a run, or what is left of it; afterwards the run itself can be resumed.

    A run that has a checkpoint of its own needs none.

    Args:
      config: of the run.
      dataset: in place of the one that ``config.data`` names.
      directory: of the run, locked by this process.
      resume: continue the run in ``directory``.
      overwrite: delete a run that is already in ``directory``.
      progress: show a progress bar on standard error.

    Raises:
      JaxrecError: as `jaxrec.training.loop.train`, of either stage.
    """
    check_importable(config)
    stage = first_stage(config)
    claim_directory_together(directory, config, resume, overwrite)
    folder = directory / PRETRAINING
    # A run with a checkpoint goes on from it: its first stage is over, even where that was deleted, or is another run's.
    begun = resume and bool(CheckpointReader(directory / "checkpoints").steps())
    if decided(begun or (folder / "results.json").exists()):
        return
    # Hours of pretraining must not end in a refusal of the second stage.
    dataset = prepare(config, dataset).dataset
    continued = decided((folder / "config.json").exists())
    if is_first():
        save_config(config, directory / "config.json")
        if not continued and folder.exists():
            shutil.rmtree(folder)
    with run_lock(folder):
        try:
            write_run(train(stage, dataset, folder, resume=continued, progress=progress))
        except Interrupted as stopped:
            stage_place, place = (as_word(path) for path in (folder, directory))
            message = str(stopped).replace(f"--workdir {stage_place} ", f"--workdir {place} ")
            raise Interrupted(f"the first stage {message}", stopped.signal_number) from None
