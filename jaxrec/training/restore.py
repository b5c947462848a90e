"""Parameters of a finished or interrupted run, for evaluation and serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.errors import CheckpointError
from jaxrec.training.checkpoint import CheckpointStore, abstract
from jaxrec.training.config import RunConfig
from jaxrec.training.mesh import Layout
from jaxrec.training.state import Params, initial_state


def check_fingerprint(record: dict[str, Any], fingerprint: str) -> None:
    """Refuse a checkpoint's ``record`` of a dataset with another ``fingerprint``."""
    if record["dataset"] != fingerprint:
        raise CheckpointError(
            f"the checkpoint was trained on a dataset with fingerprint {record['dataset'][:16]}, but this one has "
            f"{fingerprint[:16]}: give the same file with the same filters, or start a new run"
        )


def restore_params(
    run: Path, config: RunConfig, encoder: nn.Module, index: int | None = 0, *, fingerprint: str | None = None
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
        shapes = jax.eval_shape(jax.vmap(lambda seed: initial_state(encoder, optimizer, seed)), seeds)
        layout = Layout(encoder, optimizer)
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
