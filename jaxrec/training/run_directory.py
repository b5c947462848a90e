"""Rules of a run directory: one writer at a time, what resumes, and how its best parameters are restored."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxrec.config import RunConfig, differences, from_dict, load_config, to_dict
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.errors import (
    CheckpointError,
    ConfigError,
    DistributedError,
    JaxrecError,
    RunExistsError,
)
from jaxrec.files import LOCK, lock_folder
from jaxrec.tasks import Task
from jaxrec.training.checkpoint import CheckpointReader
from jaxrec.training.distributed import decided, is_first
from jaxrec.training.host_state import HostState
from jaxrec.training.state import Params
from jaxrec.training.state_sharding import ParameterSharding

#: Settings that a resumed run may change: they decide when it stops, how data gets in and on which devices it runs, not
#: what a step does (beyond rounding, where the mesh is another). The learning rate may change after a divergence: the
#: log and the results say at which step.
RESUMABLE = (
    "training.epochs",
    "training.patience",
    "training.checkpoint_seconds",
    "training.keep_checkpoints",
    "training.feed",
    "training.resident_share",
    "optimizer.learning_rate",
    "mesh.data",
    "mesh.item",
    "evaluation.baselines",
)


#: Folder of a run for the run of its first stage.
PRETRAINING = "pretraining"
#: Inside a run directory: the items' ids, titles and attributes, without any user.
CATALOGUE = "catalogue"
_claims: set[Path] = set()


@contextlib.contextmanager
def run_lock(directory: Path | None) -> Iterator[None]:
    """Hold the run directory for writing (see `lock_folder`); a second process is rejected at once.

    Raises:
      RunExistsError: another process is writing there.
    """
    problem: Exception | None = None
    path = None if directory is None else directory.absolute()
    descriptor, created = None, path is not None and not path.exists()
    if path is not None and path not in _claims and is_first() and (created or path.is_dir()):
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(path)
        except (JaxrecError, OSError) as error:
            problem = error
    if path is not None and decided(problem is not None):
        raise problem or DistributedError(
            f"the first process refused the run directory {directory}: its message says why"
        )
    if descriptor is None or path is None:
        yield
        return
    _claims.add(path)
    try:
        yield
    finally:
        _claims.discard(path)
        if created and [file.name for file in path.iterdir()] == [LOCK]:
            shutil.rmtree(path)
        os.close(descriptor)


def _lock(path: Path) -> int:
    try:
        return lock_folder(path)
    except BlockingIOError as error:
        raise RunExistsError(
            f"another process ({error.strerror}) is writing to the workdir {path}: wait until it ends, stop it, or choose "
            "another --workdir"
        ) from None


def check_directory_together(directory: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Call `check_directory` in the first process; where it raises, all processes raise."""
    _in_first_process(directory, lambda: check_directory(directory, config, resume, overwrite))


