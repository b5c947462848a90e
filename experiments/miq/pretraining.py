"""S3-Rec's pretraining against training from scratch with the same total compute, with two losses of fine-tuning.

    python -m experiments.miq.pretraining --data s3rec_data.zip:LastFM
    python -m experiments.miq.pretraining --pretraining-epochs 10 --prefixes 2 --out runs/pretraining-short

Three rows for each loss: from scratch; from the pretrained parameters; and from scratch with as many more epochs as
the pretraining cost in seconds of this machine, without an early end, the best by validation. The first stage is
trained once, the rows from scratch before the ones whose length depends on their speed. The same command resumes.

Writes ``experiments/results/pretraining_<dataset>.{md,json,png}`` after each row of the last round; until all are
done, it says which are missing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.miq.table3 import sections
from experiments.variants import (
    Settings,
    StudyOptions,
    Variant,
    answers,
    apply,
    epochs_of_seeds,
    recorder,
    study,
    train_once,
)
from jaxrec.analysis.tables import to_markdown
from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.objectives import BinaryCrossEntropyConfig, CrossEntropyConfig, ObjectiveConfig
from jaxrec.presets import s3rec_pretrain, sasrec_s3rec

LOSSES: dict[str, ObjectiveConfig] = {
    "CE": CrossEntropyConfig(),
    "BCE": BinaryCrossEntropyConfig(exclude_seen=True),
}
KINDS = ("scratch", "pretrained", "scratch, same compute")


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Compare pretraining with more training.

    Attributes:
      data: with attributes of items.
      epochs: most epochs of fine-tuning.
      pretraining_epochs: epochs of the first stage; the authors' choice for LastFM.
      prefixes: prefixes of each history that an epoch of the first stage draws.
    """

    epochs: float = 200.0
    patience: int = 10
    pretraining_epochs: float = 150.0
    prefixes: int = 50
    out: str = "runs/pretraining"


def first_stage(options: Options, base: RunConfig, dataset: SequenceDataset) -> float:
    """Train the first stage, unless it is finished; its seconds of training."""
    folder = Path(options.out) / "pretraining"
    preset = s3rec_pretrain().updated({"batches.prefixes_per_sequence": options.prefixes})
    config = apply(base, sections(preset, options.pretraining_epochs))
    config = apply(config, {"training": {"select": "last", "evaluate_every": options.pretraining_epochs}})
    train_once(dataset, config, folder)
    return training_seconds(folder)


def training_seconds(folder: Path) -> float:
    """Seconds of training of a finished run, all seeds."""
    return json.loads((folder / "results.json").read_text())["timing"]["training_seconds"]


def variants(options: Options, seconds: float | None = None) -> list[Variant]:
    """Return the rows; those whose length is that of another's seconds are left out while these are not known.

    Args:
      options: of the study.
      seconds: training seconds of the first stage.
    """
    rows = []
    for loss, objective in LOSSES.items():
        for kind in KINDS:
            if kind == "scratch, same compute" and seconds is None:
                continue
            training: dict[str, Any] = {"epochs": options.epochs, "evaluate_every": 2}
            if kind == "pretrained":
                training["init_from"] = str(Path(options.out) / "pretraining")
            elif kind == "scratch, same compute":
                scratch = Path(options.out) / name_of("scratch", loss).replace(" ", "-")
                # Seeds end early there and none does here, so the cost is that of an epoch of all seeds.
                one = training_seconds(scratch) / float(np.mean(epochs_of_seeds(scratch)))
                training |= {"epochs": round(options.epochs + (seconds or 0) / one), "patience": 0}
            rows.append(Variant(name_of(kind, loss), {"objective": objective, "training": training}))
    return rows


def name_of(kind: str, loss: str) -> str:
    """Name of a row."""
    return f"{kind}, {loss}"


def tables(options: Options, seconds: float, result: dict[str, Any]) -> list[str]:
    """Markdown: pretrained against both kinds of scratch, and the cost of each row."""
    pairs = [
        (name_of(kind, loss), name_of("pretrained", loss))
        for loss in LOSSES
        for kind in ("scratch", "scratch, same compute")
    ]
    found = answers(options.out, pairs, result, "What pretraining adds, corrected over these rows:")
    result["pretraining_seconds"] = seconds
    lines = [["first stage", f"{options.pretraining_epochs:g}", f"{seconds:.0f}"]]
    for row in result["variants"]:
        epochs, cost = row["training"]["epochs"], row["timing"]["training_seconds"]
        lines.append([row["name"], f"{epochs:.0f}", f"{cost:.0f}"])
    return [*found, to_markdown(["row", "epochs", "training seconds, all seeds"], lines)]


def main(options: Options) -> None:
    """Train both stages and write the record."""
    dataset = options.load()
    base: Settings = {
        "training": {
            "seeds": tuple(range(options.seeds)),
            "patience": options.patience,
            "checkpoint_seconds": 60.0,
        }
    }
    config = apply(sasrec_s3rec(), base)
    every = [Variant(name_of(kind, loss), {}) for loss in LOSSES for kind in KINDS]
    chosen = {row.name for row in options.chosen(every)}
    seconds = first_stage(options, config, dataset)
    # Both from scratch first: their speed sets the length of the others.
    scratch = [row for row in variants(options) if row.name.startswith("scratch")]
    study(config, scratch, dataset, Path(options.out))
    rows = [row for row in variants(options, seconds) if row.name in chosen]
    write = recorder("pretraining", "Pretraining and more training", dataset, "experiments.miq.pretraining")

    def record(result: dict[str, Any]) -> None:
        """Write the record with its further tables."""
        result = {**result, "plan": options.plan(every)}
        added = tables(options, seconds, result)
        write({**result, "markdown": "\n\n".join([result["markdown"], *added])})

    study(config, rows, dataset, Path(options.out), record=record)


if __name__ == "__main__":
    main(tyro.cli(Options))
