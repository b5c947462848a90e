"""BERT4Rec against SASRec: the same loss, the same encoder and the same budget, next items or masked items.

    python -m experiments.studies.masked_items
    python -m experiments.studies.masked_items --data s3rec_data.zip:Beauty --out runs/masked-items-beauty

All rows have exact cross-entropy over the catalogue. BERT4Rec's encoder is trained by both tasks; the first row is
the preset "sasrec", whose blocks differ. A step of masked items has a fifth of the targets, so two rows have four
times the epochs, without an early end. The last two rows choose their settings on validation, each from four candidates:
two learning rates, and two dropouts of the encoder or two mask rates; they have twice the epochs.

Writes ``experiments/results/masked-items_<dataset>.{md,json,png}`` after each row; until all are done, it says which
are missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from experiments.variants import Settings, StudyOptions, Variant, answers
from jaxrec.analysis.tables import to_markdown
from jaxrec.presets import bert4rec
from jaxrec.tasks import MaskedItemConfig, NextItemConfig, TaskConfig

#: How many times the epochs of the longer rows, and of those that are tuned.
TIMES = 4
TUNED_TIMES = 2
#: Settings that each task chooses from on validation: as many for one as for the other.
LEARNING_RATES = (1e-3, 3e-3)
CHOICES: dict[str, list[Settings]] = {
    "next item": [{"encoder": {"dropout": 0.2}}, {"encoder": {"dropout": 0.4}}],
    "masked items": [{"task": {"mask_rate": 0.2}}, {"task": {"mask_rate": 0.5}}],
}
PAIRS = (
    ("next item, tuned", "masked items, tuned"),
    ("masked items", "masked items, tuned"),
    ("next item", "masked items"),
    ("next item, longer", "masked items, longer"),
    ("masked items", "masked items, longer"),
    ("next item", "next item, longer"),
)


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Compare the tasks.

    Attributes:
      learning_rate: the same for all.
    """

    learning_rate: float = 1e-3
    patience: int = 10
    out: str = "runs/masked-items"


def variants(epochs: float, mask_rate: float = 0.2) -> list[Variant]:
    """Return the rows; the others are compared with the first."""
    encoder = bert4rec().encoder
    tasks: dict[str, TaskConfig] = {
        "next item": NextItemConfig(),
        "masked items": MaskedItemConfig(mask_rate=mask_rate),
    }
    rows = [Variant("sasrec", {})]
    rows += [Variant(name, {"encoder": encoder, "task": task}) for name, task in tasks.items()]
    for name, task in tasks.items():
        training = {"epochs": TIMES * epochs, "patience": 0, "evaluate_every": 2 * TIMES}
        rows.append(Variant(f"{name}, longer", {"encoder": encoder, "task": task, "training": training}))
    for name, task in tasks.items():
        candidates = [
            {**choice, "optimizer": {"learning_rate": rate}}
            for rate in LEARNING_RATES
            for choice in CHOICES[name]
        ]
        more = {"epochs": TUNED_TIMES * epochs}
        rows.append(
            Variant(f"{name}, tuned", {"encoder": encoder, "task": task, "training": more}, candidates)
        )
    return rows


def tables(out: str, result: dict[str, Any]) -> list[str]:
    """Markdown: the questions, and what each row cost."""
    lines = [
        [
            row["name"],
            f"{row['training']['epochs']:.0f}",
            str(row["training"]["best_steps"]),
            f"{row['timing']['training_seconds'] / sum(row['seed_epochs']):.3f}",
        ]
        for row in result["variants"]
    ]
    header = ["row", "epochs, longest seed", "best steps", "seconds per epoch of a seed"]
    return [*answers(out, PAIRS, result), to_markdown(header, lines)]


def main(options: Options) -> None:
    """Run the study and write its record."""
    shared = {"optimizer": {"learning_rate": options.learning_rate}}
    options.conduct(
        "masked-items",
        variants(options.epochs),
        shared,
        tables=lambda result: tables(options.out, result),
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
