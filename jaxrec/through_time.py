"""Cross-validation through time: one configuration trained and tested at several cuts of one log."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.analysis.tables import to_markdown
from jaxrec.api import fit
from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.load import load_dataset
from jaxrec.data.splits import split_dataset
from jaxrec.errors import Interrupted
from jaxrec.files import write_atomically
from jaxrec.presets import named_config
from jaxrec.reporting.html import model_label


@dataclasses.dataclass(frozen=True)
class ThroughTime:
    """Results of one run for each cut.

    Attributes:
      directory: where the runs are, each in a folder of its own.
      cuts: the test cuts, as quantiles of the times of all interactions.
      metric: the validation metric of the runs.
      results: ``results.json`` of each run.
    """

    directory: Path
    cuts: tuple[float, ...]
    metric: str
    results: tuple[dict[str, Any], ...]

    @property
    def label(self) -> str:
        """Name of the model in the tables."""
        return model_label(self.results[0]["config"])

    def values(self, metric: str) -> dict[str, list[float]]:
        """{baseline or model: metric at each cut}; the model's are means over its seeds."""
        rows = {
            name: [result["baselines"][name][metric] for result in self.results]
            for name in self.results[0]["baselines"]
        }
        return {**rows, self.label: [result["metrics"][metric]["mean"] for result in self.results]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        # Precision, recall and MAP are those of periods in which some case has several targets.
        first, *others = (result["metrics"] for result in self.results)
        metrics = [metric for metric in first if all(metric in other for other in others)]
        return {
            "directory": str(self.directory),
            "dataset": self.results[0]["dataset"],
            "protocol": self.results[0]["protocol"],
            "cuts": list(self.cuts),
            "splits": [result["split"] for result in self.results],
            "cases": [result["counts"]["cases"] for result in self.results],
            "seeds": self.results[0]["seeds"],
            "metrics": {metric: self.values(metric) for metric in metrics},
        }

    def to_markdown(self) -> str:
        """Periods and cases, then baselines and model at every cut: hit rate and validation metric."""
        hits = f"HR@{self.metric.partition('@')[2]}"
        metrics = [name for name in dict.fromkeys((hits, self.metric)) if name in self.results[0]["metrics"]]
        splits = [
            [f"{cut:g}", result["split"]["description"], result["counts"]["cases"]]
            for cut, result in zip(self.cuts, self.results, strict=True)
        ]
        tables = [to_markdown(["cut", "split", "cases"], splits)]
        for metric in metrics:
            rows = [
                [
                    name,
                    *values,
                    float(np.mean(values)),
                    float(np.std(values, ddof=1)) if len(values) > 1 else None,
                ]
                for name, values in self.values(metric).items()
            ]
            header = [metric, *(f"cut {cut:g}" for cut in self.cuts), "mean", "sd over cuts"]
            tables.append(to_markdown(header, rows))
        return "\n".join([self.results[0]["protocol"] + "\n", *tables])


def fit_through_time(
    dataset: SequenceDataset | None,
    config: RunConfig | str,
    directory: str | Path,
    cuts: Sequence[float],
    *,
    progress: bool = True,
) -> ThroughTime:
    """Train and test a model at several moments of a log, each time on what came before.

    The test period of each cut ends where the next begins; the last ends with the log, or as ``split.end_quantile`` or
    ``split.end_time`` says.
    A call with the same arguments goes on with what an earlier one left. Writes ``cuts.md`` and ``cuts.json`` in the end.

    Args:
      dataset: from `load_dataset`; None = the one that ``config.data`` names.
      config: a `RunConfig`, the name of a preset, or the directory of a run for its configuration. Target and validation of
        its split hold for every cut; the strategy is "temporal".
      directory: the runs are in its folders ``cut-0.8`` and so on.
      cuts: increasing quantiles of the times of all interactions, at which test periods begin.
      progress: show a progress bar on standard error.

    Raises:
      ConfigError: the cuts do not increase, or leave no room for validation before the first.
      DataError: a period of one of the cuts has no case; nothing was trained.
      Interrupted: SIGINT or SIGTERM; the state was saved.
      JaxrecError: as `jaxrec.api.fit`.
    """
    if isinstance(config, str):
        config = named_config(config)
    splits = config.split.through_time(cuts)
    dataset = load_dataset(config.data) if dataset is None else dataset
    for split in splits:  # equal times at two cuts leave nothing between them
        split_dataset(dataset, split).check_cases()
    folder = Path(directory)
    results = []
    for cut, split in zip(cuts, splits, strict=True):
        workdir = folder / f"cut-{cut:g}"
        one = dataclasses.replace(config, split=split)
        started = (workdir / "config.json").exists()
        try:
            results.append(fit(dataset, one, workdir, resume=started, progress=progress).results)
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped at cut {cut:g}, whose state is saved; continue with the same command",
                stopped.signal_number,
            ) from None
    found = ThroughTime(folder, tuple(cuts), config.metric, tuple(results))
    write_atomically(folder / "cuts.md", found.to_markdown())
    write_atomically(folder / "cuts.json", json.dumps(found.to_dict(), indent=2))
    return found
