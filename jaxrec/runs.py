"""Runs on disk: configuration, data, parameters, rankers and saved ranks of a run directory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.data.dataset import SequenceDataset, check_dataset, open_dataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.load import load_dataset
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.evaluation.ranker import EncoderRanker, RankingData
from jaxrec.files import as_path, as_word
from jaxrec.models.base import Encoder
from jaxrec.sharding import MeshConfig, build_mesh
from jaxrec.tasks import Task
from jaxrec.training.run_directory import CATALOGUE, check_fingerprint, restore_best, run_config
from jaxrec.training.setup import ModelSetup, build_task, data_spec, prepare_model
from jaxrec.training.state import Params
from jaxrec.training.state_sharding import ParameterSharding

#: Beside the catalogue: training interactions of each item.
ITEM_COUNTS = "item_counts.npy"


def stored_dataset(run: Path, config: DataConfig, source: str = "") -> SequenceDataset:
    """Load the dataset of a run from where its configuration says, or from its new place.

    Args:
      run: its directory, for messages.
      config: its options of data.
      source: where the data are now; "" = where they were.

    Raises:
      DataError: the data are not there, or cannot be read.
    """
    if source:
        return load_dataset(config.moved(source))
    try:
        return load_dataset(config)
    except DataError as error:
        if not str(error).startswith("no file"):
            raise
        raise DataError(
            f"no file {config.source!r}, from which run {run} was trained: if it has moved, give its new place (--data, in "
            "Python dataset=); a relative path counts from the current folder"
        ) from None


class Run:
    """A run directory. Everything is read on first use; nothing of it is changed.

    >>> run = Run("runs/a")                              # doctest: +SKIP
    >>> run.metrics["NDCG@10"], run.seeds                # doctest: +SKIP
    >>> run.ranker(seed=0).top_k(histories, k=10)        # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        dataset: SequenceDataset | None = None,
        mesh: MeshConfig | None = None,
        source: str = "",
    ):
        """Open a run.

        Args:
          path: its directory.
          dataset: in place of the one that the run's configuration names; its fingerprint must be the same.
          mesh: devices to work on, whatever those it was trained on; None = one device.
          source: where the dataset is now, if it has moved and ``dataset`` is not given.

        Raises:
          ConfigError: no run there, or its configuration was changed after training.
          DataError: ``dataset`` is no dataset.
        """
        if dataset is not None:
            check_dataset(dataset)
        self.path = as_path(path, "the run directory")
        self.config, self._record = run_config(self.path)
        self._mesh = MeshConfig() if mesh is None else mesh
        self._dataset = dataset
        self._source = source

    def __repr__(self) -> str:
        finished = "finished" if (self.path / "results.json").exists() else "unfinished"
        return f"Run({str(self.path)!r}, {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}, {finished})"

    @property
    def name(self) -> str:
        """The last part of the directory's path."""
        return self.path.absolute().name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the run's models."""
        return self.config.training.seeds

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``.

        Raises:
          ConfigError: the run is not finished, or the file is damaged.
        """
        try:
            values = json.loads((self.path / "results.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise self._unfinished() from None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path / 'results.json'} is damaged ({error}): write it again with {self._finishing}"
            ) from None
        return dict(values)

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics, mean over seeds."""
        return {name: value["mean"] for name, value in self.results["metrics"].items()}

    @functools.cached_property
    def catalogue(self) -> SequenceDataset:
        """Ids, titles and attributes of the items; without users, or with their ids alone where the model reads them.

        Raises:
          ConfigError: the run is not finished.
          DataError: the catalogue is damaged.
        """
        if not (self.path / CATALOGUE).is_dir():
            raise self._unfinished()
        # In memory: a run may be replaced under a process that answers from it, whose numbers belong to these ids.
        return open_dataset(self.path / CATALOGUE, verify=True, in_memory=True)

    @functools.cached_property
    def item_counts(self) -> np.ndarray | None:
        """int64[V+1], training interactions of each item; None for runs that saved none.

        Raises:
          DataError: the file is damaged.
        """
        file = self.path / ITEM_COUNTS
        if not file.exists():
            return None
        try:
            content = io.BytesIO(file.read_bytes())
            counts = np.load(content, allow_pickle=False)
            end = content.tell()
            digest = content.read()
            # Runs of earlier versions have none.
            if digest and digest != hashlib.sha256(content.getvalue()[:end]).digest():
                raise ValueError("its digest is another")
        except Exception as error:  # NumPy raises errors of many kinds for a damaged header
            raise DataError(f"{file} is damaged ({error}): write it again with {self._finishing}") from None
        if counts.shape != (self.catalogue.n_items + 1,):
            raise DataError(f"{file} must have {self.catalogue.n_items + 1} counts, got shape {counts.shape}")
        return np.asarray(counts)

    @property
    def fingerprint(self) -> str | None:
        """Of the dataset that the run was trained on; None before its first checkpoint."""
        return self._record.get("dataset")

    @functools.cached_property
    def setup(self) -> ModelSetup:
        """Data, split and encoder.

        Raises:
          CheckpointError: the dataset is another.
          DataError: it is not where the configuration says.
        """
        dataset = self._dataset
        if dataset is None:
            dataset = stored_dataset(self.path, self.config.data, self._source)
        setup = prepare_model(dataclasses.replace(self.config, mesh=self._mesh), dataset)
        if self._record:
            check_fingerprint(self._record, setup.dataset.fingerprint)
        return setup

    @property
    def dataset(self) -> SequenceDataset:
        """The dataset, loaded from where the configuration says."""
        return self.setup.dataset

    @functools.cached_property
    def task(self) -> Task:
        """The task with its encoder; of a finished run without loading the dataset."""
        if self._has_data:
            return self.setup.task
        mesh = build_mesh(self._mesh, 0, self.catalogue.n_items)
        spec = dataclasses.replace(
            data_spec(self.config, self.catalogue),
            has_timestamps=True,
            # Sizes what a task remembers; catalogues of other tasks may lack it.
            n_users=int(self.catalogue.meta.get("users", self.catalogue.n_users)),
        )
        return build_task(self.config, spec, mesh)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the task."""
        return self.task.encoder

    @property
    def _has_data(self) -> bool:
        """Whether the dataset is loaded, or is needed for want of a catalogue."""
        return "setup" in vars(self) or self._dataset is not None or not (self.path / CATALOGUE).is_dir()

    @functools.cached_property
    def best_params(self) -> Params:
        """The best parameters so far, every array with a leading axis of seeds.

        Raises:
          CheckpointError: no usable checkpoint, or it does not fit the configuration or the catalogue.
        """
        fingerprint = (
            self.dataset.fingerprint if self._has_data else self.catalogue.meta["source_fingerprint"]
        )
        return restore_best(self.path, self.task, self.seeds, fingerprint)

    def params(self, seed: int | None = None) -> Params:
        """The best parameters of one seed (by default the first).

        Raises:
          ConfigError: the run has no such seed.
          CheckpointError: see `best_params`.
        """
        if seed is not None and seed not in self.seeds:
            raise ConfigError(f"--seed must be one of the run's {self.seeds}, got {seed}")
        index = 0 if seed is None else self.seeds.index(seed)
        return ParameterSharding(self.task).seed_params(self.best_params, index)

    def ranker(self, seed: int | None = None) -> EncoderRanker:
        """The ranker of one seed (by default the first); see `params`."""
        if self._has_data:
            return self.setup.ranker(self.params(seed))
        config, forward = self.config, Forward(self.encoder, self.task.mask, self.task.query_token)
        data = RankingData(self.catalogue.meta["source_fingerprint"], self.item_counts)
        return EncoderRanker.build(forward, self.params(seed), config.batches, config.evaluation, data)

    def evaluate(self, split: Literal["valid", "test"] = "test") -> list[Evaluation]:
        """Ranks of the held-out targets, computed again from the checkpoint: one `Evaluation` per seed."""
        cases = self.setup.split.cases(split)
        return [self.setup.evaluate(self.params(seed), cases) for seed in self.seeds]

    def ranks(self, split: Literal["valid", "test"] = "test") -> list[tuple[Evaluation, dict[str, Any]]]:
        """The saved ranks of every seed, each with its fingerprint, split options, part and seed.

        Raises:
          DataError: the run is not finished, or a file is missing or damaged.
        """
        files = [self.path / "ranks" / f"{split}_seed{seed}.npz" for seed in self.seeds]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise DataError(
                f"no saved {split} ranks in {self.path}: expected the directory of a finished run, but ranks/{missing[0]} "
                f"is missing; finish it with {self._finishing}"
            )
        return [Evaluation.load(file) for file in files]

    @property
    def _finishing(self) -> str:
        """The command that writes what the run lacks."""
        return f"jaxrec train --workdir {as_word(self.path)} --resume"

    def _unfinished(self) -> ConfigError:
        return ConfigError(f"the run in {self.path} is not finished: finish it with {self._finishing}")


def run_names(runs: Sequence[str | Path]) -> list[str]:
    """Short names of run directories: their last parts, or their paths where those would be the same.

    Raises:
      ConfigError: one is no path.
      DataError: a directory is given twice.
    """
    places = [os.path.realpath(as_path(run, "RUN")) for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise DataError(f"RUN: expected different run directories, got {twice} twice: give it once")
    names = [Path(os.path.abspath(run)).name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
