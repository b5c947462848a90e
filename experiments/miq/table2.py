"""MIQ-Attn's Table 2: how many items of the history form the query, with the rule "a tenth of the mean length".

    python -m experiments.miq.table2 --data ml-1m_sasrec.txt.gz
    python -m experiments.miq.table2 --data amazon_beauty_sasrec.txt.gz --windows 2 3 5 10 --max-length 50 --out runs/b

Rows are softmax attention and MIQ-Attn with each number m of query items, in SASRec as published (original block, one
negative). "The embedding size and dropout are adjusted with m": each row chooses among the same widths and dropouts
on validation. All users are evaluated; the record puts the printed figures of samples of about 1,000 users beside
them, and divides NDCG@10 by the length of the history, where MIQ-Attn is said to help.

Writes ``experiments/results/miq-table-2_<dataset>.{md,json,png}`` after each row; until all are done, it says which
are missing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.variants import StudyOptions, Variant
from jaxrec.analysis.figures import COLOURS, from_zero
from jaxrec.analysis.groups import breakdown, history_length_groups
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import MultiItemQueryAttentionConfig, SoftmaxAttentionConfig
from jaxrec.data.splits import Split, split_dataset
from jaxrec.objectives import BinaryCrossEntropyConfig, CrossEntropyConfig
from jaxrec.presets import sasrec, sasrec_original
from jaxrec.runs import Run

METRICS = ("HR@5", "NDCG@5", "HR@10", "NDCG@10", "HR@20", "NDCG@20")
#: Printed HR@5, NDCG@5, HR@10, NDCG@10, HR@20, NDCG@20 by row, {catalogue: {m: values}}; m = 1 is SASRec.
PRINTED: Mapping[int, Mapping[int, tuple[float, ...]]] = {
    57_289: {
        1: (0.0165, 0.0093, 0.0267, 0.0125, 0.0412, 0.0162),
        2: (0.0175, 0.0096, 0.0258, 0.0123, 0.0402, 0.0160),
        3: (0.0123, 0.0066, 0.0246, 0.0104, 0.0494, 0.0167),
        5: (0.0195, 0.0104, 0.0246, 0.0121, 0.0421, 0.0165),
        10: (0.0021, 0.0010, 0.0021, 0.0010, 0.0052, 0.0018),
    },
    3_416: {
        1: (0.0850, 0.0508, 0.1570, 0.0739, 0.2610, 0.0999),
        3: (0.0910, 0.0451, 0.1610, 0.0677, 0.2770, 0.0967),
        5: (0.0880, 0.0453, 0.1780, 0.0742, 0.2740, 0.0984),
        10: (0.1030, 0.0515, 0.1790, 0.0759, 0.2910, 0.1041),
        15: (0.0960, 0.0471, 0.1660, 0.0692, 0.2590, 0.0926),
    },
}


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Compare numbers of query items.

    Attributes:
      windows: numbers of query items, m.
      max_length: L; the original SASRec's is 200 on MovieLens 1M and 50 on Beauty.
      widths: widths that each row chooses from on validation.
      dropouts: dropouts that each row chooses from on validation.
      cross_entropy: exact cross-entropy rather than one negative.
    """

    data: str = "ml-1m_sasrec.txt.gz"
    windows: tuple[int, ...] = (3, 5, 10, 15)
    max_length: int = 200
    epochs: float = 200.0
    patience: int = 5
    widths: tuple[int, ...] = (50, 64, 96, 128)
    dropouts: tuple[float, ...] = (0.2, 0.5)
    cross_entropy: bool = False
    out: str = "runs/miq-table-2"


def variants(options: Options) -> list[Variant]:
    """Softmax attention first, then MIQ-Attn with each number of query items, all with the same candidates."""
    candidates = [
        {"encoder": {"width": width, "dropout": dropout}, "encoder.attention": {"dropout": dropout}}
        for width, dropout in itertools.product(options.widths, options.dropouts)
    ]
    rows = [Variant("softmax", {"encoder.attention": SoftmaxAttentionConfig()}, candidates)]
    for m in options.windows:
        attention = MultiItemQueryAttentionConfig(query_window=m)
        rows.append(Variant(f"m = {m}", {"encoder.attention": attention}, candidates))
    return rows


def window_of(name: str) -> int:
    """Query items of a row."""
    return 1 if name == "softmax" else int(name.removeprefix("m = "))


