"""Users and items from both sides: a next-item model, a next-user model of the transposed log, and their ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.compare import Comparison, RunRanks, compare_runs
from jaxrec.analysis.figures import COLOURS, save_figure
from jaxrec.analysis.groups import group_figures
from jaxrec.analysis.tables import mean_and_deviation, new_directory, to_latex, to_markdown
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import Split
from jaxrec.data.transposed import TRANSPOSED, ReverseCoverage, reverse_coverage
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.ensemble import (
    WEIGHTS,
    EncoderScorer,
    Scale,
    ScoreEnsemble,
    best_weight,
    weight_curve,
)
from jaxrec.evaluation.evaluate import Evaluation, evaluate_cases
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.next_user import NextUserScorer
from jaxrec.evaluation.ranker import Ranker, ScoreRanker
from jaxrec.evaluation.tie_order import tie_seed
from jaxrec.files import write_atomically
from jaxrec.options import option_name
from jaxrec.runs import Run

#: Names of the three models.
NEXT_ITEM, NEXT_USER, ENSEMBLE = "next item", "next user", "ensemble"

#: Files that `Duality.write` makes.
FILES = ("ensemble.md", "ensemble.tex", "weights.png", "by_popularity.png", "coverage.png")


@dataclasses.dataclass(frozen=True)
class Duality:
    """Both models and their ensemble on the same cases.

    Attributes:
      evaluations: {model: one `Evaluation` per pair of seeds}.
      curves: validation metric by weight of the next-user model, one curve per pair of seeds.
      weights: chosen weight of each pair.
      metric: metric that chose the weights.
      scale: see `jaxrec.evaluation.ensemble.on_scale`.
      popularity: weight of an item's popularity in the next-user model.
      split: of the log.
      part: "valid" or "test".
      meta: what `compare_runs` checks: fingerprint, split and part.
      coverage: of the sequences that the next-user model reads.
    """

    evaluations: dict[str, list[Evaluation]]
    curves: list[dict[float, float]]
    weights: list[float]
    metric: str
    scale: Scale
    popularity: float
    split: Split
    part: str
    meta: dict[str, Any]
    coverage: ReverseCoverage

    def ranks(self, names: Sequence[str] = (NEXT_ITEM, NEXT_USER, ENSEMBLE)) -> list[RunRanks]:
        """Ranks of some of the models, to be compared."""
        return [RunRanks(name, tuple(self.evaluations[name]), self.meta) for name in names]

    def compare(self, metrics: Sequence[str]) -> Comparison:
        """Compare the next-user model and the ensemble with the next-item model, paired over users and seeds."""
        return compare_runs(self.ranks(), metrics, same_models={ENSEMBLE})

    def weight_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: the validation metric at each weight, mean over pairs of seeds."""
        rows = [
            [f"{weight:g}", mean_and_deviation([curve[weight] for curve in self.curves])]
            for weight in self.curves[0]
        ]
        return ["weight of the next-user model", f"validation {self.metric}"], rows

    def figures(self) -> dict[str, Figure]:
        """Figures by file name: metric by weight, metric by popularity of the target, and coverage."""
        groups = group_figures(self.evaluations, self.split, self.part, self.metric)
        return {
            "weights.png": weight_figure(self),
            "by_popularity.png": groups["by_popularity"],
            "coverage.png": coverage_figure(self.coverage),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "metrics": {
                name: [evaluation.metrics for evaluation in of_seeds]
                for name, of_seeds in self.evaluations.items()
            },
            "weights": self.weights,
            "curves": [{f"{weight:g}": value for weight, value in curve.items()} for curve in self.curves],
            "metric": self.metric,
            "scale": self.scale,
            "popularity": self.popularity,
            "part": self.part,
            "coverage": self.coverage.to_dict(),
        }

    def to_markdown(self, metrics: Sequence[str]) -> str:
        """Models, differences, weights and coverage."""
        chosen = ", ".join(f"{weight:g}" for weight in self.weights)
        return "\n".join(
            [
                self.compare(metrics).to_markdown(),
                f"\nWeights of the next-user model that validation chose ({self.scale} of scores per user): {chosen}.\n",
                to_markdown(*self.weight_rows()),
                to_markdown(*self.coverage.rows()),
            ]
        )

    def write(self, out: str | Path, metrics: Sequence[str]) -> None:
        """Write tables and figures to a directory, without replacing files."""
        directory = new_directory(out, FILES)
        write_atomically(directory / "ensemble.md", self.to_markdown(metrics) + "\n")
        tables = [self.compare(metrics).to_latex(), to_latex(*self.weight_rows())]
        write_atomically(
            directory / "ensemble.tex", "\n".join([*tables, to_latex(*self.coverage.rows())]) + "\n"
        )
        for name, figure in self.figures().items():
            save_figure(figure, directory / name)


