"""Start a run from the parameters of a finished one, as fine-tuning after pretraining does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.errors import CheckpointError
from jaxrec.training.run_directory import restore_best, run_config
from jaxrec.training.setup import TrainingSetup, build_task, data_spec
from jaxrec.training.state import Params
from jaxrec.training.trees import flatten, path_name


def belongs_to_task(name: str) -> bool:
    """Tell whether a parameter is the task's rather than the encoder's: its heads, and tokens beside the items."""
    return name.startswith("task/") or name.endswith("items/special")


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Origin of a run's first parameters.

    Attributes:
      params: first parameters of the new run, every array with a leading axis of seeds.
      source: directory of the run they come from.
      copied: names of the arrays that were copied.
      fresh: names of the arrays that were drawn anew.
      unused: names of the arrays of the source that have no counterpart.
      seeds: seed of the source that each seed of the new run starts from.
    """

    params: Params
    source: Path
    copied: list[str]
    fresh: list[str]
    unused: list[str]
    seeds: list[int]

    def summary(self) -> str:
        """One line for people: what was copied, what is fresh, what was left behind."""
        parts = [
            f"{len(self.copied)} arrays copied from {self.source} (seeds {', '.join(map(str, self.seeds))})"
        ]
        parts += [f"fresh: {', '.join(self.fresh)}"] if self.fresh else []
        parts += [f"not used: {', '.join(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def initialize_from(source: Path, params: Params, setup: TrainingSetup) -> Initialization:
    """Replace the encoder's parameters by the best ones of the run in ``source``.

    Args:
      source: directory of a run of the same dataset with the same encoder; rates of dropout may differ.
      params: fresh parameters of the new run, every array with a leading axis of seeds.
      setup: of the new run.

    Raises:
      ConfigError: there is no run in ``source``.
      CheckpointError: the run has no usable checkpoint, is of another dataset, or has another encoder; the message
        names the arrays and sizes that differ.
    """
    saved, _ = run_config(source)
    task = build_task(saved, data_spec(saved, setup.dataset), setup.mesh)
    stacked = restore_best(source, task, saved.training.seeds, setup.dataset.fingerprint)
    old, new = flatten(stacked), flatten(params)
    copied = [name for name in new if not belongs_to_task(name)]
    _check_same_encoder(source, old, new)
    saved_seeds = list(saved.training.seeds)
    index = [saved_seeds.index(seed) if seed in saved_seeds else 0 for seed in setup.config.training.seeds]

    def merged(stacked: Params, params: Params) -> Params:
        rows = flatten(stacked)

        def pick(path: Any, leaf: Array) -> Array:
            name = path_name(path)
            return rows[name][jnp.asarray(index)] if name in copied else leaf

        return jax.tree_util.tree_map_with_path(pick, params)

    shardings = setup.sharding.shardings()
    place = None if shardings is None else shardings.params
    return Initialization(
        params=jax.jit(merged, out_shardings=place)(stacked, params),
        source=source,
        copied=copied,
        fresh=[name for name in new if name not in copied],
        unused=[name for name in old if name not in new],
        seeds=[saved_seeds[i] for i in index],
    )


def _check_same_encoder(source: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Reject a source whose encoder has other arrays, apart from those of its task."""

    def size(arrays: Mapping[str, Any], name: str) -> str:
        return "x".join(map(str, arrays[name].shape[1:])) if name in arrays else "absent"

    names = [name for name in {**new, **old} if not belongs_to_task(name)]
    problems = [
        f"{name}: saved {size(old, name)}, needed {size(new, name)}"
        for name in names
        if size(old, name) != size(new, name)
    ]
    if problems:
        remainder = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(
            f"--init-from {source} has another encoder than this run: {'; '.join(problems[:6])}{remainder}. Give both runs "
            "the same encoder options and --batches.max-length"
        )
