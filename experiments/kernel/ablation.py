"""Structures and sharing of the positional kernel, against no positions, learned ones, RoPE, ALiBi and relative bias.

    python -m experiments.kernel.ablation
    python -m experiments.kernel.ablation --split temporal --out runs/kernel-ablation-temporal

U and L are Toeplitz or full, of each layer or shared by all. Positions count from the start in every row, so that no
row learns how far the end of a training sequence is; "learned, from the end" is the one that does. Row by row HR@10,
NDCG@10 and coverage (COV). "temporal" is the split of the authors' group: users with interactions after the 95 %
quantile of time are left out of training.

Writes ``experiments/results/kernel-ablation_<dataset>.{md,json,png}`` (``kernel-ablation-temporal_...``) after each
row; until all are done, it says which are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import tyro
from matplotlib.figure import Figure

from experiments.variants import LISTS, SharedSettings, Variant, answers
from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.attention import KernelAttentionConfig, SoftmaxAttentionConfig

SPLITS: Mapping[str, Mapping[str, Any]] = {
    "leave-one-out": {},
    "temporal": {"strategy": "temporal", "holdout_users": True},
}
Structure = Literal["toeplitz", "full"]


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare kernels.

    Attributes:
      split: leave-one-out, or temporal with the users after the cut held out.
      layers: of the encoder.
    """

    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    learning_rate: float = 2e-3
    layers: int = 2
    out: str = "runs/kernel-ablation"


def variants(dropout: float = 0.1) -> list[Variant]:
    """Return the rows; the others are compared with the first, attention without positions."""
    softmax = SoftmaxAttentionConfig(dropout=dropout)
    four_heads = dataclasses.replace(softmax, heads=4)

    def row(name: str, attention: Any, positions: str, origin: str = "start") -> Variant:
        changes = {
            "encoder.attention": attention,
            "encoder": {"positions": positions},
            "batches": {"position_origin": origin},
        }
        return Variant(name, changes)

    rows = [
        row("none", softmax, "none"),
        row("kernel toeplitz-full, layer-wise", KernelAttentionConfig(dropout=dropout), "none"),
        row("learned", softmax, "learned"),
        row("learned, from the end", softmax, "learned", "end"),
        row("rope, 4 heads", four_heads, "rotary"),
        row("alibi, 4 heads", four_heads, "alibi"),
        row("relative bias, 4 heads", four_heads, "relative-bias"),
    ]
    structures: tuple[Structure, ...] = ("toeplitz", "full")
    for upper in structures:
        for lower in structures:
            for shared in (False, True):
                name = f"kernel {upper}-{lower}, {'shared' if shared else 'layer-wise'}"
                attention = KernelAttentionConfig(
                    dropout=dropout, upper=upper, lower=lower, share_upper=shared, share_lower=shared
                )
                if name not in [known.name for known in rows]:
                    rows.append(row(name, attention, "none"))
    return rows


def tables(out: str, result: dict[str, Any]) -> list[str]:
    """Markdown: HR, NDCG and COV, and what sharing and structure change."""
    lines = [
        [
            row["name"],
            *(mean_and_deviation(row["metrics"][name]["values"]) for name in ("HR@10", "NDCG@10")),
            mean_and_deviation(row["lists"][f"coverage@{LISTS}"]["values"], 3),
        ]
        for row in result["variants"]
    ]
    found = [to_markdown(["row", "HR@10", "NDCG@10", f"COV@{LISTS}"], lines)]
    names = [row["name"] for row in result["variants"]]
    pairs = [(name, name.replace("layer-wise", "shared")) for name in names if name.endswith("layer-wise")]
    pairs += [(name, name.replace("-toeplitz,", "-full,")) for name in names if "-toeplitz," in name]
    pairs += [
        (other, "kernel toeplitz-full, layer-wise") for other in names if not other.startswith("kernel")
    ]
    return [*found, *answers(out, pairs, result)]


def figure(result: dict[str, Any]) -> Figure:
    """Draw NDCG@10 against coverage."""
    drawing = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawing.add_subplot()
    for number, row in enumerate(result["variants"]):
        gain, covered = row["metrics"]["NDCG@10"], row["lists"][f"coverage@{LISTS}"]
        axes.errorbar(
            covered["mean"],
            gain["mean"],
            gain["sd"] or 0.0,
            covered["sd"] or 0.0,
            "s" if row["name"].startswith("kernel") else "o",
            color=COLOURS[number % 6],
            label=row["name"],
        )
    axes.set(xlabel=f"COV@{LISTS}", ylabel="NDCG@10")
    drawing.legend(loc="outside right center", fontsize=8)
    return drawing


def main(options: Options) -> None:
    """Run the study and write its record."""
    shared = {
        "encoder": {"layers": options.layers},
        "split": dict(SPLITS[options.split]),
    }
    what = "kernel-ablation" if options.split == "leave-one-out" else f"kernel-ablation-{options.split}"
    options.conduct(
        what, variants(), shared, tables=lambda result: tables(options.out, result), figure=figure
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
