"""Compare runs on their saved per-user ranks: means over seeds, paired tests, and what could have been seen
at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import _COLOURS, save_figure
from jaxrec.analysis.groups import group_figures
from jaxrec.analysis.significance import (
    holm,
    minimal_detectable_difference,
    paired_bootstrap,
    paired_permutation,
)
from jaxrec.analysis.tables import mean_and_deviation, new_directory, to_latex, to_markdown
from jaxrec.config import load_config
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import split_dataset
from jaxrec.errors import DataError
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.training.runs import run_names

#: What must agree for numbers to be comparable, and what the message calls it.
_MUST_AGREE = {"fingerprint": "dataset fingerprint", "split": "split", "part": "part of the split"}


@dataclasses.dataclass(frozen=True)
class RunRanks:
    """The saved evaluations of one run, one for each seed.

    Attributes:
      name: of the run.
      evaluations: one a seed.
      meta: what `Evaluation.save` was given: fingerprint, split, part.
    """

    name: str
    evaluations: tuple[Evaluation, ...]
    meta: Mapping[str, Any]

    def values(self, metric: str) -> np.ndarray:
        """float64[S, E], a metric of every case for each seed."""
        return np.stack([each.values(metric) for each in self.evaluations])


def load_run(name: str, paths: Sequence[str | Path]) -> RunRanks:
    """The ranks that a run saved, one file a seed.

    Raises:
      DataError: no file, a damaged one, or files that are not of one dataset, split and protocol.
    """
    if not paths:
        raise DataError(
            f"run {name!r} has no saved ranks: expected one .npz file a seed, got none; finish the run"
        )
    loaded = [Evaluation.load(path) for path in paths]
    run = RunRanks(name, tuple(evaluation for evaluation, _ in loaded), loaded[0][1])
    for evaluation, meta in loaded[1:]:
        _check_comparable(run, RunRanks(f"{name} (another seed)", (evaluation,), meta))
    return run


@dataclasses.dataclass(frozen=True)
class Difference:
    """One pair of runs on one metric.

    Attributes:
      metric: its name.
      a, b: names of the runs.
      difference: mean of B minus mean of A; ``relative`` to A, NaN where A is 0.
      low, high: confidence interval over users, and over seeds where there are several.
      p_bootstrap: two-sided, users and seeds.
      p_permutation: two-sided, users alone: about these trained models.
      p_holm: ``p_permutation`` corrected over all pairs of the comparison on this metric.
      detectable: the smallest difference that these users show in four of five cases at the 5 % level.
    """

    metric: str
    a: str
    b: str
    difference: float
    relative: float
    low: float
    high: float
    p_bootstrap: float
    p_permutation: float
    p_holm: float
    detectable: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes:
      metrics: the metrics compared.
      values: {run: {metric: the mean over users for each seed}}.
      differences: every other run against the first, by metric.
      users: how many cases each mean is over.
      protocol: of all runs.
      confidence: of the intervals.
    """

    metrics: tuple[str, ...]
    values: dict[str, dict[str, list[float]]]
    differences: list[Difference]
    users: int
    protocol: str
    confidence: float

    def result_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: mean ± standard deviation over seeds."""
        rows = [
            [name, *(mean_and_deviation(values[metric]) for metric in self.metrics)]
            for name, values in self.values.items()
        ]
        return ["run", *self.metrics], rows

    def difference_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: effects with intervals, p-values, and what could be seen."""
        header = ["metric", "comparison", "difference", f"{self.confidence:.0%} interval", "relative"]
        header += ["p users+seeds", "p users", "p Holm", "detectable"]
        rows = [
            [
                each.metric,
                f"{each.b} - {each.a}",
                f"{each.difference:+.4f}",
                f"[{each.low:+.4f}, {each.high:+.4f}]",
                "-" if np.isnan(each.relative) else f"{each.relative:+.1%}",
                f"{each.p_bootstrap:.4f}",
                f"{each.p_permutation:.4f}",
                f"{each.p_holm:.4f}",
                f"{each.detectable:.4f}",
            ]
            for each in self.differences
        ]
        return header, rows

    def to_markdown(self) -> str:
        """Both tables, the protocol, and in words what these users could not have shown."""
        parts = [f"{self.users} users; {self.protocol}\n", to_markdown(*self.result_rows())]
        if self.differences:
            parts += [to_markdown(*self.difference_rows()), *self.limits()]
        return "\n".join(parts)

    def to_latex(self) -> str:
        """Both tables for a paper."""
        parts = [to_latex(*self.result_rows())]
        return "\n".join([*parts, to_latex(*self.difference_rows())] if self.differences else parts)

    def limits(self) -> list[str]:
        """For each metric: with this many users, differences below which are not seen."""
        lines = []
        for metric in self.metrics:
            least = [each.detectable for each in self.differences if each.metric == metric]
            lines.append(
                f"With {self.users} users you cannot expect to see a difference in {metric} below "
                f"{min(least):.4f} (80 % power, 5 % level)."
            )
        single = [name for name, values in self.values.items() if len(next(iter(values.values()))) == 1]
        if single:
            lines.append(
                f"One seed only for {', '.join(single)}: intervals leave out what another seed would change."
            )
        return lines


