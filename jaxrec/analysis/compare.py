"""Comparison of runs on their saved ranks: means over seeds, paired tests, and the smallest detectable difference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import COLOURS, save_figure
from jaxrec.analysis.groups import group_figures
from jaxrec.analysis.significance import (
    FEW_SEEDS,
    holm,
    minimal_detectable_difference,
    paired_bootstrap,
    paired_permutation,
)
from jaxrec.analysis.tables import mean_and_deviation, new_directory, to_latex, to_markdown
from jaxrec.attention import POSITIONS
from jaxrec.config import to_dict
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import split_dataset
from jaxrec.errors import DataError
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.evaluation.metrics import check_metrics
from jaxrec.files import write_atomically
from jaxrec.runs import Run, run_names, stored_dataset

#: Metadata that must agree for numbers to be comparable, and its name in messages.
_MUST_AGREE = {"fingerprint": "dataset fingerprint", "split": "split", "part": "part of the split"}


@dataclasses.dataclass(frozen=True)
class RunRanks:
    """The saved evaluations of one run, one per seed.

    Attributes:
      name: name of the run.
      evaluations: one per seed.
      meta: the metadata of `Evaluation.save`: fingerprint, split, part.
    """

    name: str
    evaluations: tuple[Evaluation, ...]
    meta: Mapping[str, Any]

    def values(self, metric: str) -> np.ndarray:
        """float64[S, E], a metric of every case for each seed."""
        return np.stack([evaluation.values(metric) for evaluation in self.evaluations])


def saved_ranks(name: str, loaded: Sequence[tuple[Evaluation, dict[str, Any]]]) -> RunRanks:
    """The ranks of one run, from the evaluation and the metadata of each seed (`Run.ranks`, `Evaluation.load`).

    Raises:
      DataError: there is none, or they are of different datasets, splits or protocols.
    """
    if not loaded:
        raise DataError(f"run {name!r} has no saved ranks: finish the run")
    run = RunRanks(name, tuple(evaluation for evaluation, _ in loaded), loaded[0][1])
    for evaluation, meta in loaded[1:]:
        check_comparable(run, RunRanks(f"{name} (another seed)", (evaluation,), meta))
    return run


@dataclasses.dataclass(frozen=True)
class Difference:
    """One pair of runs on one metric.

    Attributes:
      metric: name of the metric.
      a, b: names of the runs.
      difference: mean of B minus mean of A; ``relative`` to A, NaN where A is 0.
      low, high: confidence interval over users, and over seeds where there are several.
      p_bootstrap: two-sided, over users and seeds: about training such models again.
      p_holm: ``p_bootstrap`` corrected by Holm over all pairs of the comparison on this metric.
      p_permutation: two-sided, over users alone: about these trained models only; not corrected.
      detectable: the smallest difference that ``p_bootstrap`` shows with these users and as many seeds in four of five cases
        at the 5 % level; ``p_holm`` needs a larger one. 0 where no user has a difference.
    """

    metric: str
    a: str
    b: str
    difference: float
    relative: float
    low: float
    high: float
    p_bootstrap: float
    p_holm: float
    p_permutation: float
    detectable: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of `compare_runs`.

    Attributes:
      metrics: the metrics compared.
      values: {run: {metric: the mean over users for each seed}}.
      differences: every other run against the first, by metric.
      users: number of users.
      protocol: evaluation protocol of all runs.
      confidence: level of the intervals.
      warnings: settings in which the runs differ that make a difference hard to attribute (`compare`).
      cases: number of cases of each mean, of which a user may have several; 0 = one each.
    """

    metrics: tuple[str, ...]
    values: dict[str, dict[str, list[float]]]
    differences: list[Difference]
    users: int
    protocol: str
    confidence: float
    warnings: tuple[str, ...] = ()
    cases: int = 0

    def result_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: mean ± standard deviation over seeds."""
        rows = [
            [name, *(mean_and_deviation(values[metric]) for metric in self.metrics)]
            for name, values in self.values.items()
        ]
        return ["run", *self.metrics], rows

    def difference_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: differences with intervals, p-values and the detectable difference."""
        header = ["metric", "comparison", "difference", f"{self.confidence:.0%} interval", "relative"]
        header += ["p (users and seeds)", "p Holm", "p (users only)", "detectable"]
        rows = [
            [
                row.metric,
                f"{row.b} - {row.a}",
                f"{row.difference:+.4f}",
                f"[{row.low:+.4f}, {row.high:+.4f}]",
                "-" if np.isnan(row.relative) else f"{row.relative:+.1%}",
                f"{row.p_bootstrap:.4f}",
                f"{row.p_holm:.4f}",
                f"{row.p_permutation:.4f}",
                f"{row.detectable:.4f}" if row.detectable else "-",
            ]
            for row in self.differences
        ]
        return header, rows

    def to_markdown(self) -> str:
        """Both tables, the protocol, warnings, and the differences that these users and seeds cannot show."""
        parts = [
            f"{users_and_cases(self.users, self.cases)}; {self.protocol}\n",
            to_markdown(*self.result_rows()),
        ]
        if self.differences:
            parts += [to_markdown(*self.difference_rows()), self.caption(), *self.limits()]
        return "\n".join([*parts, *self.warning_lines()])

    def to_latex(self) -> str:
        """Both tables for a paper."""
        parts = [to_latex(*self.result_rows())]
        return "\n".join([*parts, to_latex(*self.difference_rows())] if self.differences else parts)

    def caption(self) -> str:
        """The meaning of the three p-values, in one sentence."""
        pairs = len({row.b for row in self.differences})
        return (
            "Intervals and p (users and seeds) come from a paired bootstrap over users and seeds; p Holm corrects that "
            f"p for the {pairs} comparison{'s' if pairs > 1 else ''} on each metric; p (users only) is a permutation "
            "test of these trained models alone, not corrected."
        )

    def limits(self) -> list[str]:
        """For each metric the smallest detectable difference, and runs of one or few seeds."""
        lines = []
        level = "5 % level" + (" before correction" if len({row.b for row in self.differences}) > 1 else "")
        for metric in self.metrics:
            # Without a difference between users there is no spread to judge by.
            least = [row.detectable for row in self.differences if row.metric == metric and row.detectable]
            lines.append(
                f"No user's {metric} differs between the runs: their spread cannot be estimated."
                if not least
                else f"With {self.users} users you cannot expect to see a difference in {metric} below "
                f"{min(least):.4f} (80 % power, {level})."
            )
        return lines + seed_notes(
            {name: len(next(iter(values.values()))) for name, values in self.values.items()}
        )

    def warning_lines(self) -> list[str]:
        """Each warning as a line of the report."""
        return [f"Warning: {warning}" for warning in self.warnings]