def claim_directory_together(directory: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Call `claim_directory` in the first process; where it raises, all processes raise."""
    _in_first_process(directory, lambda: claim_directory(directory, config, resume, overwrite))


def _in_first_process(directory: Path, call: Callable[[], object]) -> None:
    refused: Exception | None = None
    if is_first():
        try:
            call()
        except (JaxrecError, OSError) as error:
            refused = error
    if decided(refused is not None):
        raise refused or DistributedError(
            f"the first process refused the run directory {directory}: its message says why"
        )


def claim_directory(directory: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Check and empty a directory for a run.

    Args:
      directory: of the run.
      config: of the run; on resume it may differ from the saved one in `RESUMABLE` settings only.
      resume: continue the run in it.
      overwrite: delete the run in it.

    Raises:
      CheckpointError: nothing to resume, or it has another configuration.
      RunExistsError: it holds a run, other files, or what is read.
    """
    present = check_directory(directory, config, resume, overwrite)
    if not resume:
        empty_directory(directory, present)


def empty_directory(directory: Path, present: Sequence[Path]) -> None:
    """Delete what `check_directory` found ``present``, and make the directory if there is none."""
    for path in present:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    directory.mkdir(parents=True, exist_ok=True)


def check_directory(
    directory: Path,
    config: RunConfig,
    resume: bool,
    overwrite: bool,
    *,
    option: str = "--workdir",
    sources: Sequence[tuple[str, str]] | None = None,
) -> list[Path]:
    """Refuse a directory as `claim_directory` does, and return what that would delete.

    Args:
      directory: see `claim_directory`.
      config: see `claim_directory`.
      resume: see `claim_directory`.
      overwrite: see `claim_directory`.
      option: that names the directory, for messages.
      sources: what is read and so must not be deleted, as (option, file or directory); None = what ``config`` names.
    """
    subject = f"{option.removeprefix('--')} {directory}"
    check_path(directory)
    saved = directory / "config.json"
    if resume:
        _check_resumable(directory, config)
        return []
    if directory.exists() and not directory.is_dir():
        raise RunExistsError(f"{subject} is a file; expected a directory that is new or empty")
    present = [path for path in directory.iterdir() if path.name != LOCK] if directory.exists() else []
    if not present:
        return []
    if not saved.exists():
        leaves = ", so --overwrite leaves it alone" if overwrite else ""
        raise RunExistsError(
            f"{subject} is not empty, and holds no run (no config.json; an interrupted import or extension "
            f"leaves none){leaves}: empty it yourself or choose another {option}"
        )
    if not overwrite:
        # What only trains can be continued; an import or an extension is made at once.
        ways = (
            "Continue its run with --resume, delete it" if option == "--workdir" else "Delete the run in it"
        )
        raise RunExistsError(
            f"{subject} is not empty: expected a new or empty directory. {ways} with --overwrite, or choose another {option}"
        )
    for name, source in _sources(config) if sources is None else sources:
        if source and os.path.exists(source) and Path(source).resolve().is_relative_to(directory.resolve()):
            raise RunExistsError(
                f"{name} {source} is in the {subject}, which --overwrite would empty: choose another {option}"
            )
    return present


def _sources(config: RunConfig) -> list[tuple[str, str]]:
    """Options of a run that name files or directories that it reads, with their values."""
    return [
        ("--init-from", config.training.init_from),
        ("--encoder.item-codes.run", config.encoder.item_codes.run),
        *data_sources(config.data),
    ]


def data_sources(data: DataConfig) -> list[tuple[str, str]]:
    """Options of the section ``data`` that name files or directories, with their values."""
    return [
        ("--data", data.source),
        *(("--data.archive", file) for file in data.archive),
        ("--data.item-table", data.item_table),
        ("--data.item-attributes", data.item_attributes),
        ("--data.item-vectors", data.item_vectors),
        ("--data.vector-ids", data.vector_ids),
    ]


def _check_resumable(directory: Path, config: RunConfig) -> None:
    """Refuse to resume a directory without a run, or with one of another configuration."""
    saved = directory / "config.json"
    if not saved.exists():
        raise CheckpointError(
            f"nothing to resume in {directory}: expected the config.json of a run; start it without --resume"
        )
    changed = differences(to_dict(load_config(saved)), to_dict(config))
    forbidden = {field: pair for field, pair in changed.items() if field not in RESUMABLE}
    if config.optimizer.schedule != "constant" and "training.epochs" in changed:
        forbidden["training.epochs"] = changed["training.epochs"]
    if forbidden:
        changes = "; ".join(f"{field}: saved {a!r}, given {b!r}" for field, (a, b) in forbidden.items())
        raise CheckpointError(
            f"cannot resume {directory} with another configuration: {changes}. Leave these settings out, or start a "
            f"new run in another directory"
        )


def first_parameters(config: RunConfig, directory: Path | None) -> Path | None:
    """Directory of the run whose parameters this one starts from, or None for fresh ones.

    Raises:
      ConfigError: a first stage has no directory to be in.
    """
    if config.pretraining.preset:
        if directory is None:
            raise ConfigError(
                f"--pretraining.preset {config.pretraining.preset} needs a workdir, in which its run is kept: expected a "
                "directory, got None"
            )
        return directory / PRETRAINING
    return Path(config.training.init_from) if config.training.init_from else None


def new_record(
    step: int, config: RunConfig, dataset: SequenceDataset, host_state: HostState
) -> dict[str, Any]:
    """Record of a run in its checkpoint, for `check_record`; of attributes only where the task reads them."""
    record = {
        "step": step,
        "config": to_dict(config),
        "dataset": dataset.fingerprint,
        "host_state": host_state.dump(),
    }
    if config.task.needs_attributes and dataset.attributes is not None:
        record["attributes"] = dataset.attributes.fingerprint
    return record


def check_record(record: dict[str, Any], config: RunConfig, dataset: SequenceDataset) -> None:
    """Reject a checkpoint of other data or of another configuration."""
    check_fingerprint(record, dataset.fingerprint)
    saved, attributes = record.get("attributes"), dataset.attributes
    if saved and attributes is not None and saved != attributes.fingerprint:
        raise CheckpointError(
            f"the checkpoint was trained with attributes of items with fingerprint {saved[:16]}, but these have "
            f"{attributes.fingerprint[:16]}: give the item table that the run began with, or start a new run"
        )
    changed = _changed(record, config)
    if changed:
        changes = "; ".join(f"{field}: saved {a!r}, given {b!r}" for field, (a, b) in changed.items())
        raise CheckpointError(f"the checkpoint belongs to another configuration: {changes}")


def _changed(record: dict[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that may not change between the checkpoint's configuration and ``config``."""
    saved = to_dict(from_dict(record["config"]))
    return {
        field: pair for field, pair in differences(saved, to_dict(config)).items() if field not in RESUMABLE
    }


def stored_config(run: Path) -> RunConfig:
    """The configuration that a run directory holds.

    Raises:
      ConfigError: no run there; runs in folders below it are pointed at.
    """
    try:
        return load_config(run / "config.json")
    except ConfigError as error:
        below = [] if (run / "config.json").exists() else _runs_below(run)
        if not below:
            raise
        raise ConfigError(f"{error}; runs lie below it: name one, such as {below[0]}") from None


def run_config(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration of a run, and the record of its newest checkpoint (empty before the first).

    Raises:
      ConfigError: no run there, or its config.json differs from the configuration of the checkpoint.
    """
    config = stored_config(run)
    reader = CheckpointReader(run / "checkpoints")
    if not reader.steps():
        return config, {}
    record = reader.record()
    changed = _changed(record, config)
    if changed:
        listed = "; ".join(f"{field}: {b!r}, the checkpoint has {a!r}" for field, (a, b) in changed.items())
        raise ConfigError(
            f"{run / 'config.json'} was changed after training: {listed}. Restore these settings: the parameters belong to "
            "the configuration of the checkpoint"
        )
    return config, record


def _runs_below(directory: Path) -> list[Path]:
    """Runs one or two levels below a directory, such as the trials of a study."""
    found = [*directory.glob("*/config.json"), *directory.glob("*/*/config.json")]
    return sorted(path.parent for path in found)


def check_path(directory: Path) -> None:
    """Reject a path in which checkpoints would be lost: they are looked up by a pattern that contains it.

    Raises:
      RunExistsError: the path has square brackets that match other characters than themselves.
    """
    path = str(directory.absolute())
    if glob.has_magic(path) and not fnmatch.fnmatchcase(path, path):
        raise RunExistsError(
            f"workdir {directory} has a path with square brackets, in which checkpoints cannot be stored: choose another "
            f"--workdir, such as {str(directory).replace('[', '(').replace(']', ')')}"
        )


def check_fingerprint(record: dict[str, Any], fingerprint: str) -> None:
    """Reject a checkpoint's ``record`` of a dataset with another ``fingerprint``."""
    if record["dataset"] != fingerprint:
        raise CheckpointError(
            f"the checkpoint was trained on a dataset with fingerprint {record['dataset'][:16]}, but this one has "
            f"{fingerprint[:16]}: give the same file with the same filters, or start a new run"
        )


def restore_best(run: Path, task: Task, seeds: tuple[int, ...], fingerprint: str | None = None) -> Params:
    """The best parameters so far of the run in ``run``, every array with a leading axis of seeds.

    Nothing else is read: neither the optimiser's state nor the current parameters.

    Args:
      run: its directory.
      task: with the encoder, on one device or on a mesh.
      seeds: of the run.
      fingerprint: of the dataset at hand; None = any.

    Raises:
      CheckpointError: no usable checkpoint, it does not fit ``task``, or it is of another dataset.
    """
    reader = CheckpointReader(run / "checkpoints")
    if not reader.directory.is_dir():
        raise CheckpointError(
            f"no checkpoints in {run}: expected the directory of a run that was trained or interrupted"
        )
    if fingerprint is not None:
        check_fingerprint(reader.record(), fingerprint)
    sharding = ParameterSharding(task)
    target = sharding.targets(jnp.asarray(seeds, jnp.uint32))

    def tables() -> dict[str, int]:
        return {f"best/{name}": axis for name, axis in sharding.tables().items()}

    parts, _ = reader.restore({"best": target}, tables=tables, table_rows=task.spec.n_items + 1)
    return parts["best"]
