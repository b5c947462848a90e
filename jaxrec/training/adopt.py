"""Write a run of parameters that were made elsewhere: evaluated, saved and ready to continue, without a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import CheckpointError
from jaxrec.training.checkpoint import CheckpointStore
from jaxrec.training.host_state import HostState
from jaxrec.training.logging import MetricsLog
from jaxrec.training.loop import FitResult
from jaxrec.training.run_directory import check_directory, empty_directory, new_record
from jaxrec.training.setup import TrainingSetup, prepare
from jaxrec.training.trees import flatten, path_name


def adopt(
    config: RunConfig,
    arrays: Mapping[str, np.ndarray],
    dataset: SequenceDataset,
    workdir: Path,
    origin: Mapping[str, Any],
    overwrite: bool,
    sources: Sequence[tuple[str, str]],
) -> FitResult:
    """Evaluate parameters and save them as the checkpoint of a run of 0 steps.

    The caller writes ``config.json`` (`jaxrec.config.save_config`) after all other files: a directory with it that lacks
    others could be resumed, and resuming would train what was only to be kept.

    Args:
      config: of the run.
      arrays: parameters by name (``items/table``), every array with a leading axis of the seeds of ``config``.
      dataset: whose held-out targets are ranked.
      workdir: run directory.
      origin: entries of the first line of its log.
      overwrite: delete a run that is already in ``workdir``.
      sources: what the parameters are made of, as (option, file or directory), which is not deleted.

    Raises:
      CheckpointError: an array is missing, left over, or of another shape; the first is named.
      RunExistsError: ``workdir`` holds a run, or one of ``sources``.
    """
    # Before anything is compiled.
    present = check_directory(workdir, config, False, overwrite, option="--out", sources=sources)
    setup = prepare(config, dataset)
    seeds = np.asarray(config.training.seeds, np.uint32)
    state = jax.jit(setup.sharding.fresh)(seeds)
    _check(arrays, flatten(state.params))
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(arrays[path_name(path)], jnp.float32), state.params
    )
    state = state._replace(params=params)
    empty_directory(workdir, present)
    valid, test = _evaluations(setup, params, "valid"), _evaluations(setup, params, "test")
    host_state = HostState.start(len(seeds))
    scores = [float(evaluation.metrics[config.metric]) for evaluation in valid]
    host_state.update(scores, 0, config.training)
    MetricsLog(workdir / "log.jsonl", None).write(step=0, valid={config.metric: scores}, **origin)
    store = CheckpointStore(workdir / "checkpoints", config.training.keep_checkpoints)
    record = new_record(0, config, setup.dataset, host_state)
    try:
        store.save(0, {"state": state, "best": params}, record, float(np.mean(scores)))
    finally:
        store.close()
    return FitResult(setup, params, valid, test, host_state, workdir, 0)


def _check(arrays: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in (*expected, *arrays):
        need = list(expected[name].shape[1:]) if name in expected else "nothing of this name"
        have = list(arrays[name].shape[1:]) if name in arrays else "none"
        if need != have:
            raise CheckpointError(
                f"the parameters do not fit the encoder: expected {name} {need}, got {have}; give the options of the "
                "encoder that they were made for"
            )


def _evaluations(setup: TrainingSetup, params: Any, part: Any) -> list[Any]:
    cases = setup.split.cases(part)
    seeds = range(len(setup.config.training.seeds))
    return [setup.evaluate(setup.sharding.seed_params(params, seed), cases) for seed in seeds]
