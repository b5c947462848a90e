"""A finished run, loaded from disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxrec.config import RunConfig, load_config
from jaxrec.data.dataset import SequenceDataset
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.sharding import MeshConfig
from jaxrec.training.loop import seed_params
from jaxrec.training.run_directory import restore_params
from jaxrec.training.setup import Setup, prepare
from jaxrec.training.state import Params


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A saved run, ready to be asked.

    Attributes:
      path: its directory.
      setup: data, split, encoder, configuration.
      params: best parameters, every array with a leading axis of seeds.
    """

    path: Path
    setup: Setup
    params: Params

    @property
    def config(self) -> RunConfig:
        """The configuration that it was trained with."""
        return self.setup.config

    def of_seed(self, index: int) -> Params:
        """One seed's parameters."""
        return seed_params(self.params, index)

    def ranker(self, index: int) -> EncoderRanker:
        """The ranker of one seed."""
        return self.setup.ranker(self.of_seed(index))


def open_run(
    run: str | Path,
    dataset: SequenceDataset | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
) -> OpenRun:
    """Load a run's data and best parameters.

    Args:
      run: run directory.
      mesh: devices to work on, whatever those it was trained on.
      dataset: in place of the one that the run's configuration names; its fingerprint must be the same.

    Raises:
      ConfigError: no run there.
      CheckpointError: no usable checkpoint, or the dataset is another.
    """
    run = Path(run)
    config = dataclasses.replace(load_config(run / "config.json"), mesh=mesh)
    setup = prepare(config, dataset)
    params = restore_params(run, setup.config, setup.task, None, fingerprint=setup.dataset.fingerprint)
    return OpenRun(run, setup, params)


def run_names(runs: Sequence[str | Path]) -> list[str]:
    """Short names of run directories: their last parts, or their paths where those would be the same."""
    names = [Path(run).name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