def measure_duality(
    items: Run,
    users: Run,
    part: Literal["valid", "test"] = "test",
    *,
    metric: str = "",
    scale: Scale = "z-score",
    popularity: float = 0.0,
    weights: Sequence[float] = WEIGHTS,
) -> Duality:
    """Rank the held-out targets by a next-item model, a next-user model, and both.

    The weight of each pair of seeds is chosen on validation targets, whatever ``part`` is ranked.

    Args:
      items: run on a log.
      users: run on the transposed log of the same split, with as many seeds.
      part: held-out part to rank.
      metric: that chooses the weight; "" = the validation metric of ``items``.
      scale: see `jaxrec.evaluation.ensemble.on_scale`.
      popularity: weight of an item's popularity in the next-user model; see `jaxrec.evaluation.next_user`.
      weights: of the next-user model, to choose from.

    Raises:
      DataError: ``users`` is no run on the transposed training part of the log and split of ``items``.
      ConfigError: the runs have different numbers of seeds.
    """
    setup, config = items.setup, items.config.evaluation
    split, dataset = setup.split, setup.dataset
    last = check_transposed(items, users)
    metric = metric or items.config.metric
    sequences = item_sequences(users)
    seed = tie_seed(dataset.fingerprint)
    evaluations: dict[str, list[Evaluation]] = {NEXT_ITEM: [], NEXT_USER: [], ENSEMBLE: []}
    curves, chosen = [], []
    for one, other in zip(items.seeds, users.seeds, strict=True):
        ranker = items.ranker(one)
        first = EncoderScorer(ranker, items.config.objective.temperature)
        second = NextUserScorer.build(
            users.ranker(other),
            sequences,
            split.item_counts,
            popularity,
            temperature=users.config.objective.temperature,
        )
        curve = weight_curve(
            first,
            second,
            split.valid,
            dataset.items,
            config,
            metric,
            timestamps=setup.timestamps,
            weights=weights,
            scale=scale,
            tie_seed=seed,
        )
        weight = best_weight(curve)
        ensemble = ScoreEnsemble(first, second, weight, scale)
        rankers: dict[str, Ranker] = {
            NEXT_ITEM: ranker,
            NEXT_USER: ScoreRanker(second, tie_seed=seed),
            ENSEMBLE: ScoreRanker(ensemble, tie_seed=seed),
        }
        for name, each in rankers.items():
            evaluations[name].append(
                evaluate_cases(
                    each,
                    split.cases(part),
                    dataset.items,
                    config,
                    timestamps=setup.timestamps,
                    known_items=split.item_counts > 0,
                )
            )
        curves.append(curve)
        chosen.append(weight)
    meta = {"fingerprint": dataset.fingerprint, "split": dict(split.options), "part": part}
    coverage = reverse_coverage(split, last)
    return Duality(evaluations, curves, chosen, metric, scale, popularity, split, part, meta, coverage)


