"""MIQ-Attn's Table 3 and more: encoders with two losses, and five-item queries in SASRec and S3-Rec, on S3-Rec's LastFM.

    python -m experiments.miq.table3 --data s3rec_data.zip

S3-Rec's rows start from one pretraining for each attention mechanism, which the study trains first. Every row
has the settings of its preset, but for rows that are packed where the preset pads them (as many targets per step, in half
of the time) and for one rule of stopping; nothing is tuned. Its patience is longer than the ten epochs of the authors'
code, since validation may fall for longer than that before it rises again. Writes
``experiments/results/miq-table-3_<dataset>.{md,json}`` after each row (with ``--part``, miq-table-3-PART); until all are
done, it says which are missing. The same command resumes an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tyro

from experiments.variants import StudyOptions, Variant, answers, apply, effects, recorder, study, train_once
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import MultiItemQueryAttentionConfig
from jaxrec.attention.base import AttentionConfig
from jaxrec.config import RunConfig
from jaxrec.data import load_dataset
from jaxrec.data.batches import BatchConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.objectives import BinaryCrossEntropyConfig
from jaxrec.presets import bert4rec, gru4rec, s3rec_pretrain, sasrec_s3rec, srgnn

METRICS = ("HR@5", "NDCG@5", "HR@10", "NDCG@10", "HR@20", "NDCG@20")
#: That of the other transformers, in place of the .2 of BERT4Rec's preset.
DROPOUT = {"encoder": {"dropout": 0.5, "attention.dropout": 0.5}}
#: Encoders by the name of their rows; the first row is the reference.
PRESETS = {
    "SASRec": sasrec_s3rec,
    "GRU4Rec": gru4rec,
    "SR-GNN": srgnn,
    "BERT4Rec": bert4rec,
    "BERT4Rec, dropout .5": lambda: apply(bert4rec(), DROPOUT),
}
#: Items of MIQ-Attn's query.
WINDOW = 5
#: Validations within the patience, at most: more cost as much as training, since LastFM has four steps in an epoch.
VALIDATIONS = 15


class Printed(NamedTuple):
    """HR@10 and NDCG@10 that a publication prints for a row, all with the whole catalogue of LastFM ranked."""

    row: str
    source: str
    hits: float
    gain: float


PRINTED = (
    Printed("GRU4Rec", "MIQ-Attn", 0.0468, 0.0274),
    Printed("SR-GNN", "MIQ-Attn", 0.0468, 0.0253),
    Printed("SASRec", "MIQ-Attn", 0.0486, 0.0221),
    Printed("MIQ in SASRec", "MIQ-Attn", 0.0578, 0.0261),
    Printed("S3-Rec BCE", "MIQ-Attn", 0.0752, 0.0371),
    Printed("S3-Rec", "MIQ-Attn", 0.0743, 0.0349),
    Printed("MIQ in S3-Rec", "MIQ-Attn", 0.0844, 0.0459),
    Printed("GRU4Rec", "Li et al.", 0.0459, 0.0262),
    Printed("SR-GNN", "Li et al.", 0.0394, 0.0233),
    Printed("SASRec BCE", "Li et al.", 0.0404, 0.0223),
    Printed("SASRec", "Li et al.", 0.0587, 0.0354),
    Printed("S3-Rec BCE", "Li et al.", 0.0688, 0.0356),
    Printed("S3-Rec", "Li et al.", 0.0789, 0.0381),
    Printed("GRU4Rec BCE", "S3-Rec", 0.0367, 0.0187),
    Printed("SASRec BCE", "S3-Rec", 0.0688, 0.0390),
    Printed("BERT4Rec", "S3-Rec", 0.0633, 0.0337),
    Printed("S3-Rec BCE", "S3-Rec", 0.0743, 0.0427),
)


#: What the rows are to answer, in pairs (a, b): b less a.
QUESTIONS = (
    ("SASRec", "MIQ in SASRec"),
    ("S3-Rec", "MIQ in S3-Rec"),
    ("SASRec BCE", "MIQ in SASRec BCE"),
    ("S3-Rec BCE", "MIQ in S3-Rec BCE"),
    ("SASRec", "S3-Rec"),
    ("SASRec BCE", "S3-Rec BCE"),
    ("SASRec BCE", "SASRec"),
    ("S3-Rec BCE", "S3-Rec"),
    ("GRU4Rec BCE", "GRU4Rec"),
)


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Run MIQ-Attn's Table 3.

    Attributes:
      data: S3-Rec's archive s3rec_data.zip, whose LastFM is read, or a dataset with attributes as for ``jaxrec train``.
      seeds: models for each row.
      epochs: most epochs of each row; 0 = those of its preset.
      patience: epochs without a gain on validation after which a model of 200 epochs has ended, in proportion for others;
        10 is that of the authors' code.
      pretraining_epochs: epochs of S3-Rec's pretraining; its authors' choice for LastFM.
      out: run directories; an interrupted study resumes there.
      only: names of the rows to train; empty = all.
      part: added to the name of the record, for some of the rows that stand beside a record of others.
    """

    data: str = "s3rec_data.zip"
    seeds: int = 10
    epochs: float = 0.0
    patience: int = 60
    pretraining_epochs: float = 150.0
    out: str = "runs/miq-table-3"
    part: str = ""

    places: ClassVar[tuple[str, ...]] = (*StudyOptions.places, "part")


