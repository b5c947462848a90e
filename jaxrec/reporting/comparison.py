"""Figures that compare runs: effects with intervals, a metric by group of cases, and stability curves.

Each returns a Matplotlib figure that belongs to no window; `save_figure` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrec.data.splits import Split
from jaxrec.errors import DataError
from jaxrec.evaluation.beyond import Group, breakdown, history_length_groups, popularity_groups
from jaxrec.evaluation.compare import Comparison
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.evaluation.significance import mean_interval
from jaxrec.evaluation.stability import Stability

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


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


def group_figures(
    runs: Mapping[str, Sequence[Evaluation]], split: Split, part: str, metric: str
) -> dict[str, Figure]:
    """A metric by length of the history and by popularity of the (first) target, one line a run.

    Args:
      runs: {run: its evaluation of each seed}, all of the same cases.
      split: where the cases are from.
      part: "valid" or "test".
      metric: such as "NDCG@10"; a case's value is its mean over seeds.
    """
    cases, first = split.cases(part), next(iter(runs.values()))[0]
    lengths = np.zeros(split.dataset.n_users, np.int64)
    lengths[cases.users] = cases.history_stops - cases.history_starts
    targets = first.targets[first.target_offsets[:-1]]
    kinds = {
        "by_history_length": (history_length_groups(lengths[first.users]), "interactions in the history"),
        "by_popularity": (popularity_groups(targets, split.item_counts), "the target's share of training"),
    }
    values = {
        name: np.mean([each.values(metric) for each in evaluations], axis=0)
        for name, evaluations in runs.items()
    }
    return {
        kind: group_figure(
            {
                name: [group for group in breakdown(each, *groups) if group.cases]
                for name, each in values.items()
            },
            metric,
            what,
        )
        for kind, (groups, what) in kinds.items()
    }


def group_figure(groups: Mapping[str, Sequence[Group]], metric: str, what: str) -> Figure:
    """A metric by group of cases, one line a run, with 95 % intervals.

    Args:
      groups: {run: its groups}, the same groups for each run (`jaxrec.evaluation.beyond.breakdown`).
      metric: label of the vertical axis.
      what: what the groups are, label of the horizontal axis.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    names: list[str] = []
    for number, (run, found) in enumerate(groups.items()):
        names = [f"{group.name}\n({group.cases})" for group in found]
        mean, low, high = np.array([[group.mean, group.low, group.high] for group in found]).T
        place = np.arange(len(found)) + 0.08 * (number - (len(groups) - 1) / 2)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(
            place, mean, yerr=[mean - low, high - mean], fmt="o-", capsize=3, label=run, color=colour
        )
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    axes.set_xlabel(f"{what} (number of cases)")
    axes.set_ylabel(metric)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def stability_figure(runs: Mapping[str, Sequence[Stability]]) -> Figure:
    """How alike the lists stay, by perturbation, one line a run, with 95 % intervals over cases.

    Args:
      runs: {run: its results}, under the same perturbations.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names: list[str] = []
    k = 0
    for number, (run, results) in enumerate(runs.items()):
        names, k = [each.perturbation.name for each in results], results[0].k
        mean, low, high = np.array([mean_interval(each.overlap) for each in results]).T
        place = np.arange(len(results)) + 0.08 * (number - (len(runs) - 1) / 2)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(
            place, mean, yerr=[mean - low, high - mean], fmt="o-", capsize=3, label=run, color=colour
        )
    axes.set_xticks(np.arange(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_ylabel(f"rank-biased overlap of the first {k}")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the ending of the name chooses the format (.png, .pdf, .svg)."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