def compare_runs(
    runs: Sequence[RunRanks],
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    *,
    same_models: Collection[str] = (),
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare every run with the first, on the same cases, paired over their users.

    Args:
      runs: at least one; the first is the baseline.
      metrics: names as in `jaxrec.evaluation.metrics.metric_values`.
      same_models: names of runs whose models are those of the first one, seed by seed, asked in another way.
      resamples: see `paired_bootstrap`, as the next two.
      confidence: of the intervals.
      seed: of the resampling.

    Raises:
      ConfigError: no metric, an unknown one, or one twice.
      DataError: runs of different datasets, splits, parts, protocols, users or targets, or two of one name.
    """
    check_metrics(metrics)
    if not runs:
        raise DataError("runs must hold at least one run to compare, got none")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise DataError(f"runs must have different names, got {', '.join(names)}")
    for run in runs[1:]:
        check_comparable(runs[0], run)
    values = {
        run.name: {metric: run.values(metric).mean(axis=1).tolist() for metric in metrics} for run in runs
    }
    first = runs[0].evaluations[0]
    users = first.users
    differences: list[Difference] = []
    for metric in metrics:
        base = runs[0].values(metric)
        rows = []
        for run in runs[1:]:
            other = run.values(metric)
            paired_seeds = run.name in same_models
            effect = paired_bootstrap(
                base,
                other,
                users=users,
                paired_seeds=paired_seeds,
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            rows.append(
                Difference(
                    metric=metric,
                    a=runs[0].name,
                    b=run.name,
                    difference=effect.difference,
                    relative=effect.difference / base.mean() if base.mean() > 0 else float("nan"),
                    low=effect.low,
                    high=effect.high,
                    p_bootstrap=effect.p_value,
                    p_holm=1.0,
                    p_permutation=paired_permutation(
                        base, other, users=users, resamples=resamples, seed=seed
                    ),
                    detectable=minimal_detectable_difference(
                        base, other, users=users, paired_seeds=paired_seeds
                    ),
                )
            )
        corrected = holm([row.p_bootstrap for row in rows])
        differences += [
            dataclasses.replace(row, p_holm=float(p)) for row, p in zip(rows, corrected, strict=True)
        ]
    count = len(np.unique(users))
    return Comparison(
        tuple(metrics), values, differences, count, first.protocol, confidence, cases=len(users)
    )


def seed_notes(seeds: Mapping[str, int]) -> list[str]:
    """Sentences about runs of one seed, and of so few that tests over seeds reject too often.

    Args:
      seeds: {run: number of its seeds}.
    """
    single = [name for name, count in seeds.items() if count == 1]
    few = [name for name, count in seeds.items() if 1 < count < FEW_SEEDS]
    lines = []
    if single:
        lines.append(
            f"One seed only for {', '.join(single)}: intervals do not cover variation between seeds of these runs."
        )
    if few:
        lines.append(
            f"Fewer than {FEW_SEEDS} seeds for {', '.join(few)}: where models vary more by seed than by the sample of "
            "users, intervals are too narrow, and a test at the 5 % level rejects in up to 14 % of all cases with three "
            "seeds, 22 % with two."
        )
    return lines


def users_and_cases(users: int, cases: int) -> str:
    """Such as "300 users", or "900 cases of 300 users" where a user has several."""
    return f"{cases} cases of {users} users" if cases > users else f"{users} users"


def check_comparable(a: RunRanks, b: RunRanks) -> None:
    """Reject runs whose numbers cannot be compared.

    Raises:
      DataError: they differ in dataset, split, part, protocol, users or targets.
    """
    for field, label in _MUST_AGREE.items():
        if a.meta.get(field) != b.meta.get(field):
            ours, theirs = map(_short, _differing(a.meta.get(field), b.meta.get(field)))
            raise DataError(
                f"runs must have the same {label}, got {ours} ({a.name}) and {theirs} ({b.name}): numbers cannot be "
                "compared; evaluate both on one"
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


def _differing(own: Any, other: Any) -> tuple[Any, Any]:
    """Two values; of two mappings the entries alone that differ."""
    if not isinstance(own, Mapping) or not isinstance(other, Mapping):
        return own, other
    keys = [key for key in {**own, **other} if own.get(key) != other.get(key)]
    return {key: own.get(key) for key in keys}, {key: other.get(key) for key in keys}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 200 else text[:200] + "..."


def effect_figure(comparison: Comparison) -> Figure:
    """Draw each run's difference to the first with its interval; what is in the grey band is not detectable."""
    if not comparison.differences:
        raise DataError("comparison must hold at least two runs to draw differences, got one")
    rows = comparison.differences
    figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(rows))[::-1]
    limit = np.array([row.detectable for row in rows])
    axes.barh(place, 2 * limit, left=-limit, height=0.8, color="#dddddd", label="not detectable")
    middle = np.array([row.difference for row in rows])
    low = np.maximum(middle - [row.low for row in rows], 0)  # equal values differ by rounding
    high = np.maximum(np.array([row.high for row in rows]) - middle, 0)
    axes.errorbar(middle, place, xerr=[low, high], fmt="o", color=COLOURS[0], capsize=3, label="difference")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(place, [f"{row.b} - {row.a}\n{row.metric}" for row in rows], fontsize=8)
    axes.set_xlabel(f"difference, {comparison.confidence:.0%} interval over {comparison.users} users")
    axes.legend(loc="best", fontsize=8)
    return figure