def mechanisms() -> dict[str, AttentionConfig]:
    """Attention of SASRec's and S3-Rec's rows, by the beginning of their names."""
    base = sasrec_s3rec().encoder
    softmax: AttentionConfig = base.attention  # type: ignore[attr-defined]
    miq = MultiItemQueryAttentionConfig(heads=softmax.heads, dropout=softmax.dropout, query_window=WINDOW)
    return {"": softmax, "MIQ in ": miq}


def pretraining_folder(options: Options, prefix: str) -> Path:
    """Run directory of the pretraining for rows whose names begin with ``prefix``."""
    return Path(options.out) / ("pretraining-miq" if prefix else "pretraining-softmax")


def sections(config: RunConfig, epochs: float, patience: float = 0.0) -> dict[str, Any]:
    """Decisions of a preset, as sections of a `Variant`.

    Args:
      config: of the preset.
      epochs: above 0, in place of its own.
      patience: see `Options`; 0 = as the preset has it.
    """
    whole = {name: getattr(config, name) for name in ("batches", "encoder", "task", "objective", "optimizer")}
    kept = {name: getattr(config.training, name) for name in ("evaluate_every", "patience", "metric")}
    if patience:
        waited = patience * config.training.epochs / 200
        every = max(1.0, waited / VALIDATIONS)
        kept = {**kept, "evaluate_every": every, "patience": round(waited / every)}
    return {**whole, "training": {**kept, "epochs": epochs or config.training.epochs}}


def packed(batches: BatchConfig, lengths: np.ndarray) -> BatchConfig:
    """``batches`` with packed rows in place of padded ones, of about as many interactions.

    Args:
      batches: of a preset.
      lengths: interactions of each user that are trained on.
    """
    if batches.mode != "padded":
        return batches
    filled = float(np.minimum(lengths, batches.max_length).mean()) / batches.max_length
    return dataclasses.replace(batches, mode="packed", batch_size=max(1, round(batches.batch_size * filled)))


def variants(options: Options, lengths: np.ndarray) -> list[Variant]:
    """Every encoder with cross-entropy, then with one negative and binary cross-entropy.

    Args:
      options: of the study.
      lengths: see `packed`.
    """

    def decisions(preset: RunConfig) -> dict[str, Any]:
        found = sections(preset, options.epochs, options.patience)
        return {**found, "batches": packed(found["batches"], lengths)}

    bce = {"objective": BinaryCrossEntropyConfig(exclude_seen=True)}
    rows = [Variant(name, decisions(preset())) for name, preset in PRESETS.items()]
    plain = decisions(sasrec_s3rec())
    for prefix, attention in mechanisms().items():
        chosen = {**plain, "encoder.attention": attention}
        if prefix:
            rows.append(Variant(f"{prefix}SASRec", chosen))
        start = {**plain["training"], "init_from": str(pretraining_folder(options, prefix))}
        rows.append(Variant(f"{prefix}S3-Rec", {**chosen, "training": start}))
    return [*rows, *(Variant(f"{row.name} BCE", {**row.sections, **bce}) for row in rows)]


