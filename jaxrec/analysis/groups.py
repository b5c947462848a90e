"""Breakdowns: a metric by groups of cases (history, target, transition, time), as table and figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import sparse

from jaxrec.analysis.figures import COLOURS, from_zero
from jaxrec.analysis.significance import mean_interval
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import Split
from jaxrec.data.stretches import ranges
from jaxrec.evaluation.baselines import transition_counts
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.evaluation.histories import Histories


class Group(NamedTuple):
    """Mean of a metric over one group of cases.

    Attributes:
      name: the property that the cases share.
      cases: number of cases.
      mean, low, high: mean of the metric over the cases and its 95 % interval over their users; see `mean_interval`.
    """

    name: str
    cases: int
    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, None for NaN."""
        values = self._asdict()
        return {name: None if isinstance(x, float) and np.isnan(x) else x for name, x in values.items()}


def breakdown(
    values: np.ndarray, groups: np.ndarray, names: Sequence[str], users: np.ndarray | None = None
) -> list[Group]:
    """Mean of a metric in each group; NaN for an empty one.

    Args:
      values: float[E], a metric of every case.
      groups: int[E], the group of each case, an index into ``names``.
      names: of the groups.
      users: int[E], the user of each case; None = a user each.
    """
    values, groups = np.asarray(values), np.asarray(groups)
    users = np.arange(len(values)) if users is None else np.asarray(users)
    rows = []
    for number, name in enumerate(names):
        inside = groups == number
        rows.append(Group(name, int(inside.sum()), *mean_interval(values[inside], users=users[inside])))
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


