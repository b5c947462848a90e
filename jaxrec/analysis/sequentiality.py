"""Use of order by a model: metric and lists after shuffling each history, with recency separated from earlier order.

After "Does It Look Sequential?" (Klenitskiy et al., RecSys 2024), which shuffles whole test histories and ranks again with
the same model. Shuffling all interactions but the newest leaves recency and destroys the rest of the order; shuffling all
destroys both. Only the part of a history that the model reads is shuffled, so the model reads the same items either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.significance import Effect, paired_bootstrap
from jaxrec.analysis.stability import Perturbation, Stability, measure_stability
from jaxrec.evaluation.histories import RankingCases
from jaxrec.evaluation.metrics import metric_values
from jaxrec.evaluation.ranker import Ranker

Shuffle = Literal["all", "all-but-last", "both"]


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Effect of one shuffle on the models of one run.

    Attributes:
      shuffle: "all" or "all-but-last".
      before, after: mean of the metric over cases and seeds.
      effect: after minus before, over users and seeds.
      overlap, jaccard: mean similarity of the lists before and after.
    """

    shuffle: str
    before: float
    after: float
    effect: Effect
    overlap: float
    jaccard: float

    @property
    def relative(self) -> float:
        """The change relative to the metric before; NaN where that is 0."""
        return self.effect.difference / self.before if self.before else float("nan")


@dataclasses.dataclass(frozen=True)
class Sequentiality:
    """Result of `measure_sequentiality`.

    Attributes:
      metric: name of the metric.
      k: length of the lists.
      shuffles: one result per shuffle.
    """

    metric: str
    k: int
    shuffles: tuple[Shuffled, ...]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table."""
        header = ["shuffled", f"{self.metric} before", "after", "change", "95% interval", "relative"]
        header += [f"overlap@{self.k}", f"Jaccard@{self.k}"]
        rows = [
            [
                row.shuffle,
                f"{row.before:.4f}",
                f"{row.after:.4f}",
                f"{row.effect.difference:+.4f}",
                f"[{row.effect.low:+.4f}, {row.effect.high:+.4f}]",
                "-" if np.isnan(row.relative) else f"{row.relative:+.1%}",
                f"{row.overlap:.3f}",
                f"{row.jaccard:.3f}",
            ]
            for row in self.shuffles
        ]
        return header, rows

    def sentence(self) -> str:
        """The share of the metric that depends on the newest interaction's place and on the order of the others; "" of 0."""
        change = {row.shuffle: row.relative for row in self.shuffles}
        if set(change) != {"all", "all-but-last"} or np.isnan(list(change.values())).any():
            return ""
        order, both = change["all-but-last"], change["all"]
        return (
            f"Order of the interactions before the newest: {order:+.1%} of {self.metric} when it is lost; "
            f"place of the newest (recency): a further {both - order:+.1%}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        shuffles = {
            row.shuffle: {
                "before": row.before,
                "after": row.after,
                "relative": row.relative if row.before else None,
                "rank_biased_overlap": row.overlap,
                "jaccard": row.jaccard,
                **row.effect._asdict(),
            }
            for row in self.shuffles
        }
        return {"metric": self.metric, "k": self.k, "shuffles": shuffles}


def measure_sequentiality(
    rankers: Sequence[Ranker],
    cases: RankingCases,
    max_length: int,
    metric: str = "NDCG@10",
    shuffle: Shuffle = "both",
    k: int = 10,
    seed: int = 0,
) -> Sequentiality:
    """Rank again with shuffled histories; candidates and targets remain the same.

    Args:
      rankers: one model per seed of a run.
      cases: histories and targets.
      max_length: interactions of a history that the models read.
      metric: the metric whose change is measured.
      shuffle: "all", "all-but-last", or "both".
      k: length of the lists that are compared.
      seed: seed of the shuffles.
    """
    kinds = ("all", "all-but-last") if shuffle == "both" else (shuffle,)
    edits = [Perturbation("shuffle", where, seed=seed) for where in kinds]  # type: ignore[arg-type]
    results = measure_stability(rankers, cases, max_length, k, edits)
    return Sequentiality(metric, k, tuple(_shuffled(result, metric) for result in results))


def _shuffled(result: Stability, metric: str) -> Shuffled:
    before, after = (
        np.stack([metric_values(ranks, metric, result.target_offsets) for ranks in seeds])
        for seeds in (result.ranks_before, result.ranks)
    )
    return Shuffled(
        shuffle=result.perturbation.where,
        before=float(before.mean()),
        after=float(after.mean()),
        effect=paired_bootstrap(before, after, users=result.users, paired_seeds=True),
        overlap=float(result.overlap.mean()),
        jaccard=float(result.jaccard.mean()),
    )


def sequentiality_figure(result: Sequentiality) -> Figure:
    """Draw the metric of the intact and the shuffled histories, with 95 % intervals of the change."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = ["intact", *(row.shuffle for row in result.shuffles)]
    heights = [result.shuffles[0].before, *(row.after for row in result.shuffles)]
    low = [0.0, *(max(row.effect.difference - row.effect.low, 0) for row in result.shuffles)]
    high = [0.0, *(max(row.effect.high - row.effect.difference, 0) for row in result.shuffles)]
    axes.bar(names, heights, color=[COLOURS[6], *COLOURS[: len(result.shuffles)]])
    axes.errorbar(names, heights, yerr=[low, high], fmt="none", ecolor="black", capsize=4)
    axes.set_ylabel(result.metric)
    axes.set_xlabel("interactions of each history that were shuffled")
    return figure