def pretrain(options: Options, prefix: str, base: RunConfig, dataset: SequenceDataset) -> None:
    """Train S3-Rec's first stage for a mechanism, unless it is finished."""
    folder = pretraining_folder(options, prefix)
    preset = s3rec_pretrain()
    own = {
        "training": {"epochs": options.pretraining_epochs, "select": "last"},
        "encoder.attention": mechanisms()[prefix],
    }
    config = apply(base, {**sections(preset, options.pretraining_epochs), **own})
    train_once(dataset, config, folder)


def printed_table(result: Mapping[str, Any]) -> str:
    """Markdown: printed figures beside ours, and the difference as a number of users."""
    ours = {row["name"]: row["metrics"] for row in result["variants"]}
    users = result["dataset"]["users"]
    rows = []
    for row, source, hits, gain in PRINTED:
        if row in ours:
            own = ours[row]["HR@10"]["mean"]
            gap = f"{(own - hits) * users:+.0f}"
            numbers = (f"{value:.4f}" for value in (hits, gain, own, ours[row]["NDCG@10"]["mean"]))
            rows.append([row, source, *numbers, gap])
    header = ["row", "printed by", "HR@10", "NDCG@10", "HR@10 here", "NDCG@10 here", "users' difference"]
    return to_markdown(header, rows)


def cost_table(result: Mapping[str, Any]) -> str:
    """Markdown: epochs of the longest seed of each row, and seconds of an epoch of one seed."""
    rows = [
        [
            row["name"],
            f"{row['training']['epochs']:g}",
            f"{row['timing']['training_seconds'] / sum(row['seed_epochs']):.3f}",
        ]
        for row in result["variants"]
    ]
    return to_markdown(["row", "epochs, longest seed", "seconds per epoch of a seed"], rows)


def main(options: Options) -> None:
    """Pretrain, run the study, and write its tables."""
    archive = options.data.endswith(".zip")
    dataset = load_dataset("s3rec-lastfm", archive=options.data) if archive else options.load()
    # Of every sequence the last two interactions are held out.
    rows = variants(options, np.maximum(np.diff(dataset.offsets) - 2, 0))
    chosen = options.chosen(rows)
    base = apply(
        sasrec_s3rec(), {"training": {"seeds": tuple(range(options.seeds)), "checkpoint_seconds": 60.0}}
    )
    for prefix in mechanisms():
        if any(row.name.startswith(f"{prefix}S3-Rec") for row in chosen):
            pretrain(options, prefix, base, dataset)
    own = "" if options.patience == Options.patience else f"-patience-{options.patience:g}"
    drawn = functools.partial(effects, shown=("HR@10", "NDCG@10")) if len(chosen) > 1 else None
    part = f"-{options.part}" if options.part else ""
    write = recorder(
        f"miq-table-3{own}{part}", "MIQ-Attn's Table 3", dataset, "experiments.miq.table3", drawn
    )

    def record(result: dict[str, Any]) -> None:
        """Write the record with the printed figures and the costs among its tables."""
        heading = "Pairs of rows, corrected over this table:"
        asked = answers(options.out, QUESTIONS, result, heading, ("HR@10", "NDCG@20"))
        tables = [result["markdown"], *asked, printed_table(result), cost_table(result)]
        write({**result, "plan": options.plan(rows), "markdown": "\n\n".join(tables)})

    study(base, chosen, dataset, Path(options.out), METRICS, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
