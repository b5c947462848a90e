"""Rules of a run directory: who may write into it, what resumes, and how its parameters are restored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.config import RunConfig, differences, from_dict, load_config, to_dict
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import (
    CheckpointError,
    DistributedError,
    JaxrecError,
    RunExistsError,
)
from jaxrec.tasks import Task
from jaxrec.training.checkpoint import CheckpointStore, abstract
from jaxrec.training.distributed import decided, is_first
from jaxrec.training.state import Params, initial_state
from jaxrec.training.state_sharding import Layout

#: Settings that a resumed run may change: they decide when it stops, how data gets in and on which devices it runs, not
#: what a step does (beyond rounding, where the mesh is another).
RESUMABLE = (
    "training.epochs",
    "training.patience",
    "training.checkpoint_seconds",
    "training.keep_checkpoints",
    "training.feed",
    "training.resident_share",
    "mesh.data",
    "mesh.item",
)


def _claim_together(directory: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """`claim_directory` by the first process; where it refuses, all do."""
    refused: Exception | None = None
    if is_first():
        try:
            claim_directory(directory, config, resume, overwrite)
        except (JaxrecError, OSError) as error:
            refused = error
    if decided(refused is not None):
        raise refused or DistributedError(
            f"the first process refused the run directory {directory}: its message says why"
        )


def claim_directory(directory: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Make ``directory`` ours, or refuse; see `train`."""
    saved = directory / "config.json"
    if resume:
        if not saved.exists():
            raise CheckpointError(
                f"nothing to resume in {directory}: expected the config.json of a run; start it without --resume"
            )
        changed = differences(to_dict(load_config(saved)), to_dict(config))
        forbidden = {field: pair for field, pair in changed.items() if field not in RESUMABLE}
        if config.optimizer.schedule != "constant" and "training.epochs" in changed:
            forbidden["training.epochs"] = changed["training.epochs"]
        if forbidden:
            told = "; ".join(f"{field}: saved {a!r}, given {b!r}" for field, (a, b) in forbidden.items())
            raise CheckpointError(
                f"cannot resume {directory} with another configuration: {told}. Leave these settings out, or start a "
                f"new run in another directory"
            )
        return
    if directory.exists() and not directory.is_dir():
        raise RunExistsError(f"workdir {directory} is a file; expected a directory that is new or empty")
    if directory.exists() and any(directory.iterdir()):
        if not overwrite:
            raise RunExistsError(
                f"workdir {directory} is not empty: expected a new or empty directory. Continue its run with --resume, "
                "delete it with --overwrite, or choose another --workdir"
            )
        if not saved.exists():
            raise RunExistsError(
                f"workdir {directory} holds files but no run (no config.json), so --overwrite leaves it alone; "
                "empty it yourself or choose another --workdir"
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)


def check_record(record: dict[str, Any], config: RunConfig, dataset: SequenceDataset) -> None:
    """Refuse a checkpoint of other data or of another configuration."""
    check_fingerprint(record, dataset.fingerprint)
    changed = {
        field: pair
        for field, pair in differences(to_dict(from_dict(record["config"])), to_dict(config)).items()
        if field not in RESUMABLE
    }
    if changed:
        told = "; ".join(f"{field}: saved {a!r}, given {b!r}" for field, (a, b) in changed.items())
        raise CheckpointError(f"the checkpoint belongs to another configuration: {told}")


def check_fingerprint(record: dict[str, Any], fingerprint: str) -> None:
    """Refuse a checkpoint's ``record`` of a dataset with another ``fingerprint``."""
    if record["dataset"] != fingerprint:
        raise CheckpointError(
            f"the checkpoint was trained on a dataset with fingerprint {record['dataset'][:16]}, but this one has "
            f"{fingerprint[:16]}: give the same file with the same filters, or start a new run"
        )


def restore_params(
    run: Path, config: RunConfig, task: Task, index: int | None = 0, *, fingerprint: str | None = None
) -> Params:
    """The best parameters so far of the run in ``run``: of one seed, or of all (leading axis) with ``index`` None.

    Raises:
      CheckpointError: no usable checkpoint, it does not fit ``config``, or it is of a dataset with another
        ``fingerprint`` than the one given.
    """
    if not (run / "checkpoints").is_dir():
        raise CheckpointError(
            f"no checkpoints in {run}: expected the directory of a run that was trained or interrupted"
        )
    store = CheckpointStore(run / "checkpoints")
    try:
        record = store.record()
        if fingerprint is not None:
            check_fingerprint(record, fingerprint)
        optimizer = config.optimizer.build(2)
        seeds = jnp.asarray(config.training.seeds, jnp.uint32)
        shapes = jax.eval_shape(jax.vmap(lambda seed: initial_state(task, optimizer, seed)), seeds)
        layout = Layout(task, optimizer)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = layout.shardings() or jax.tree.map(lambda _: device, shapes)
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            (shapes, shapes.params),
            (shardings, shardings.params),
        )
        (_, best), _ = store.restore(abstract(target), record["step"], **layout.tables())
    finally:
        store.close()
    return best if index is None else layout.seed_params(best, index)
