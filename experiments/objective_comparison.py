"""Every objective with the same encoder, on one dataset, with the same tuning budget on validation.

    python -m experiments.objective_comparison
    python -m experiments.objective_comparison --data path/to/LastFM.txt --out runs/objectives-lastfm

Writes ``experiments/results/objectives_<dataset>.{md,json}``.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from pathlib import Path

import tyro

from experiments.variants import Variant, apply, study, write
from jaxrec.data import load_dataset
from jaxrec.objectives import OBJECTIVES
from jaxrec.presets import sasrec


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare objectives.

    Attributes:
      data: as for ``jaxrec train``.
      seeds: models for each objective.
      epochs: most epochs of each.
      learning_rates: candidates for each objective.
      dropouts: candidates for each objective.
      out: run directories; an interrupted study goes on there.
      only: names of the objectives to run; empty = all.
    """

    data: str = "movietweetings"
    seeds: int = 5
    epochs: float = 60.0
    learning_rates: tuple[float, ...] = (1e-3, 2e-3)
    dropouts: tuple[float, ...] = (0.3, 0.5)
    out: str = "runs/objectives"
    only: tuple[str, ...] = ()


def variants(options: Options) -> list[Variant]:
    """Exact cross-entropy first; then every objective for scores that are dot products, with its own defaults."""
    candidates = [
        {"optimizer": {"learning_rate": rate}, "encoder": {"dropout": dropout}}
        for rate in options.learning_rates
        for dropout in options.dropouts
    ]
    names = ["cross-entropy", *(name for name in OBJECTIVES if name != "cross-entropy")]
    chosen = [name for name in names if not OBJECTIVES[name]().needs_distances]
    every = [Variant(name, {"objective": OBJECTIVES[name]()}, candidates) for name in chosen]
    last = Variant("cross-entropy last target", {"batches": {"targets": "last"}}, candidates)
    return [v for v in [*every, last] if not options.only or v.name in options.only]


def main(options: Options) -> None:
    """Run the study and write its tables."""
    dataset = load_dataset(options.data)
    base = apply(
        sasrec(),
        {
            "data": {"source": options.data},
            "training": {
                "seeds": tuple(range(options.seeds)),
                "epochs": options.epochs,
                "evaluate_every": 2,
                "patience": 4,
                "checkpoint_seconds": 60.0,
            },
        },
    )
    command = "python -m experiments.objective_comparison " + shlex.join(sys.argv[1:])
    name = dataset.name.lower().replace(" ", "-")

    record = functools.partial(
        write,
        title=f"Objectives on {dataset.name}",
        command=command.strip(),
        path=Path(f"experiments/results/objectives_{name}"),
    )
    study(base, variants(options), dataset, Path(options.out), record=record)


if __name__ == "__main__":
    main(tyro.cli(Options))
