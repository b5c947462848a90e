"""The prefix verdict: how much of the gains of models trained on every prefix is training data rather than architecture.

    python -m experiments.studies.prefix_verdict --data s3rec_data.zip:LastFM
    python -m experiments.studies.prefix_verdict --data s3rec_data.zip:Toys --out runs/prefix-verdict-toys

BSARec, TV-Rec, WEARec and their relatives train on every prefix of a history with its last target and cross-entropy,
and are compared with a SASRec that was trained on whole histories with one negative (arXiv 2604.05309 says what this
does). Here one encoder, SASRec, is trained in all eight ways: {packed, prefix} x {all targets, last target} x
{cross-entropy, binary cross-entropy}. Every row has the same number of steps on rows of the same length, so the same
encoding to do; two further rows have four times as much, since a prefix with one target teaches less in a step.
The papers give as many epochs of prefixes as others give of histories, which is far more: the record says how much.
Prefixes also reach the targets older than the last L interactions, which packed rows leave out: "windows" is packed
rows of all of them.

Writes ``experiments/results/prefix-verdict_<dataset>.{md,json,png}`` after each row; until all are done, it says
which are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import tyro

from experiments.differences import difference_table
from experiments.variants import SharedSettings, Variant, contrasts, steps_ratio
from jaxrec.analysis.tables import to_markdown
from jaxrec.data.splits import Split, split_dataset
from jaxrec.objectives import BinaryCrossEntropyConfig, CrossEntropyConfig, ObjectiveConfig
from jaxrec.presets import sasrec

Mode = Literal["packed", "prefix", "windows"]
Targets = Literal["all", "last"]
WINDOWS: Mode = "windows"
OBJECTIVES: Mapping[str, ObjectiveConfig] = {
    "CE": CrossEntropyConfig(),
    "BCE": BinaryCrossEntropyConfig(exclude_seen=True),
}
#: End of the names of rows with more steps, and how many times as many.
LONGER, TIMES = ", longer", 4
#: Epochs of packed batches between validations.
VALIDATE_EVERY = 2.0
#: HR@10 and NDCG@10 that others print for models of the family, {dataset: {model: values}}; BSARec's are RecBoard's, the
#: others come from the logs in the authors' repositories.
PRINTED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "LastFM": {
        "TV-Rec, one seed": (0.0853, 0.0484),
        "WEARec, best of its grid on test": (0.0899, 0.0465),
        "WEARec, mean of its grid": (0.0679, 0.0386),
    },
    "Beauty": {
        "BSARec, 5 seeds": (0.1004, 0.0609),
        "TV-Rec, one seed": (0.1017, 0.0608),
        "WEARec, best of its grid on test": (0.1041, 0.0614),
    },
    "Sports": {"BSARec, 5 seeds": (0.0596, 0.0342), "TV-Rec, one seed": (0.0635, 0.0363)},
    "Toys": {"BSARec, 5 seeds": (0.1050, 0.0650)},
}


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Train SASRec on packed histories or prefixes, on all or last targets, with two losses.

    Attributes:
      epochs: most epochs of packed batches. Rows of prefixes have as many steps, and two rows four times as many.
    """

    data: str = "s3rec_data.zip:LastFM"
    epochs: float = 100.0
    patience: int = 15
    learning_rate: float = 1e-3
    dropout: float = 0.5
    out: str = "runs/prefix-verdict-lastfm"


def batches(mode: Mode, targets: Targets) -> dict[str, Any]:
    """Return the options of the batches of a row."""
    if mode == "prefix":
        return {"mode": mode, "prefix_targets": targets, "position_origin": "end"}
    long = "windows" if mode == "windows" else "last"
    return {"mode": "packed", "targets": targets, "long_histories": long, "position_origin": "end"}


def variants(epochs: float, split: Split) -> list[Variant]:
    """Return the rows; the others are compared with the first, what jaxrec does by default."""
    modes: tuple[Mode, ...] = ("packed", "prefix")
    kinds: tuple[Targets, ...] = ("all", "last")
    reference = batches("packed", "all")
    ratios = {mode: steps_ratio(batches(mode, "all"), reference, split) for mode in (*modes, WINDOWS)}

    def row(mode: Mode, targets: Targets, loss: str, times: int = 1) -> Variant:
        factor = times * ratios[mode]
        training = {"epochs": epochs * factor, "evaluate_every": VALIDATE_EVERY * factor}
        changes = {"batches": batches(mode, targets), "objective": OBJECTIVES[loss], "training": training}
        return Variant(f"{mode}, {targets}, {loss}" + (LONGER if times > 1 else ""), changes)

    # What papers compare comes first, so that an interrupted study has it.
    usual = [row("packed", "all", "CE"), row("prefix", "last", "CE"), row("packed", "all", "BCE")]
    known = {each.name for each in usual}
    every = [row(mode, targets, loss) for mode in modes for targets in kinds for loss in OBJECTIVES]
    return [
        *usual,
        *(each for each in every if each.name not in known),
        row("packed", "all", "CE", TIMES),
        row("prefix", "last", "CE", TIMES),
        row(WINDOWS, "all", "CE"),
    ]


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Rows that differ in one factor, the others fixed, and the two ways of training that papers compare."""
    found = [("packed, all, BCE", "prefix, last, CE"), ("packed, all, CE", "prefix, last, CE")]
    found += [
        (f"packed, all, CE{LONGER}", f"prefix, last, CE{LONGER}"),
        ("packed, all, CE", "windows, all, CE"),
    ]
    for a in names:
        for b in names:
            if a.endswith(LONGER) or b.endswith(LONGER):
                continue
            changed = [x for x in zip(a.split(", "), b.split(", "), strict=True) if x[0] != x[1]]
            if len(changed) == 1 and changed[0] in (("packed", "prefix"), ("all", "last"), ("BCE", "CE")):
                found.append((a, b))
    return [pair for pair in found if set(pair) <= set(names)]


def tables(options: Options, name: str, result: dict[str, Any]) -> list[str]:
    """Markdown: budgets, the effect of each factor, and the printed figures."""
    budgets = [
        [
            row["name"],
            str(row["training"]["steps"]),
            f"{row['training']['epochs']:.1f}",
            f"{row['timing']['training_seconds']:.0f}",
        ]
        for row in result["variants"]
    ]
    found = [to_markdown(["row", "steps, longest seed", "epochs", "training seconds, all seeds"], budgets)]
    per_epoch = {
        row["name"].split(",")[0]: row["training"]["steps"] / row["training"]["epochs"]
        for row in result["variants"]
    }
    if {"packed", "prefix"} <= per_epoch.keys():
        times = per_epoch["prefix"] / per_epoch["packed"]
        found.append(f"An epoch of prefixes has {times:.0f} times the steps of an epoch of packed histories.")
    chosen = pairs([row["name"] for row in result["variants"]])
    if chosen:
        changes = contrasts(options.out, chosen)
        result["factors"] = changes
        found += ["One factor changed, corrected over these rows:", difference_table(changes)]
    printed = next((rows for key, rows in PRINTED.items() if key.lower() in name.lower()), {})
    if printed:
        lines = [[model, f"{hits:.4f}", f"{gain:.4f}"] for model, (hits, gain) in printed.items()]
        found += ["Printed elsewhere, all with prefixes:", to_markdown(["model", "HR@10", "NDCG@10"], lines)]
    return found


def main(options: Options) -> None:
    """Run the study and write its record."""
    dataset = options.load()
    split = split_dataset(dataset, sasrec().split)
    options.conduct(
        "prefix-verdict",
        variants(options.epochs, split),
        tables=lambda result: tables(options, dataset.name, result),
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