def lengths_of(split: Split) -> np.ndarray:
    """Training interactions of each user."""
    return np.asarray(split.train_stops - split.train_starts)


def tables(out: str, split: Split, result: dict[str, Any]) -> list[str]:
    """Markdown: the printed figures, the rule of the tenth, and NDCG@10 by length of the history."""
    rows = result["variants"]
    mean = float(lengths_of(split).mean())
    best = max(rows, key=lambda row: row["valid_metrics"]["NDCG@10"]["mean"])["name"]
    result["rule"] = {"mean_length": mean, "tenth": mean / 10, "best_on_validation": best}
    found = [
        f"Training histories have {mean:.1f} interactions on average, so the rule asks for m = {max(1, round(mean / 10))}; "
        f"on validation the best row is {best}."
    ]
    printed = PRINTED.get(result["dataset"]["items"], {})
    lines = []
    for row in rows:
        values = printed.get(window_of(row["name"]))
        if values:
            lines.append([row["name"], "printed", *(f"{value:.4f}" for value in values)])
        lines.append([row["name"], "here", *(f"{row['metrics'][name]['mean']:.4f}" for name in METRICS)])
    found.append(to_markdown(["row", "", *METRICS], lines))
    result["by_length"] = by_length(out, rows, split)
    header = ["row", *(group["name"] for group in result["by_length"][rows[0]["name"]])]
    lines = [
        [name, *(f"{group['mean']:.4f}" for group in groups)] for name, groups in result["by_length"].items()
    ]
    counts = ["users", *(str(group["cases"]) for group in result["by_length"][rows[0]["name"]])]
    return [*found, "NDCG@10 by interactions of the history:", to_markdown(header, [counts, *lines])]


def by_length(out: str, rows: list[dict[str, Any]], split: Split) -> dict[str, list[dict[str, Any]]]:
    """{row: NDCG@10 by length of the history}, without lengths that no user has."""
    found = {}
    for row in rows:
        evaluations = [each for each, _ in Run(Path(out) / row["name"].replace(" ", "-")).ranks("test")]
        values = np.mean([each.values("NDCG@10") for each in evaluations], axis=0)
        history = lengths_of(split)[evaluations[0].users] + 1
        groups = breakdown(values, *history_length_groups(history))
        found[row["name"]] = [
            {"name": group.name, "cases": group.cases, "mean": group.mean} for group in groups if group.cases
        ]
    return found


def figure(result: dict[str, Any]) -> Figure:
    """Draw HR@10 against m, here and as printed, and NDCG@10 by length of the history."""
    drawing = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    rows = sorted(result["variants"], key=lambda row: window_of(row["name"]))
    m = [window_of(row["name"]) for row in rows]
    values = [row["metrics"]["HR@10"] for row in rows]
    left.errorbar(
        m,
        [value["mean"] for value in values],
        [value["sd"] or 0.0 for value in values],
        fmt="o-",
        color=COLOURS[0],
        label="here, all users",
    )
    printed = PRINTED.get(result["dataset"]["items"], {})
    if printed:
        left.plot(
            list(printed), [each[2] for each in printed.values()], "s--", color=COLOURS[1], label="printed"
        )
    left.axvline(result["rule"]["tenth"], color=COLOURS[6], label="a tenth of the mean length")
    left.set(xlabel="m, items of the query (1 = softmax attention)", ylabel="HR@10")
    from_zero(left)
    left.legend(fontsize=8)
    for (name, groups), colour in zip(result["by_length"].items(), COLOURS * 3, strict=False):
        right.plot(
            [group["name"] for group in groups],
            [group["mean"] for group in groups],
            "o-",
            color=colour,
            label=name,
        )
    right.set(xlabel="interactions of the history", ylabel="NDCG@10")
    right.legend(fontsize=8)
    return drawing


def main(options: Options) -> None:
    """Run the study and write its record."""
    dataset = options.load()
    preset = sasrec_original()
    loss = CrossEntropyConfig() if options.cross_entropy else BinaryCrossEntropyConfig(exclude_seen=True)
    shared = {
        "encoder": preset.encoder,
        "objective": loss,
        "optimizer": preset.optimizer,
        "batches": {"batch_size": 64, "max_length": options.max_length},
        "training": {"evaluate_every": 5},
    }
    split = split_dataset(dataset, sasrec().split)
    options.conduct(
        "miq-table-2",
        variants(options),
        shared,
        metrics=METRICS,
        tables=lambda result: tables(options.out, split, result),
        figure=figure,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
