"""Start a run from the parameters of a finished one, as fine-tuning after pretraining does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset, open_dataset
from jaxrec.data.readers.vectors import made_of_attributes
from jaxrec.data.splits import split_dataset
from jaxrec.errors import CheckpointError, ConfigError
from jaxrec.files import as_word
from jaxrec.nn.spec import DataSpec
from jaxrec.optim import is_frozen
from jaxrec.training.run_directory import CATALOGUE, restore_best, run_config
from jaxrec.training.setup import TrainingSetup, build_task, data_spec
from jaxrec.training.state import Params
from jaxrec.training.state_sharding import on_mesh
from jaxrec.training.trees import flatten, path_name

#: Vectors of users, matched by their ids where the data is another.
USERS = "users/table"
#: Vectors of items, and their map, whose rows are attributes where the vectors are made of these.
CONTENT, CONTENT_MAP = "items/content", "items/content_kernel"


def belongs_to_task(name: str) -> bool:
    """Tell whether a parameter is the task's rather than the encoder's: its heads, and tokens beside the items."""
    return name.startswith("task/") or name.endswith("items/special")


def _comes_from_data(name: str) -> bool:
    """Tell whether the new run has a parameter from its own dataset; codes belong to the tables that they point into."""
    return is_frozen(name.split("/")) and not name.endswith("/codes")


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
      items: numbers of items that were matched and of those that start fresh, or None where the dataset is the same.
    """

    params: Params
    source: Path
    copied: list[str]
    fresh: list[str]
    unused: list[str]
    seeds: list[int]
    items: tuple[int, int] | None = None

    def summary(self) -> str:
        """One line for people: what was copied, what is fresh, what was left behind."""
        parts = [
            f"{len(self.copied)} arrays copied from {self.source} (seeds {', '.join(map(str, self.seeds))})"
        ]
        if self.items is not None:
            parts.append(f"{self.items[0]} items matched by id, {self.items[1]} new")
        parts += [f"fresh: {', '.join(self.fresh)}"] if self.fresh else []
        parts += [f"not used: {', '.join(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def initialize_from(source: Path, params: Params, setup: TrainingSetup) -> Initialization:
    """Replace the encoder's parameters by the best ones of the run in ``source``.

    Args:
      source: directory of a run with the same encoder; rates of dropout may differ. Of the same dataset, or with
        ``training.init_items`` "match" of one that shares items.
      params: fresh parameters of the new run, every array with a leading axis of seeds.
      setup: of the new run.

    Raises:
      ConfigError: there is no run in ``source``.
      CheckpointError: the run has no usable checkpoint, is of another dataset, was trained on interactions that this one
        holds out, or has another encoder; the message names the arrays and sizes that differ.
    """
    saved, record = run_config(source)
    methods = saved.encoder.item_codes.method, setup.config.encoder.item_codes.method
    if methods[0] != methods[1]:
        raise CheckpointError(
            f"--init-from {source} composes its items by another rule: expected --encoder.item-codes.method {methods[0]}, "
            f"got {methods[1]}; give both runs the same"
        )
    match = setup.config.training.init_items == "match" and bool(record)
    catalogue = _catalogue(source) if match else setup.dataset
    # Its arrays lie where the new run's do; what else it was computed with, such as groups of rows, is no matter here.
    task = build_task(saved, _spec(saved, catalogue, match))
    task = dataclasses.replace(task, encoder=on_mesh(task.encoder, setup.mesh))
    fingerprint = None if match else setup.dataset.fingerprint
    stacked = restore_best(source, task, saved.training.seeds, fingerprint)
    if not match:
        _check_split(source, saved, setup)
    old, new = flatten(stacked), flatten(params)
    copied = [name for name in new if not belongs_to_task(name) and not _comes_from_data(name)]
    tables = setup.sharding.parameter_tables() if match else {}
    attributes = _matching_attributes(catalogue, old, setup) if match else None
    sizes = {**tables, USERS: 1} if match else {}
    same = {**sizes, CONTENT_MAP: 1} if attributes is not None else sizes
    _check_same_encoder(source, old, new, same)
    rows = _matching_rows(catalogue, setup) if match else None
    rows_of = {} if rows is None else dict.fromkeys(tables, rows)
    if attributes is not None:
        rows_of[CONTENT_MAP] = attributes
    if match and USERS in new:
        rows_of[USERS] = _matching_users(catalogue, setup)
    saved_seeds = list(saved.training.seeds)
    index = [saved_seeds.index(seed) if seed in saved_seeds else 0 for seed in setup.config.training.seeds]

    def merged(stacked: Params, params: Params) -> Params:
        theirs = flatten(stacked)

        def pick(path: Any, leaf: Array) -> Array:
            name = path_name(path)
            if name not in copied:
                return leaf
            taken = theirs[name][jnp.asarray(index)]
            if name not in rows_of:
                return taken
            source_rows = rows_of[name]
            place = jnp.asarray(
                np.pad(source_rows, (0, leaf.shape[1] - len(source_rows)), constant_values=-1)
            )
            mask = (place >= 0).reshape(1, -1, *(1,) * (leaf.ndim - 2))
            return jnp.where(mask, jnp.take(taken, jnp.maximum(place, 0), axis=1), leaf)

        return jax.tree_util.tree_map_with_path(pick, params)

    shardings = setup.sharding.shardings()
    place = None if shardings is None else shardings.params
    return Initialization(
        params=jax.jit(merged, out_shardings=place)(stacked, params),
        source=source,
        copied=copied,
        fresh=[name for name in new if name not in copied and not _comes_from_data(name)],
        unused=[name for name in old if name not in new],
        seeds=[saved_seeds[i] for i in index],
        items=None if rows is None else (int((rows[1:] >= 0).sum()), int((rows[1:] < 0).sum())),
    )


def _check_split(source: Path, saved: RunConfig, setup: TrainingSetup) -> None:
    """Refuse a source whose training part holds interactions that this run holds out.

    Raises:
      CheckpointError: it does.
    """
    if saved.split == setup.config.split:
        return
    theirs = split_dataset(setup.dataset, saved.split).training_mask
    leaked = int(np.sum(theirs & ~setup.split.training_mask))
    if leaked:
        raise CheckpointError(
            f"--init-from {source} was trained on another split, with {leaked:,} interactions that are held out here: "
            f"expected its options --split.*, such as --split.strategy {saved.split.strategy}, or a run whose training part "
            "lies inside this one's; train one on this split"
        )


def _catalogue(source: Path) -> SequenceDataset:
    """Items of a finished run."""
    if not (source / CATALOGUE).is_dir():
        raise ConfigError(
            f"--training.init-items match needs the catalogue of a finished run: got {source} without one; finish it with "
            f"jaxrec train --workdir {as_word(source)} --resume"
        )
    return open_dataset(source / CATALOGUE)


def _spec(saved: RunConfig, catalogue: SequenceDataset, match: bool) -> DataSpec:
    """Sizes of the source; times are those of the new run, and a catalogue may have no users but their number."""
    spec = dataclasses.replace(data_spec(saved, catalogue), has_timestamps=True)
    users = catalogue.meta.get("users", spec.n_users) if match else spec.n_users
    return dataclasses.replace(spec, n_users=int(users))


def _matching_rows(catalogue: SequenceDataset, setup: TrainingSetup) -> np.ndarray:
    """int32[V+1], the row of the source for each item, or -1; row 0 is padding in both.

    Raises:
      CheckpointError: no item is in both.
    """
    rows = catalogue.item_indices(setup.dataset.item_ids).astype(np.int32)
    if not rows.any():
        raise CheckpointError(
            f"--training.init-items match found no item of {setup.dataset.name!r} in the run's catalogue (the first ids "
            f"are {setup.dataset.item_ids[0]!r} and {catalogue.item_ids[0]!r}): give data with the same ids"
        )
    return np.concatenate([np.zeros(1, np.int32), np.where(rows > 0, rows, -1)])


def _matching_users(catalogue: SequenceDataset, setup: TrainingSetup) -> np.ndarray:
    """int32[U], the row of the source for each user, by original id, or -1."""
    numbers = {str(name): row for row, name in enumerate(catalogue.user_ids)}
    return np.array([numbers.get(str(name), -1) for name in setup.dataset.user_ids], np.int32)


def _matching_attributes(
    catalogue: SequenceDataset, old: Mapping[str, Array], setup: TrainingSetup
) -> np.ndarray | None:
    """int32[C], the row of the source's map for each attribute, by name, or -1; None where items are made of something else.

    Attributes are numbered as they appear, so another log, even one of the same items, has another order of them.
    """
    here, there = setup.dataset.attributes, catalogue.attributes
    if CONTENT not in old or here is None or there is None:
        return None
    vectors = old[CONTENT]
    # Each of several processes may hold the rows of some items.
    whole = (
        vectors if vectors.is_fully_addressable else multihost_utils.process_allgather(vectors, tiled=True)
    )
    content = np.asarray(whole)[0, 1 : catalogue.n_items + 1]
    if not made_of_attributes(there, content) or not made_of_attributes(here, setup.dataset.item_vectors):
        return None
    numbers = {name: row for row, name in enumerate(list(there.names)[: content.shape[1]])}
    names = list(here.names)[: setup.dataset.vector_width]
    return np.array([numbers.get(name, -1) for name in names], np.int32)


def _check_same_encoder(
    source: Path, old: Mapping[str, Any], new: Mapping[str, Any], tables: Mapping[str, int]
) -> None:
    """Reject a source whose encoder has other arrays, apart from those of its task and the length of ``tables``."""

    def size(arrays: Mapping[str, Any], name: str) -> str:
        if name not in arrays:
            return "absent"
        return "x".join(map(str, arrays[name].shape[2 if name in tables else 1 :])) or "number"

    frozen = (name for name in {**new, **old} if is_frozen(name.split("/")) and name.startswith("users/"))
    left_out = set(frozen) if tables else set()
    if CONTENT_MAP in tables:  # matched by the names of attributes, of which there may be more or fewer
        left_out.add(CONTENT)
    names = [name for name in {**new, **old} if not belongs_to_task(name) and name not in left_out]
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
