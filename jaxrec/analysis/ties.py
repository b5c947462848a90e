"""Dependence of results on the order of simultaneous interactions: reorder ties at random and evaluate again.

Many logs give the same time to several interactions of a user (a whole day, a batch of ratings); their order in the file is
then an accident, but decides histories and targets (Woolridge et al., CEUR 2955; the issue tracker of LRURec). Baselines
are fitted again to every reordered log, so their spread is exact. A trained model is only ranked again: ties are reordered
inside its training part and inside the held-out part, never across, since a target that the model was trained on would
flatter it. Where ties cross that border, `retie` makes a log to train on again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import COLOURS
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import Split, SplitConfig, split_dataset
from jaxrec.errors import DataError


@dataclasses.dataclass(frozen=True)
class TieSpread:
    """Metric of one model or baseline over reordered ties.

    Attributes:
      name: name of the model or baseline.
      original: the metric in the order of the file; mean over seeds.
      draws: the metric of every reordering.
      refitted: fitted again to every reordered log, ties reordered freely; False for a model that is ranked again only.
    """

    name: str
    original: float
    draws: tuple[float, ...]
    refitted: bool


@dataclasses.dataclass(frozen=True)
class Ties:
    """Result of `measure_ties`.

    Attributes:
      metric: name of the metric.
      tied: share of interactions at the same time as another of the user.
      tied_targets: share of cases whose (first) target is at the same time as the newest interaction of the history.
      crossing: share of cases in which a tie crosses the border of the training part.
      spreads: one per model and baseline.
    """

    metric: str
    tied: float
    tied_targets: float
    crossing: float
    spreads: tuple[TieSpread, ...]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table."""
        rows = []
        for spread in self.spreads:
            draws = np.asarray(spread.draws)
            sd = f"{draws.std(ddof=1):.4f}" if len(draws) > 1 else "-"
            rows.append(
                [
                    spread.name,
                    f"{spread.original:.4f}",
                    f"{draws.mean():.4f}",
                    sd,
                    f"{draws.min():.4f} to {draws.max():.4f}",
                    "everywhere, fitted again" if spread.refitted else "not across the training part",
                ]
            )
        return ["", f"{self.metric} as filed", "mean reordered", "sd", "range", "ties reordered"], rows

    def sentence(self) -> str:
        """Number of ties in the log and at the targets."""
        return (
            f"{self.tied:.1%} of interactions share their time with another of the user; {self.tied_targets:.1%} of "
            f"targets with the newest interaction of their history; in {self.crossing:.1%} of cases a tie crosses the "
            "border of the training part, which only training again on a reordered log can test."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def retie(dataset: SequenceDataset, seed: int, borders: np.ndarray | None = None) -> SequenceDataset:
    """Reorder the items of each user's simultaneous interactions at random.

    Args:
      dataset: a log with timestamps.
      seed: seed of the reordering.
      borders: int64[U], positions in the log that no item crosses, one per user (such as the stop of the training part).

    Raises:
      DataError: the log has no timestamps.
    """
    group = _groups(dataset, borders)
    order = np.lexsort((np.random.default_rng(seed).random(len(group)), group))
    return dataclasses.replace(dataset, items=np.asarray(dataset.items)[order])


def _groups(dataset: SequenceDataset, borders: np.ndarray | None = None) -> np.ndarray:
    """int64[N], number of the run of simultaneous interactions that each interaction belongs to."""
    if dataset.timestamps is None:
        raise DataError(
            f"--retie: expected a log with timestamps, but dataset {dataset.name!r} has none: ties cannot be known; "
            "load it with its time column"
        )
    times = np.asarray(dataset.timestamps)
    new = np.ones(len(times) + 1, bool)
    new[1:-1] = times[1:] != times[:-1]
    new[np.asarray(dataset.offsets)] = True
    if borders is not None:
        new[borders] = True
    return np.cumsum(new[:-1])


def measure_ties(
    split: Split,
    part: str,
    metric: str,
    model: tuple[str, Callable[[Split], float]],
    baselines: Callable[[Split], Mapping[str, float]],
    draws: int = 10,
) -> Ties:
    """Evaluate a model and baselines on logs with reordered ties.

    Args:
      split: the split of the log as filed.
      part: "valid" or "test".
      metric: name of the metric that the functions return.
      model: name, and the metric of the trained model on the held-out part of a split.
      baselines: the metric of every baseline, fitted to the training part of a split.
      draws: number of reorderings.

    Raises:
      DataError: the log has no timestamps.
    """
    dataset = split.dataset
    fields = {field.name for field in dataclasses.fields(SplitConfig)}
    config = SplitConfig(**{name: value for name, value in split.options.items() if name in fields})
    name, evaluate = model
    as_filed = {name: evaluate(split), **baselines(split)}
    tied, tied_targets, crossing = tie_shares(split, part)
    values: dict[str, list[float]] = {baseline: [] for baseline in as_filed}
    for seed in range(draws):
        if not tied:  # every order is the one as filed
            for baseline, value in as_filed.items():
                values[baseline].append(value)
            continue
        values[name].append(evaluate(split_dataset(retie(dataset, seed, split.train_stops), config)))
        for baseline, value in baselines(split_dataset(retie(dataset, seed), config)).items():
            values[baseline].append(value)
    spreads = [TieSpread(key, as_filed[key], tuple(values[key]), key != name) for key in as_filed]
    return Ties(metric, tied, tied_targets, crossing, tuple(spreads))


def tie_shares(split: Split, part: str) -> tuple[float, float, float]:
    """Shares of tied interactions, of targets tied with their history, and of cases with a tie across training.

    Args:
      split: a split of a log with timestamps.
      part: "valid" or "test".
    """
    dataset, cases = split.dataset, split.cases(part)
    group = _groups(dataset)
    sizes = np.bincount(group)
    stops = np.asarray(cases.history_stops)
    inside = stops < np.asarray(dataset.offsets)[cases.users + 1]
    target_tied = inside & (group[np.minimum(stops, len(group) - 1)] == group[stops - 1])
    borders = np.asarray(split.train_stops)[cases.users]
    within = (borders > np.asarray(split.train_starts)[cases.users]) & (
        borders < np.asarray(dataset.offsets)[cases.users + 1]
    )
    crossing = within & (group[np.minimum(borders, len(group) - 1)] == group[borders - 1])
    return float((sizes[group] > 1).mean()), float(target_tied.mean()), float(crossing.mean())


def ties_figure(ties: Ties) -> Figure:
    """Draw the metric of every reordering beside that of the order as filed, one row per model and baseline."""
    figure = Figure(figsize=(6.4, 1.0 + 0.45 * len(ties.spreads)), layout="constrained")
    axes = figure.add_subplot()
    names = [spread.name for spread in ties.spreads]
    for row, spread in enumerate(ties.spreads):
        place = np.full(len(spread.draws), row)
        axes.plot(
            spread.draws, place, "o", color=COLOURS[0], alpha=0.5, label="reordered" if row == 0 else None
        )
        axes.plot(
            [spread.original],
            [row],
            "|",
            color="black",
            markersize=16,
            label="as filed" if row == 0 else None,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(ties.metric)
    axes.legend(fontsize=8)
    return figure
