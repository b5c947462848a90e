"""Codes of the items of a run, computed before its first step: from training interactions, or from another run's vectors."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxrec.data.quantisation import cooccurrence_factors, item_codes
from jaxrec.errors import ConfigError
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.training.item_content import filled
from jaxrec.training.run_directory import restore_best, run_config
from jaxrec.training.setup import TrainingSetup, build_task, data_spec
from jaxrec.training.state import Params
from jaxrec.training.state_sharding import ParameterSharding


def with_codes(params: Params, setup: TrainingSetup) -> Params:
    """Put learned codes of the items into the parameters of all seeds; random codes are there already.

    Each seed has codes of its own, which follow from the data and the seed. Several processes take those of the first.

    Args:
      params: every array with a leading axis of seeds.
      setup: of the run.

    Raises:
      ConfigError: the run that the codes come from was trained on another split.
      CheckpointError: that run has no usable checkpoint, or is of another dataset.
    """
    codes = setup.config.encoder.item_codes
    if not codes.learned:
        return params
    stacked = np.stack([_codes_of(codes, setup, seed) for seed in setup.config.training.seeds])
    if jax.process_count() > 1:
        stacked = np.asarray(multihost_utils.broadcast_one_to_all(stacked))
    return filled(params, {"codes": stacked.astype(np.float32)}, setup.sharding)


def _codes_of(codes: ItemCodesConfig, setup: TrainingSetup, seed: int) -> np.ndarray:
    """int32[V+1, C], the codes of one seed."""
    if codes.run:
        vectors = trained_vectors(Path(codes.run), setup, seed)
    else:
        vectors = cooccurrence_factors(setup.split, codes.factors)
    assert codes.method == "product" or codes.method == "residual"
    return item_codes(vectors, codes.method, codes.count, codes.size, seed)


def trained_vectors(source: Path, setup: TrainingSetup, seed: int) -> np.ndarray:
    """Item vectors float32[V, D] of a finished run: of this ``seed``, or of its first where it has no such seed.

    Args:
      source: directory of the run.
      setup: of the run that is to have the codes.
      seed: of that run.

    Raises:
      ConfigError: there is no run, or it was trained on another split, whose training part may hold this one's targets.
      CheckpointError: it has no usable checkpoint, or is of another dataset.
    """
    saved, _ = run_config(source)
    if saved.split != setup.config.split:
        raise ConfigError(
            f"--encoder.item-codes.run {source} was trained on another split than this run's: expected the same options "
            "--split.*, since its training part may hold held-out interactions of this one; train it on this split"
        )
    task = build_task(saved, data_spec(saved, setup.dataset))
    stacked = restore_best(source, task, saved.training.seeds, setup.dataset.fingerprint)
    seeds = saved.training.seeds
    params = ParameterSharding(task).seed_params(stacked, seeds.index(seed) if seed in seeds else 0)
    vectors = np.asarray(jnp.asarray(task.encoder.item_table(params).vectors, jnp.float32))
    return vectors[1 : setup.dataset.n_items + 1]