def compare_runs(
    runs: Sequence[RunRanks],
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Every run against the first, on the same users.

    Args:
      runs: at least one; the first is the baseline.
      metrics: names as in `jaxrec.evaluation.metrics.metric_values`.
      resamples, confidence, seed: see `paired_bootstrap`.

    Raises:
      DataError: runs of different datasets, splits, parts, protocols, users or targets, or two of one name.
    """
    if not runs:
        raise DataError("runs must hold at least one run to compare, got none")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise DataError(f"runs must have different names, got {', '.join(names)}")
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    values = {
        run.name: {metric: run.values(metric).mean(axis=1).tolist() for metric in metrics} for run in runs
    }
    differences: list[Difference] = []
    for metric in metrics:
        base = runs[0].values(metric)
        found = []
        for run in runs[1:]:
            other = run.values(metric)
            effect = paired_bootstrap(base, other, resamples=resamples, confidence=confidence, seed=seed)
            found.append(
                Difference(
                    metric=metric,
                    a=runs[0].name,
                    b=run.name,
                    difference=effect.difference,
                    relative=effect.difference / base.mean() if base.mean() > 0 else float("nan"),
                    low=effect.low,
                    high=effect.high,
                    p_bootstrap=effect.p_value,
                    p_permutation=paired_permutation(base, other, resamples=resamples, seed=seed),
                    p_holm=1.0,
                    detectable=minimal_detectable_difference(base, other),
                )
            )
        corrected = holm([each.p_permutation for each in found])
        differences += [
            dataclasses.replace(each, p_holm=float(p)) for each, p in zip(found, corrected, strict=True)
        ]
    first = runs[0].evaluations[0]
    users = len(first.users)
    return Comparison(tuple(metrics), values, differences, users, first.protocol, confidence)


def _check_comparable(a: RunRanks, b: RunRanks) -> None:
    for field, what in _MUST_AGREE.items():
        if a.meta.get(field) != b.meta.get(field):
            raise DataError(
                f"runs must have the same {what}, got {_short(a.meta.get(field))} ({a.name}) and "
                f"{_short(b.meta.get(field))} ({b.name}): numbers cannot be compared; evaluate both on one"
            )
    first = a.evaluations[0]
    for other in b.evaluations:
        if first.protocol != other.protocol:
            raise DataError(
                f"runs must have the same protocol, got {first.protocol!r} ({a.name}) and {other.protocol!r} "
                f"({b.name}): evaluate one of them again"
            )
        for field in ("users", "target_offsets", "targets"):
            if not np.array_equal(getattr(first, field), getattr(other, field)):
                raise DataError(
                    f"runs must be evaluated on the same {field.replace('_', ' ')}, but {a.name} and "
                    f"{b.name} differ ({len(first.users)} and {len(other.users)} users)"
                )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 200 else text[:200] + "..."


def effect_figure(comparison: Comparison) -> Figure:
    """Difference of every run to the first, with its interval; the grey band is what these users could not
    show.
    """
    if not comparison.differences:
        raise DataError("comparison must hold two runs at least to draw differences, got one")
    found = comparison.differences
    figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(found))[::-1]
    limit = np.array([each.detectable for each in found])
    axes.barh(
        place, 2 * limit, left=-limit, height=0.8, color="#dddddd", label="not detectable with these users"
    )
    middle = np.array([each.difference for each in found])
    low = middle - np.array([each.low for each in found])
    high = np.array([each.high for each in found]) - middle
    axes.errorbar(middle, place, xerr=[low, high], fmt="o", color=_COLOURS[0], capsize=3, label="difference")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(place, [f"{each.b} - {each.a}\n{each.metric}" for each in found], fontsize=8)
    axes.set_xlabel(f"difference, {comparison.confidence:.0%} interval over {comparison.users} users")
    axes.legend(loc="best", fontsize=8)
    return figure


#: What `compare` writes.
COMPARISON_FILES = (
    "comparison.md",
    "comparison.tex",
    "effects.png",
    "by_history_length.png",
    "by_popularity.png",
)


def compare(
    runs: Sequence[str | Path],
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    split: str = "test",
    out: str | Path | None = None,
    dataset: SequenceDataset | None = None,
) -> Comparison:
    """Every run against the first, paired over users, from the ranks that the runs saved.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      metrics: what to compare.
      split: "test" or "valid".
      out: directory for `COMPARISON_FILES`: tables, differences with intervals, and the last metric by history
        length and by popularity; None writes nothing.
      dataset: what the figures by group take lengths and counts from; None = what the first run's
        configuration names.

    Raises:
      DataError: fewer than two runs, a run is unfinished, or runs are not comparable (fingerprint, split,
        protocol, users).
    """
    if len(runs) < 2:
        raise DataError(f"runs must be two at least to be compared, got {len(runs)}")
    loaded = []
    for name, run in zip(run_names(runs), runs, strict=True):
        files = sorted(
            Path(run).glob(f"ranks/{split}_seed*.npz"), key=lambda file: int(file.stem.split("seed")[1])
        )
        if not files:
            raise DataError(f"no saved {split} ranks in {run}: expected the directory of a finished run")
        loaded.append(load_run(name, files))
    comparison = compare_runs(loaded, metrics)
    if out is not None:
        config = load_config(Path(runs[0]) / "config.json")
        dataset = config.data.load() if dataset is None else dataset
        fingerprint = loaded[0].meta["fingerprint"]
        if dataset.fingerprint != fingerprint:
            raise DataError(
                f"dataset must be the one of the runs, with fingerprint {fingerprint[:16]}, got one with "
                f"{dataset.fingerprint[:16]}: give the same file with the same filters"
            )
        figures = group_figures(
            {run.name: run.evaluations for run in loaded},
            split_dataset(dataset, config.split),
            split,
            metrics[-1],
        )
        directory = new_directory(out, COMPARISON_FILES)
        (directory / "comparison.md").write_text(comparison.to_markdown() + "\n")
        (directory / "comparison.tex").write_text(comparison.to_latex() + "\n")
        for name, figure in {"effects": effect_figure(comparison), **figures}.items():
            save_figure(figure, directory / f"{name}.png")
    return comparison
