"""Checks of one run beside its metrics: use of order, dependence on ties, breakdowns by groups, personalisation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.groups import Breakdown, breakdown_figure, measure_breakdown
from jaxrec.analysis.personalisation import Personalisation, personalisation_figure, run_personalisation
from jaxrec.analysis.sequentiality import Sequentiality, measure_sequentiality, sequentiality_figure
from jaxrec.analysis.tables import to_markdown, write_tables
from jaxrec.analysis.ties import Ties, measure_ties, ties_figure
from jaxrec.data.splits import Split
from jaxrec.errors import ConfigError
from jaxrec.evaluation.baselines import evaluate_baselines
from jaxrec.evaluation.evaluate import Evaluation, evaluate_cases
from jaxrec.evaluation.histories import ranking_cases
from jaxrec.evaluation.metrics import parse_metric
from jaxrec.runs import Run


@dataclasses.dataclass(frozen=True)
class Checks:
    """Checks to run.

    Attributes:
      shuffle: rank again with shuffled histories: "all" interactions, "all-but-last", or "both"; "" = no.
      retie: number of random orders of simultaneous interactions to evaluate; 0 = none.
      breakdown: divide the metric by groups of cases.
      personal: compare lists and futures of users with similar histories, and measure effective ranks.
      metric: metric of the checks; "" = the validation metric of the run.
    """

    shuffle: Literal["", "all", "all-but-last", "both"] = ""
    retie: int = 0
    breakdown: bool = False
    metric: str = ""
    personal: bool = False

    def __post_init__(self) -> None:
        if self.retie < 0:
            raise ConfigError(f"--retie: expected a number of random orders, at least 0, got {self.retie}")
        if self.metric:
            parse_metric(self.metric)

    def __bool__(self) -> bool:
        """Whether any check is asked for."""
        return bool(self.shuffle or self.retie or self.breakdown or self.personal)


@dataclasses.dataclass(frozen=True)
class CheckResults:
    """Results of `run_checks`; None for a check that was not run.

    Attributes:
      sequentiality, ties, breakdown, personalisation: result of each check.
      seconds: {check: seconds}.
    """

    sequentiality: Sequentiality | None
    ties: Ties | None
    breakdown: Breakdown | None
    personalisation: Personalisation | None
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the checks that were run."""
        results = {
            "sequentiality": self.sequentiality,
            "ties": self.ties,
            "breakdown": self.breakdown,
            "personalisation": self.personalisation,
        }
        values = {name: result.to_dict() for name, result in results.items() if result is not None}
        return {**values, "check_seconds": self.seconds}

    def tables(self) -> list[tuple[list[str], list[list[Any]]]]:
        """Header and rows of every check that was run."""
        results = (self.sequentiality, self.ties, self.breakdown)
        tables = [result.rows() for result in results if result is not None]
        if self.personalisation is not None:
            tables += [self.personalisation.rows(), self.personalisation.whole_rows()]
        return tables

    def figures(self) -> dict[str, Figure]:
        """Figure of every check that was run, by file name."""
        figures = {}
        if self.sequentiality is not None:
            figures["shuffled.png"] = sequentiality_figure(self.sequentiality)
        if self.ties is not None:
            figures["ties.png"] = ties_figure(self.ties)
        if self.breakdown is not None:
            figures["breakdown.png"] = breakdown_figure(self.breakdown)
        if self.personalisation is not None:
            figures["personalisation.png"] = personalisation_figure({"model": self.personalisation})
        return figures

    def to_markdown(self) -> str:
        """All tables, and a sentence on order and ties."""
        parts = []
        if self.sequentiality is not None:
            parts += [to_markdown(*self.sequentiality.rows()), self.sequentiality.sentence() + "\n"]
        if self.ties is not None:
            parts += [to_markdown(*self.ties.rows()), self.ties.sentence() + "\n"]
        if self.breakdown is not None:
            parts.append(to_markdown(*self.breakdown.rows()))
        if self.personalisation is not None:
            parts += [
                to_markdown(*self.personalisation.rows()),
                to_markdown(*self.personalisation.whole_rows()),
            ]
        return "\n".join(parts)

    def write(self, out: str | Path) -> None:
        """Write ``checks.md``, ``checks.tex`` and the figures to a directory that does not hold them."""
        told = (self.sequentiality, self.ties)
        notes = [sentence for result in told if result is not None and (sentence := result.sentence())]
        write_tables(out, "checks", self.tables(), self.figures(), notes)


def run_checks(
    run: Run,
    split: str,
    checks: Checks,
    evaluations: Sequence[Evaluation],
    baselines: Mapping[str, Evaluation],
) -> CheckResults:
    """Run the checks of a trained model.

    Args:
      run: the run.
      split: "valid" or "test".
      checks: the checks to run.
      evaluations: evaluation of each seed on that split.
      baselines: evaluation of each baseline on it.

    Raises:
      DataError: ties were asked for, and the log has no timestamps.
    """
    setup, config = run.setup, run.config
    metric = checks.metric or config.metric
    length = min(parse_metric(metric)[1] or 10, setup.dataset.n_items)
    rankers = [run.ranker(seed) for seed in run.seeds]
    seconds: dict[str, float] = {}
    sequentiality = ties = breakdown = personalisation = None
    if checks.shuffle:
        started = time.perf_counter()
        cases = ranking_cases(
            setup.split.cases(split), setup.dataset.items, setup.timestamps, config.evaluation.remove_seen
        )
        sequentiality = measure_sequentiality(
            rankers, cases, rankers[0].encoding.longest_history, metric, checks.shuffle, k=length
        )
        seconds["shuffle"] = time.perf_counter() - started
    if checks.retie:
        started = time.perf_counter()

        def of_model(variant: Split) -> float:
            values = [
                evaluate_cases(
                    ranker,
                    variant.cases(split),
                    variant.dataset.items,
                    config.evaluation,
                    timestamps=setup.timestamps,
                ).values(metric)
                for ranker in rankers
            ]
            return float(np.mean(values))

        def of_baselines(variant: Split) -> dict[str, float]:
            part: Any = split
            # Equal scores are in the order of the log as filed, or their order would be part of the spread.
            filed = setup.dataset.fingerprint
            fitted = evaluate_baselines(variant, part, config.evaluation, filed)
            return {name: float(evaluation.values(metric).mean()) for name, evaluation in fitted.items()}

        ties = measure_ties(setup.split, split, metric, ("model", of_model), of_baselines, draws=checks.retie)
        seconds["retie"] = time.perf_counter() - started
    if checks.breakdown:
        started = time.perf_counter()
        models = {"model": list(evaluations), **{name: [ranks] for name, ranks in baselines.items()}}
        whole = config.task.whole_sequences
        breakdown = measure_breakdown(models, setup.split, split, metric, whole)
        seconds["breakdown"] = time.perf_counter() - started
    if checks.personal:
        started = time.perf_counter()
        personalisation = run_personalisation(run, split, length, metric)
        seconds["personal"] = time.perf_counter() - started
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    return CheckResults(sequentiality, ties, breakdown, personalisation, rounded)