def check_transposed(items: Run, users: Run) -> int:
    """Check that ``users`` reads the transposed training part of what ``items`` reads.

    Returns:
      Newest users of an item that its sequence holds; 0 = all.

    Raises:
      DataError: it does not.
      ConfigError: the runs have different numbers of seeds.
    """
    record = users.dataset.meta.get(TRANSPOSED)
    if record is None:
        raise DataError(
            f"run {users.name!r} must be trained on a transposed log, got one on {users.dataset.name!r}: make it with "
            "jaxrec transpose and train on that"
        )
    if record["source"] != items.dataset.fingerprint:
        raise DataError(
            f"run {users.name!r} must be trained on the transposed log of {items.dataset.name!r} "
            f"({items.dataset.fingerprint[:16]}), got the transpose of {str(record['source'])[:16]}: transpose the same data"
        )
    options = dict(items.setup.split.options)
    if record["split"] != options:
        differing = sorted(
            name for name in {*options, *record["split"]} if options.get(name) != record["split"].get(name)
        )
        listed = ", ".join(option_name("split", name) for name in differing)
        raise DataError(
            f"run {users.name!r} must be trained on the training part of the same split, but {listed} differ: held-out "
            f"interactions of {items.name!r} could be in it; transpose with the split of that run"
        )
    if len(items.seeds) != len(users.seeds):
        raise ConfigError(
            f"runs must have as many seeds to be paired, got {len(items.seeds)} ({items.name}) and {len(users.seeds)} "
            f"({users.name}): train both with the same --seeds"
        )
    return int(record["last"])


def item_sequences(users: Run) -> Histories:
    """The whole sequence of users of every item, from the dataset of a run on the transposed log."""
    dataset: SequenceDataset = users.dataset
    offsets = np.asarray(dataset.offsets)
    owners = np.arange(dataset.n_users, dtype=np.int32)
    return Histories(np.asarray(dataset.items), offsets[:-1], offsets[1:], users.setup.timestamps, owners)


def weight_figure(result: Duality) -> Figure:
    """Draw the validation metric by weight of the next-user model, one line per pair of seeds, and their mean."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    places = list(result.curves[0])
    values = np.array([[curve[weight] for weight in places] for curve in result.curves])
    for row, weight in zip(values, result.weights, strict=True):
        axes.plot(places, row, color=COLOURS[-1], linewidth=0.8)
        axes.plot([weight], [row[places.index(weight)]], "o", color=COLOURS[1], markersize=4)
    axes.plot(places, values.mean(axis=0), "o-", color=COLOURS[0], label="mean over seeds")
    axes.set_xlabel("weight of the next-user model (dots: chosen)")
    axes.set_ylabel(f"validation {result.metric}")
    axes.legend(fontsize=8)
    return figure


def coverage_figure(coverage: ReverseCoverage) -> Figure:
    """Draw shares of interactions in sequences, of items with a target and of test targets, by popularity of the item."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    draw_coverage(figure.add_subplot(), coverage)
    return figure


def draw_coverage(axes: Any, coverage: ReverseCoverage) -> None:
    """Draw on given axes; see `coverage_figure`."""
    tiers = [tier for tier in coverage.tiers if tier.items]
    targets = max(1, sum(tier.test_targets for tier in tiers))
    bars = {
        "interactions that the sequences hold": [tier.used / max(1, tier.interactions) for tier in tiers],
        "items with at least two users": [tier.trainable / tier.items for tier in tiers],
        "test targets that are in this tier": [tier.test_targets / targets for tier in tiers],
    }
    for number, (label, heights) in enumerate(bars.items()):
        axes.bar(
            np.arange(len(tiers)) + 0.27 * (number - 1), heights, 0.27, label=label, color=COLOURS[number]
        )
    axes.set_xticks(np.arange(len(tiers)), [f"{tier.name}\n({tier.items})" for tier in tiers], fontsize=8)
    axes.set_xlabel("training interactions of the item (number of items)")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.4)
    axes.set_yticks(np.arange(0, 1.1, 0.2))
    axes.legend(fontsize=8, loc="upper left")
