"""The calls that a script makes; every command of the command line is one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxrec.analysis.beyond_accuracy import beyond_accuracy_of
from jaxrec.analysis.checks import Checks, run_checks
from jaxrec.config import RunConfig, to_dict
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.errors import ConfigError
from jaxrec.evaluation.baselines import evaluate_baselines
from jaxrec.evaluation.evaluate import check_cutoffs
from jaxrec.evaluation.metrics import over_seeds
from jaxrec.evaluation.ranking import check_list_length
from jaxrec.presets import named_config
from jaxrec.pretraining import pretrain
from jaxrec.reporting.results import describe_dataset, describe_split, write_run
from jaxrec.runs import Run
from jaxrec.sharding import MeshConfig
from jaxrec.training.distributed import is_first, meet
from jaxrec.training.loop import FitResult, train
from jaxrec.training.run_directory import run_lock
from jaxrec.training.setup import prepare


@dataclasses.dataclass(frozen=True, repr=False)
class FittedRun:
    """A run that this process has trained.

    Attributes:
      results: the content of ``results.json``.
      fit: data, parameters and per-user ranks, in memory.
      workdir: the run directory, or None.
    """

    results: dict[str, Any]
    fit: FitResult
    workdir: Path | None

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics, mean over seeds."""
        return {name: value["mean"] for name, value in self.results["metrics"].items()}

    @property
    def run(self) -> Run:
        """The run on disk.

        Raises:
          ConfigError: the run was trained in memory.
        """
        if self.workdir is None:
            raise ConfigError("this run was trained in memory: give fit a workdir to have it on disk")
        return Run(self.workdir, self.fit.setup.dataset)

    def __repr__(self) -> str:
        metric = "NDCG@10" if "NDCG@10" in self.metrics else next(iter(self.metrics))
        place = "in memory" if self.workdir is None else f"in {str(self.workdir)!r}"
        dataset = self.results["dataset"]["name"]
        return f"<FittedRun on {dataset}, {place}: test {metric} {self.metrics[metric]:.4f}>"


def fit(
    dataset: SequenceDataset | None = None,
    config: RunConfig | str = "sasrec",
    workdir: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> FittedRun:
    """Train, evaluate, and write the run directory.

    Args:
      dataset: from `load_dataset`; None = the one that ``config.data`` names (by default the bundled MovieTweetings).
      config: a `RunConfig`, the name of a preset, or the directory of a run for its configuration.
      workdir: run directory; None trains in memory.
      resume: continue the run in ``workdir``.
      overwrite: delete a run that is already in ``workdir``.
      progress: show a progress bar on standard error.

    Raises:
      JaxrecError: as `jaxrec.training.loop.train`.
    """
    if isinstance(config, str):
        config = named_config(config)
    if dataset is not None:
        config = dataclasses.replace(config, data=DataConfig.of(dataset))
    if overwrite:
        # Refuse what cannot work while the run that would be deleted is still there.
        dataset = prepare(config, dataset).dataset
    with run_lock(None if workdir is None else Path(workdir)):
        if config.pretraining.preset and workdir is not None:
            pretrain(config, dataset, Path(workdir), resume=resume, overwrite=overwrite, progress=progress)
            resume, overwrite = True, False
        trained = train(config, dataset, workdir, resume=resume, overwrite=overwrite, progress=progress)
        return FittedRun(write_run(trained, progress), trained, trained.workdir)


def evaluate(
    run: str | Path,
    split: Literal["valid", "test"] = "test",
    dataset: SequenceDataset | None = None,
    list_metrics_k: int | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    checks: Checks | None = None,
    out: str | Path | None = None,
    ks: Sequence[int] = (),
) -> dict[str, Any]:
    """Rank the held-out targets of a saved run again, from its checkpoint.

    Args:
      run: run directory.
      split: which held-out part.
      dataset: in place of the one that the run's configuration names; its fingerprint must be the same.
      list_metrics_k: length of lists whose coverage, Gini coefficient, novelty and diversity are measured too
        (`jaxrec.analysis.beyond_accuracy`), under "beyond_accuracy".
      mesh: devices to score on, whatever those it was trained on.
      checks: use of order, dependence on ties and breakdowns (`jaxrec.analysis.checks`), whose results are added.
      out: directory for tables and figures of the checks; None writes nothing.
      ks: cutoffs of the metrics, of the model and of the baselines; empty = the run's.

    Returns:
      Dataset, split, protocol, metrics (mean, sd and values over seeds) and baselines, as in ``results.json``. Of several
      processes the first alone has the baselines.

    Raises:
      CheckpointError: no usable checkpoint, or the dataset is another.
      ConfigError: ``list_metrics_k`` or one of ``ks`` is below 1 or above the catalogue.
    """
    opened = Run(run, dataset, mesh)
    setup, config = opened.setup, opened.config
    protocol = dataclasses.replace(config.evaluation, ks=tuple(ks)) if ks else config.evaluation
    check_cutoffs(protocol.ks, setup.dataset.n_items)
    if list_metrics_k is not None:
        check_list_length(list_metrics_k, setup.dataset.n_items, "--list-metrics-k")
    evaluations = [evaluation.at(protocol.ks) for evaluation in opened.evaluate(split)]
    baselines = evaluate_baselines(setup.split, split, protocol) if is_first() or checks else {}
    extra: dict[str, Any] = (
        {}
        if list_metrics_k is None
        else {"beyond_accuracy": beyond_accuracy_of(opened, split, list_metrics_k)}
    )
    if checks:
        results = run_checks(opened, split, checks, evaluations, baselines)
        extra |= {**results.to_dict(), "check_tables": results.to_markdown()}
        if out is not None and is_first():
            results.write(out)
    meet()
    return {
        "run": str(run),
        "part": split,
        "dataset": describe_dataset(setup),
        "split": describe_split(setup),
        "protocol": evaluations[0].protocol,
        "counts": evaluations[0].counts,
        "seeds": list(config.training.seeds),
        "metrics": over_seeds([evaluation.metrics for evaluation in evaluations]),
        "baselines": {name: evaluation.metrics for name, evaluation in baselines.items()},
        **extra,
        "mesh": dataclasses.asdict(mesh),
        "config": to_dict(config),
    }
