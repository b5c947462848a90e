"""Every objective with the same encoder, on one dataset, with the same tuning budget on validation.

    python -m experiments.studies.objective_comparison
    python -m experiments.studies.objective_comparison --data path/to/LastFM.txt --out runs/objectives-lastfm

Writes ``experiments/results/objectives_<dataset>.{md,json}``.
"""

from __future__ import annotations

import dataclasses

import tyro

from experiments.variants import StudyOptions, Variant
from jaxrec.objectives import OBJECTIVES


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Compare objectives.

    Attributes:
      learning_rates: candidates for each objective.
      dropouts: candidates for each objective.
    """

    epochs: float = 60.0
    learning_rates: tuple[float, ...] = (1e-3, 2e-3)
    dropouts: tuple[float, ...] = (0.3, 0.5)
    out: str = "runs/objectives"


def variants(options: Options) -> list[Variant]:
    """Exact cross-entropy first; then every objective for scores that are dot products, with its own defaults."""
    candidates = [
        {"optimizer": {"learning_rate": rate}, "encoder": {"dropout": dropout}}
        for rate in options.learning_rates
        for dropout in options.dropouts
    ]
    others = [
        name for name in OBJECTIVES if name not in ("cross-entropy", "bpr-pvn")
    ]  # pvn needs STOSA's distances
    chosen = ["cross-entropy", *others]
    every = [Variant(name, {"objective": OBJECTIVES[name]()}, candidates) for name in chosen]
    last = Variant("cross-entropy last target", {"batches": {"targets": "last"}}, candidates)
    return [*every, last]


def main(options: Options) -> None:
    """Run the study and write its tables."""
    options.conduct("objectives", variants(options))


if __name__ == "__main__":
    main(tyro.cli(Options))