#: Files written by `compare`.
COMPARISON_FILES = (
    "comparison.md",
    "comparison.tex",
    "effects.png",
    "by_history_length.png",
    "by_popularity.png",
)


def training_facts(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings that decide what a number may be compared with, in words.

    Args:
      config: the configuration of a run as in ``results.json``.

    Returns:
      "training examples" (packed sequences, prefixes, last targets), "task" and "time of the question" (whether the model
      reads the time of the next interaction).
    """
    batches = config.get("batches", {})
    mode, targets = batches.get("mode", "packed"), batches.get("targets", "all")
    if mode == "prefix":
        per_sequence = batches.get("prefixes_per_sequence", 0)
        counted = "every target" if batches.get("prefix_targets") == "all" else "its last target"
        examples = f"every prefix with {counted}" + (f", {per_sequence} per sequence" if per_sequence else "")
    elif targets == "last":
        examples = f"{mode} sequences, last target only"
    else:
        examples = f"{mode} sequences, every target"
    if mode != "prefix" and batches.get("long_histories", "last") == "windows":
        examples += ", long sequences in windows"
    encoder = config.get("encoder", {})
    scheme = POSITIONS[encoder["positions"]] if encoder.get("positions") in POSITIONS else None
    return {
        "training examples": examples,
        "task": str(config.get("task", {}).get("name", "next-item")),
        "time of the question": "read in training" if scheme and scheme.reads_next_time else "not read",
    }


def setting_warnings(facts: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """A warning for each fact that is not the same for all runs.

    Args:
      facts: {run: `training_facts` of its configuration}.
    """
    first = next(iter(facts.values()))
    warnings = []
    for fact in first:
        by_value: dict[str, list[str]] = {}
        for run, values in facts.items():
            by_value.setdefault(values[fact], []).append(run)
        if len(by_value) > 1:
            listed = "; ".join(f"{value}: {', '.join(runs)}" for value, runs in by_value.items())
            warnings.append(
                f"runs differ in {fact} ({listed}): a difference may come from this and not the model"
            )
    return tuple(warnings)


def compare(
    runs: Sequence[str | Path],
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    split: Literal["valid", "test"] = "test",
    out: str | Path | None = None,
    dataset: SequenceDataset | None = None,
) -> Comparison:
    """Compare every run with the first, paired over users, from the ranks that the runs saved.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      metrics: the metrics to compare.
      split: "test" or "valid".
      out: directory for `COMPARISON_FILES`: tables, differences with intervals, and the last metric by history
        length and by popularity; None writes nothing.
      dataset: source of lengths and counts for the figures by group; None = the dataset of the first run's
        configuration.

    Raises:
      DataError: fewer than two runs, an unfinished run, or runs that are not comparable (fingerprint, split, protocol,
        users).
    """
    if len(runs) < 2:
        raise DataError(f"RUN: expected at least two run directories to compare, got {len(runs)}")
    names = run_names(runs)
    opened = [Run(run, dataset) for run in runs]
    ranks = [saved_ranks(name, run.ranks(split)) for name, run in zip(names, opened, strict=True)]
    comparison = compare_runs(ranks, metrics)
    facts = {name: training_facts(to_dict(run.config)) for name, run in zip(names, opened, strict=True)}
    comparison = dataclasses.replace(comparison, warnings=setting_warnings(facts))
    if out is not None:
        config = opened[0].config
        dataset = stored_dataset(opened[0].path, config.data) if dataset is None else dataset
        fingerprint = ranks[0].meta["fingerprint"]
        if dataset.fingerprint != fingerprint:
            raise DataError(
                f"--data: expected the dataset of the runs, with fingerprint {fingerprint[:16]}, got one with "
                f"{dataset.fingerprint[:16]}: give the same file with the same filters"
            )
        figures = group_figures(
            {run.name: run.evaluations for run in ranks},
            split_dataset(dataset, config.split),
            split,
            metrics[-1],
        )
        directory = new_directory(out, COMPARISON_FILES)
        write_atomically(directory / "comparison.md", comparison.to_markdown() + "\n")
        write_atomically(directory / "comparison.tex", comparison.to_latex() + "\n")
        for name, figure in {"effects": effect_figure(comparison), **figures}.items():
            save_figure(figure, directory / f"{name}.png")
    return comparison
