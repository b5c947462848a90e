"""BERT4Rec on whole histories or on every prefix: what the examples contribute to masked items.

    python -m experiments.studies.masked_prefixes --data s3rec_data.zip:LastFM
    python -m experiments.studies.masked_prefixes --epochs 320 --out runs/masked-prefixes-mt

Ranking asks for the item behind a history. In a whole history only the last item can be hidden with nothing behind it, the
same one in every epoch; over its prefixes every item can.

BERT4Rec's encoder with exact cross-entropy is trained by {next items, masked items} on {whole histories, every prefix}, and
by masked items on windows, which reach the interactions older than the last L. All rows have the same number of steps at
most, on rows of the same length, and the same number of validations; stopping is chosen by them.

Writes ``experiments/results/masked-prefixes_<dataset>.{md,json,png}`` after each row; until all are done, it says which
are missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from experiments.variants import Settings, StudyOptions, Variant, answers, steps_ratio
from jaxrec.analysis.tables import to_markdown
from jaxrec.data.splits import Split, split_dataset
from jaxrec.presets import bert4rec
from jaxrec.tasks import MaskedItemConfig, NextItemConfig, TaskConfig

#: Validations of a row that does not end early.
VALIDATIONS = 60
TASKS: dict[str, TaskConfig] = {"next items": NextItemConfig(), "masked items": MaskedItemConfig()}
EXAMPLES: dict[str, Settings] = {
    "": {},
    ", prefixes": {"mode": "prefix"},
    ", windows": {"long_histories": "windows"},
}
PAIRS = (
    ("masked items", "masked items, prefixes"),
    ("masked items", "masked items, windows"),
    ("next items", "next items, prefixes"),
    ("next items", "masked items"),
    ("next items, prefixes", "masked items, prefixes"),
    ("next items", "masked items, prefixes"),
)


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Train BERT4Rec's encoder on whole histories, windows or prefixes.

    Attributes:
      epochs: most epochs of whole histories; rows of other examples have as many steps.
      batch_size: rows of a step.
      patience: validations without a gain after which a model has ended, of `VALIDATIONS` in all.
    """

    data: str = "s3rec_data.zip:LastFM"
    epochs: float = 800.0
    batch_size: int = 64
    patience: int = 15
    out: str = "runs/masked-prefixes-lastfm"


def variants(epochs: float, batch_size: int, split: Split) -> list[Variant]:
    """Return the rows; the others are compared with the first."""

    def row(task: str, examples: str) -> Variant:
        batches = {"batch_size": batch_size, "position_origin": "end"}
        changed = {**batches, **EXAMPLES[examples]}
        length = epochs * steps_ratio(changed, batches, split)
        training = {"epochs": length, "evaluate_every": length / VALIDATIONS}
        sections = {
            "encoder": bert4rec().encoder,
            "task": TASKS[task],
            "batches": changed,
            "training": training,
        }
        return Variant(task + examples, sections)

    rows = [row(task, examples) for examples in ("", ", prefixes") for task in TASKS]
    return [*rows, row("masked items", ", windows")]


def tables(out: str, result: dict[str, Any]) -> list[str]:
    """Markdown: the questions, and what each row cost."""
    lines = [
        [
            row["name"],
            str(row["training"]["steps"]),
            str(row["training"]["best_steps"]),
            f"{row['training']['epochs']:.1f}",
            f"{row['timing']['training_seconds']:.0f}",
        ]
        for row in result["variants"]
    ]
    header = ["row", "steps, longest seed", "best steps", "epochs", "training seconds, all seeds"]
    return [*answers(out, PAIRS, result), to_markdown(header, lines)]


def main(options: Options) -> None:
    """Run the study and write its record."""
    split = split_dataset(options.load(), options.base().split)
    options.conduct(
        "masked-prefixes",
        variants(options.epochs, options.batch_size, split),
        tables=lambda result: tables(options.out, result),
        title="Masked items on whole histories and on prefixes",
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
