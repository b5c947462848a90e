"""Leaderboard: many runs of one dataset on one page, sorted, with intervals and pairs that cannot be told apart."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.compare import (
    RunRanks,
    check_comparable,
    saved_ranks,
    seed_notes,
    setting_warnings,
    training_facts,
    users_and_cases,
)
from jaxrec.analysis.curves import LearningCurve, curves_figure
from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.significance import bootstrap_means, bootstrap_p_value, holm
from jaxrec.analysis.tables import mean_and_deviation, to_markdown, write_tables
from jaxrec.config import to_dict
from jaxrec.errors import DataError
from jaxrec.evaluation.metrics import check_metrics
from jaxrec.runs import Run, run_names

#: Fewest resamples, and those that are to lie beyond zero where a p-value is at the level that Holm's correction asks of the
#: smallest: with 2,000 for 105 pairs (15 runs) none could be below .05 after it.
_RESAMPLES, _BEYOND = 2000, 10


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run of a leaderboard.

    Attributes:
      name: name of the run.
      values: {metric: mean over users for each seed}.
      low, high: 95 % interval of the first metric over users and seeds.
      tied: names of the runs whose first metric cannot be told from this one's.
    """

    name: str
    values: dict[str, list[float]]
    low: float
    high: float
    tied: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Runs sorted by the mean of the first metric.

    Attributes:
      metrics: the metrics; the first sorts.
      entries: best first.
      users: number of users.
      protocol: evaluation protocol of all runs.
      warnings: settings in which the runs differ.
      cases: number of cases, of which a user may have several; 0 = one each.
      alpha: level of the tests after correction.
    """

    metrics: tuple[str, ...]
    entries: tuple[Entry, ...]
    users: int
    protocol: str
    warnings: tuple[str, ...] = ()
    cases: int = 0
    alpha: float = 0.05

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table."""
        first = self.metrics[0]
        header = ["", "run", first, "95% interval", *self.metrics[1:], "cannot be told from"]
        number = {entry.name: str(place) for place, entry in enumerate(self.entries, start=1)}
        rows = [
            [
                number[entry.name],
                entry.name,
                mean_and_deviation(entry.values[first]),
                f"[{entry.low:.4f}, {entry.high:.4f}]",
                *(mean_and_deviation(entry.values[metric]) for metric in self.metrics[1:]),
                ", ".join(number[name] for name in sorted(entry.tied, key=lambda name: int(number[name])))
                or "-",
            ]
            for entry in self.entries
        ]
        return header, rows

    def notes(self) -> list[str]:
        """The test, runs of one or few seeds, and the warnings."""
        pairs = len(self.entries) * (len(self.entries) - 1) // 2
        corrected = f", corrected by Holm for all {pairs} pairs," if pairs > 1 else ""
        caption = (
            f"{users_and_cases(self.users, self.cases)}; {self.protocol}. Two runs cannot be told apart where the paired "
            f"bootstrap over users and seeds{corrected} gives p of {f'{self.alpha:g}'.removeprefix('0')} or more in "
            f"{self.metrics[0]}."
        )
        seeds = {entry.name: len(entry.values[self.metrics[0]]) for entry in self.entries}
        return [caption, *seed_notes(seeds), *(f"Warning: {warning}" for warning in self.warnings)]

    def to_markdown(self) -> str:
        """The table, the test and the warnings."""
        return "\n".join([to_markdown(*self.rows()), *self.notes()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def rank_runs(
    runs: Sequence[RunRanks], metrics: Sequence[str] = ("NDCG@10", "HR@10"), alpha: float = 0.05
) -> Leaderboard:
    """Sort runs by the first metric and test every pair.

    Args:
      runs: runs of the same cases.
      metrics: the first sorts and is tested.
      alpha: level of the tests after correction.

    Raises:
      ConfigError: no metric, an unknown one, or one twice.
      DataError: no run, two of one name, or runs of different datasets, splits, protocols or users.
    """
    check_metrics(metrics)
    if not runs:
        raise DataError("runs must hold at least one run, got none")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise DataError(f"runs must have different names, got {', '.join(names)}")
    for run in runs[1:]:
        check_comparable(runs[0], run)
    values = {run.name: run.values(metrics[0]) for run in runs}
    ordered = sorted(runs, key=lambda run: -float(values[run.name].mean()))
    pairs = list(itertools.combinations([run.name for run in ordered], 2))
    first = runs[0].evaluations[0]
    resamples = max(_RESAMPLES, math.ceil(_BEYOND * len(pairs) / alpha))
    means = bootstrap_means(list(values.values()), users=first.users, resamples=resamples)
    samples = dict(zip(values, means, strict=True))
    p_values = [
        bootstrap_p_value(samples[b] - samples[a], float(values[b].mean() - values[a].mean()))
        for a, b in pairs
    ]
    tied: dict[str, list[str]] = {name: [] for name in names}
    for (a, b), p_value in zip(pairs, holm(p_values), strict=True):
        if p_value >= alpha:
            tied[a].append(b)
            tied[b].append(a)
    entries = []
    for run in ordered:
        low, high = np.quantile(samples[run.name], [0.025, 0.975])
        by_metric = {metric: run.values(metric).mean(axis=1).tolist() for metric in metrics}
        entries.append(Entry(run.name, by_metric, float(low), float(high), tuple(tied[run.name])))
    users = len(np.unique(first.users))
    return Leaderboard(
        tuple(metrics), tuple(entries), users, first.protocol, cases=len(first.users), alpha=alpha
    )


def leaderboard(
    runs: Sequence[str | Path],
    metrics: Sequence[str] = ("NDCG@10", "HR@10"),
    split: Literal["valid", "test"] = "test",
    out: str | Path | None = None,
) -> Leaderboard:
    """Sort finished runs, from the ranks that they saved.

    Args:
      runs: run directories of one dataset and split.
      metrics: the first sorts and is tested.
      split: "test" or "valid".
      out: directory for ``leaderboard.md``, ``leaderboard.tex``, ``leaderboard.png`` and, for the runs that were trained
        here, ``curves.png``; None writes nothing.

    Raises:
      DataError: see `rank_runs`; or an unfinished run.
    """
    named: Mapping[str, Run] = dict(zip(run_names(runs), map(Run, runs), strict=True))
    result = rank_runs([saved_ranks(name, run.ranks(split)) for name, run in named.items()], metrics)
    facts = {name: training_facts(to_dict(run.config)) for name, run in named.items()}
    result = dataclasses.replace(result, warnings=setting_warnings(facts))
    if out is not None:
        figures = {"leaderboard.png": leaderboard_figure(result)}
        curves = {name: LearningCurve.of(run.path) for name, run in named.items()}
        trained = {name: curve for name, curve in curves.items() if len(curve.epochs)}
        if trained:
            figures["curves.png"] = curves_figure(trained)
        write_tables(out, "leaderboard", [result.rows()], figures, result.notes())
    return result


def leaderboard_figure(result: Leaderboard) -> Figure:
    """Draw the first metric of every run with its interval, best at the top."""
    figure = Figure(figsize=(6.4, 1.0 + 0.35 * len(result.entries)), layout="constrained")
    axes = figure.add_subplot()
    first = result.metrics[0]
    mean = np.array([np.mean(entry.values[first]) for entry in result.entries])
    low = np.maximum(mean - [entry.low for entry in result.entries], 0)
    high = np.maximum(np.array([entry.high for entry in result.entries]) - mean, 0)
    place = np.arange(len(mean))[::-1]
    axes.errorbar(mean, place, xerr=[low, high], fmt="o", color=COLOURS[0], capsize=3)
    axes.set_yticks(place, [entry.name for entry in result.entries], fontsize=8)
    axes.set_xlabel(f"{first}, 95% interval over users and seeds")
    return figure