def count_groups(targets: np.ndarray, item_counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Class of each target int32[T] by its number of training interactions: none (cold), 1 to 4, 5 to 19, 20 or more."""
    counts = np.asarray(item_counts)[np.asarray(targets)]
    names = ["cold (never in training)", "1 to 4", "5 to 19", "20 or more"]
    return np.searchsorted(np.array([1, 5, 20]), counts, side="right"), names


def repeat_groups(histories: Histories, targets: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Class of each case by whether its target int32[E] is in its history: new or repeated."""
    lengths = histories.lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    same = np.asarray(histories.items)[ranges(histories.starts, lengths)] == np.asarray(targets)[owner]
    repeated = np.bincount(owner[same], minlength=len(lengths)) > 0
    return repeated.astype(np.int64), ["new to the user", "repeated"]


def transition_groups(
    last_items: np.ndarray, targets: np.ndarray, transitions: sparse.csr_matrix
) -> tuple[np.ndarray, list[str]]:
    """Class of each case by the shortest path of training transitions from the newest item to the target.

    One hop is memorised, two hops are composed of memorised ones, and the rest is beyond both (after the breakdown of
    arXiv 2603.19809).

    Args:
      last_items: int64[E], 0 = empty history.
      targets: int32[E].
      transitions: [V+1, V+1], number of times that item j directly follows item i in training.
    """
    forward = (transitions.tocsr() > 0).astype(np.int32)
    backward = forward.T.tocsr()
    last_items, targets = np.asarray(last_items), np.asarray(targets)
    direct = np.asarray(forward[last_items, targets]).reshape(-1) > 0
    between = np.asarray(forward[last_items].multiply(backward[targets]).sum(axis=1)).reshape(-1) > 0
    names = ["transition in training", "two hops in training", "never in training"]
    return np.where(direct, 0, np.where(between, 1, 2)), names


def gap_groups(gaps: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Class of each case by the seconds float[E] between the newest interaction and the target; NaN = unknown."""
    edges = np.array([3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0])
    names = ["within an hour", "a day", "a week", "30 days", "longer", "unknown"]
    return np.where(np.isnan(gaps), 5, np.searchsorted(edges, gaps, side="left")), names


class Grouping(NamedTuple):
    """One way of dividing E cases into groups.

    Attributes:
      groups: int64[E], index into ``names``.
      names: names of the groups.
      label: the property, as an axis label.
    """

    groups: np.ndarray
    names: list[str]
    label: str


#: Users with a training target, and those without, whom a model with vectors of users answers as new ones.
USER_GROUPS = ("known", "new")


def case_groupings(
    split: Split, part: str, users: np.ndarray, whole_sequences: bool = False
) -> dict[str, Grouping]:
    """Groupings of the evaluated cases by history, target, transition and time.

    A case with several targets is grouped by its first.

    Args:
      split: the split.
      part: "valid" or "test".
      users: int32[E], users of the evaluated cases, as `Evaluation.users`; one with several cases (successive targets) is
        there as often, in their order.
      whole_sequences: whether the task learns from a single training interaction of a user, too
        (`jaxrec.tasks.base.TaskConfig`).
    """
    cases, dataset = split.cases(part), split.dataset
    rows = _rows_of(users, cases.users)
    targets = np.asarray(cases.targets)[np.asarray(cases.target_offsets)[rows]]
    items = np.asarray(dataset.items)
    histories = Histories(items, cases.history_starts, cases.history_stops, users=cases.users).select(rows)
    transitions = transition_counts(items, split.train_starts, split.train_stops, dataset.n_items)
    groupings = {
        "history_length": Grouping(*history_length_groups(histories.lengths), "interactions in the history"),
        "popularity": Grouping(*popularity_groups(targets, split.item_counts), "popularity of the target"),
        "training_count": Grouping(
            *count_groups(targets, split.item_counts), "training interactions of the target"
        ),
        "repetition": Grouping(*repeat_groups(histories, targets), "target and history"),
        "transition": Grouping(
            *transition_groups(histories.last_items(), targets, transitions), "newest item to target"
        ),
    }
    known = split.train_stops - split.train_starts > int(not whole_sequences)
    if not known[users].all():
        groupings["user"] = Grouping((~known[users]).astype(np.int64), list(USER_GROUPS), "user in training")
    if dataset.timestamps is not None:
        gaps = _gaps(dataset, histories, targets)
        groupings["gap"] = Grouping(*gap_groups(gaps), "time since the last interaction")
    return groupings


def _rows_of(users: np.ndarray, users_of_cases: np.ndarray) -> np.ndarray:
    """int64[E], the case of each entry of ``users``: the n-th entry of a user is the user's n-th case."""
    order, asked = np.argsort(users_of_cases, kind="stable"), np.argsort(users, kind="stable")
    ascending = np.asarray(users)[asked]
    number = np.arange(len(asked)) - np.searchsorted(ascending, ascending)
    rows = np.empty(len(asked), np.int64)
    rows[asked] = order[np.searchsorted(np.asarray(users_of_cases)[order], ascending) + number]
    return rows


def _gaps(dataset: SequenceDataset, histories: Histories, targets: np.ndarray) -> np.ndarray:
    """float64[E], seconds from the newest interaction to the target, NaN where the target is not the next one."""
    times, items = np.asarray(dataset.timestamps), np.asarray(dataset.items)
    stops = np.asarray(histories.stops)
    end = np.asarray(dataset.offsets)[np.asarray(histories.users) + 1]
    place = np.minimum(stops, len(items) - 1)
    is_next = (stops < end) & (histories.lengths > 0) & (items[place] == targets)
    return np.where(is_next, times[place] - times[np.maximum(stops - 1, 0)], np.nan)


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """A metric by groups of cases, for a model and baselines.

    Attributes:
      metric: name of the metric.
      groups: {grouping: {model: its groups}}.
      labels: {grouping: axis label}.
    """

    metric: str
    groups: dict[str, dict[str, list[Group]]]
    labels: dict[str, str]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table: the metric of each model by group, with the 95 % interval of the first model."""
        models = list(next(iter(self.groups.values())))
        header = [
            "cases by",
            "group",
            "cases",
            "share",
            f"{self.metric}: {models[0]}",
            "95% interval",
            *models[1:],
        ]
        rows = []
        for grouping, by_model in self.groups.items():
            total = sum(group.cases for group in by_model[models[0]])
            for number, group in enumerate(by_model[models[0]]):
                if not group.cases:
                    continue
                interval = "-" if np.isnan(group.low) else f"[{group.low:.4f}, {group.high:.4f}]"
                others = [f"{by_model[model][number].mean:.4f}" for model in models[1:]]
                share = f"{group.cases / total:.1%}"
                row = [
                    self.labels[grouping],
                    group.name,
                    str(group.cases),
                    share,
                    f"{group.mean:.4f}",
                    interval,
                ]
                rows.append([*row, *others])
        return header, rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a mean over no case is None, and an interval over one or over equal values."""
        groups = {
            grouping: {model: [group.to_dict() for group in rows] for model, rows in by_model.items()}
            for grouping, by_model in self.groups.items()
        }
        return {"metric": self.metric, "groups": groups}


def measure_breakdown(
    evaluations: Mapping[str, Sequence[Evaluation]],
    split: Split,
    part: str,
    metric: str,
    whole_sequences: bool = False,
) -> Breakdown:
    """Divide the metric of models by every grouping of `case_groupings`.

    Args:
      evaluations: {model: its evaluation of each seed}, all of the same cases.
      split: the split that the cases are from.
      part: "valid" or "test".
      metric: such as "NDCG@10"; the value of a case is its mean over seeds.
      whole_sequences: see `case_groupings`.
    """
    users = next(iter(evaluations.values()))[0].users
    groupings = case_groupings(split, part, users, whole_sequences)
    values = {
        name: np.mean([evaluation.values(metric) for evaluation in of_seeds], axis=0)
        for name, of_seeds in evaluations.items()
    }
    groups = {
        kind: {
            name: breakdown(value, grouping.groups, grouping.names, users) for name, value in values.items()
        }
        for kind, grouping in groupings.items()
    }
    return Breakdown(metric, groups, {kind: grouping.label for kind, grouping in groupings.items()})


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
    result = measure_breakdown(runs, split, part, metric)
    return {f"by_{kind}": _kind_figure(result, kind) for kind in ("history_length", "popularity")}


def _kind_figure(result: Breakdown, kind: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    _draw_groups(figure.add_subplot(), result, kind)
    return figure


def breakdown_figure(result: Breakdown) -> Figure:
    """Draw a metric by every grouping, one panel each, one line per model."""
    kinds = list(result.groups)
    figure = Figure(figsize=(13.0, 3.9 * -(-len(kinds) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(kinds) // 2), 2, squeeze=False).reshape(-1)
    for axis, kind in zip(axes, kinds, strict=False):
        _draw_groups(axis, result, kind)
    for axis in axes[len(kinds) :]:
        axis.set_visible(False)
    return figure


def _draw_groups(axes: Any, result: Breakdown, kind: str) -> None:
    present = {
        model: [group for group in groups if group.cases] for model, groups in result.groups[kind].items()
    }
    draw_groups(axes, present, result.metric, result.labels[kind])


def group_figure(groups: Mapping[str, Sequence[Group]], metric: str, axis: str) -> Figure:
    """Draw a metric by group of cases, one line per run, with 95 % intervals.

    Args:
      groups: {run: its groups}, the same groups for each run (`jaxrec.analysis.groups.breakdown`).
      metric: label of the vertical axis.
      axis: label of the horizontal axis.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    draw_groups(figure.add_subplot(), groups, metric, axis)
    return figure


def draw_groups(axes: Any, groups: Mapping[str, Sequence[Group]], metric: str, axis: str) -> None:
    """Draw on given axes; see `group_figure`."""
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
    from_zero(axes)
    axes.legend(fontsize=8)
