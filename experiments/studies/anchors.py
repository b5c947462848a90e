"""The anchors: plain SASRec with cross-entropy, tuned on validation alone, beside the best figures published for it.

    python -m experiments.studies.anchors --data ml-1m_sasrec.txt.gz --anchor ml-1m --seeds 3
    python -m experiments.studies.anchors --data s3rec_data.zip:Beauty --anchor beauty --out runs/anchors-beauty

The grid and the budget are those of Time to Split (arXiv 2507.16289): L = 128, learning rate .001, 300 epochs,
patience 10, here of validations two epochs apart; a step has the targets of 256 histories. The published values
are chosen on validation of one seed as well. Rows are packed, so short histories cost less than there. On a CPU
MovieLens 1M takes days: the command is meant for an accelerator.

Writes ``experiments/results/anchors_<dataset>.{md,json,png}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.variants import StudyOptions, Variant
from jaxrec.analysis.figures import COLOURS, from_zero
from jaxrec.analysis.tables import to_markdown
from jaxrec.data.splits import Split, split_dataset
from jaxrec.presets import sasrec


class Anchor(NamedTuple):
    """HR@10 and NDCG@10 of plain SASRec in a publication."""

    hits: float
    gain: float
    source: str


SPLITTING = "Time to Split, one seed, chosen on validation"
ANCHORS: Mapping[str, Anchor] = {
    "ml-1m": Anchor(0.3207, 0.1858, SPLITTING),
    "beauty": Anchor(0.0974, 0.0588, SPLITTING),
    "sports": Anchor(0.0563, 0.0329, SPLITTING),
    "toys": Anchor(0.0970, 0.0580, "eSASRec's page, sampled softmax"),
    "lastfm": Anchor(0.0679, 0.0386, "WEARec, mean of its grid on test"),
}


class Setting(NamedTuple):
    """A point of the grid."""

    width: int
    layers: int
    heads: int
    dropout: float


#: Of the published grid, the points whose test values are known for MovieLens 1M.
GRID = (
    Setting(64, 2, 1, 0.1),
    Setting(64, 2, 1, 0.3),
    Setting(128, 2, 1, 0.3),
    Setting(128, 3, 4, 0.3),
    Setting(256, 3, 1, 0.3),
    Setting(256, 3, 2, 0.3),
)
HISTORIES = 256


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Reach the anchors.

    Attributes:
      anchor: published figures to put beside.
      max_length: L.
      widths: widths of the grid to try; empty = all.
    """

    anchor: Literal["ml-1m", "beauty", "sports", "toys", "lastfm"] = "ml-1m"
    data: str = "ml-1m_sasrec.txt.gz"
    epochs: float = 300.0
    patience: int = 10
    max_length: int = 128
    widths: tuple[int, ...] = ()
    out: str = "runs/anchors-ml-1m"


def variants(widths: tuple[int, ...]) -> list[Variant]:
    """SASRec with the points of the grid as candidates."""
    points = [point for point in GRID if not widths or point.width in widths]
    if not points:
        raise SystemExit(
            f"widths: expected some of {', '.join(map(str, sorted({point.width for point in GRID})))}; got {widths}"
        )
    candidates = [
        {
            "encoder": {"width": point.width, "layers": point.layers, "dropout": point.dropout},
            "encoder.attention": {"heads": point.heads, "dropout": point.dropout},
        }
        for point in points
    ]
    return [Variant("sasrec", {}, candidates)]


def rows_of(split: Split, max_length: int) -> int:
    """Packed rows that hold the targets of `HISTORIES` histories, on average."""
    inputs = np.minimum(np.maximum(split.train_stops - split.train_starts - 1, 0), max_length)
    return max(1, round(HISTORIES * float(inputs.mean()) / max_length))


def tables(anchor: str, result: dict[str, Any]) -> list[str]:
    """Markdown: the anchor beside our means, and the difference in users."""
    published, own = ANCHORS[anchor], result["variants"][0]["metrics"]
    users = result["dataset"]["users"]
    lines = [
        [
            metric,
            f"{value:.4f}",
            f"{own[metric]['mean']:.4f}",
            f"{min(own[metric]['values']):.4f} to {max(own[metric]['values']):.4f}",
            f"{(own[metric]['mean'] - value) * users:+.0f}" if metric == "HR@10" else "",
        ]
        for metric, value in (("HR@10", published.hits), ("NDCG@10", published.gain))
    ]
    result["anchor"] = {"name": anchor, **published._asdict()}
    return [
        f"Published: {published.source}.",
        to_markdown(["metric", "published", "mean here", "seeds here", "users' difference"], lines),
    ]


def figure(result: dict[str, Any]) -> Figure:
    """Draw validation NDCG@10 of each candidate, and the test values of the chosen one beside the anchor."""
    drawing = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    row = result["variants"][0]
    names = [
        f"{each['candidate']['encoder']['width']} wide, {each['candidate']['encoder']['layers']} layers, "
        f"{each['candidate']['encoder.attention']['heads']} heads, {each['candidate']['encoder']['dropout']}"
        for each in row["tried"]
    ]
    left.barh(names, [each["valid"] for each in row["tried"]], color=COLOURS[0])
    left.set_xlabel("validation NDCG@10, first seed")
    for place, metric in enumerate(("HR@10", "NDCG@10")):
        values = row["metrics"][metric]["values"]
        right.plot(
            [place] * len(values), values, "o", color=COLOURS[0], label=None if place else "seeds here"
        )
    anchor = result["anchor"]
    right.plot(
        [0, 1], [anchor["hits"], anchor["gain"]], "_", markersize=30, color=COLOURS[1], label="published"
    )
    right.set_xticks([0, 1], ["HR@10", "NDCG@10"])
    right.set_xlim(-0.5, 1.5)
    from_zero(right)
    right.legend(fontsize=8)
    return drawing


def main(options: Options) -> None:
    """Tune, train, and write the record."""
    dataset = options.load()
    split = split_dataset(dataset, sasrec().split)
    rows = rows_of(split, options.max_length)
    shared = {
        "batches": {"max_length": options.max_length, "batch_size": rows, "max_segments": options.max_length},
    }
    options.conduct(
        "anchors",
        variants(options.widths),
        shared,
        tables=lambda result: tables(options.anchor, result),
        figure=figure,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
