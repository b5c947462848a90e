"""Metrics by group of users or items, and their figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.significance import mean_interval
from jaxrec.data.splits import Split
from jaxrec.evaluation.evaluate import Evaluation


class Group(NamedTuple):
    """Mean of a metric over one group of cases.

    Attributes:
      name: the property that the cases share.
      cases: number of cases.
      mean, low, high: mean of the metric and its 95 % interval over the cases.
    """

    name: str
    cases: int
    mean: float
    low: float
    high: float


def breakdown(values: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> list[Group]:
    """Mean of a metric in each group; NaN for an empty one.

    Args:
      values: float[E], a metric of every case.
      groups: int[E], the group of each case, an index into ``names``.
    """
    values, groups = np.asarray(values), np.asarray(groups)
    rows = []
    for number, name in enumerate(names):
        inside = values[groups == number]
        rows.append(Group(name, len(inside), *mean_interval(inside)))
    return rows


def popularity_groups(targets: np.ndarray, item_counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Popularity class of each target: head, middle and tail hold a third of all training interactions each.

    Args:
      targets: int32[T].
      item_counts: int[V+1].

    Returns:
      Group of each target int64[T], and the names of the groups; the last is items without a training interaction.
    """
    counts = np.asarray(item_counts, np.int64).copy()
    counts[0] = 0
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    group = np.empty(len(counts), np.int64)
    group[order] = np.minimum(3 * before // max(int(counts.sum()), 1), 2)
    group[counts == 0] = 3
    return group[np.asarray(targets)], ["head third", "middle third", "tail third", "unseen in training"]


def history_length_groups(
    lengths: np.ndarray, edges: Sequence[int] = (5, 10, 20, 50, 100, 200)
) -> tuple[np.ndarray, list[str]]:
    """Class of each history by its number of interactions int[E]: up to each edge, and above the last."""
    low = [0, *(edge + 1 for edge in edges)]
    names = [f"{a} to {b}" for a, b in zip(low, edges, strict=False)] + [f"over {edges[-1]}"]
    return np.searchsorted(np.asarray(edges), np.asarray(lengths), side="left"), names


def group_figures(
    runs: Mapping[str, Sequence[Evaluation]], split: Split, part: str, metric: str
) -> dict[str, Figure]:
    """Draw a metric by length of the history and by popularity of the (first) target, one line per run.

    Args:
      runs: {run: its evaluation of each seed}, all of the same cases.
      split: the split that the cases are from.
      part: "valid" or "test".
      metric: such as "NDCG@10"; the value of a case is its mean over seeds.
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
        name: np.mean([evaluation.values(metric) for evaluation in evaluations], axis=0)
        for name, evaluations in runs.items()
    }
    return {
        kind: group_figure(
            {
                name: [group for group in breakdown(value, *groups) if group.cases]
                for name, value in values.items()
            },
            metric,
            label,
        )
        for kind, (groups, label) in kinds.items()
    }


def group_figure(groups: Mapping[str, Sequence[Group]], metric: str, axis: str) -> Figure:
    """Draw a metric by group of cases, one line per run, with 95 % intervals.

    Args:
      groups: {run: its groups}, the same groups for each run (`jaxrec.analysis.groups.breakdown`).
      metric: label of the vertical axis.
      axis: label of the horizontal axis.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    names: list[str] = []
    for number, (run, rows) in enumerate(groups.items()):
        names = [f"{group.name}\n({group.cases})" for group in rows]
        mean, low, high = np.array([[group.mean, group.low, group.high] for group in rows]).T
        place = np.arange(len(rows)) + 0.08 * (number - (len(groups) - 1) / 2)
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            place, mean, yerr=[mean - low, high - mean], fmt="o-", capsize=3, label=run, color=colour
        )
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    axes.set_xlabel(f"{axis} (number of cases)")
    axes.set_ylabel(metric)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure
