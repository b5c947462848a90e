"""AWRSR's table: Recall@1, 5 and 10 of its variants against softmax attention, and uniform weights as a control.

    python -m experiments.awrsr.table
    python -m experiments.awrsr.table --data s3rec_data.zip:Beauty --out runs/awrsr-table-beauty

One encoder, one budget; only the attention weights change. "depth" applies the refinement to its own output. The
figure has learning curves and gradient norms, since the paper claims faster learning and better convergence; the
record counts the epochs that each row needs to come within 2 % of its best validation.

Writes ``experiments/results/awrsr-table_<dataset>.{md,json,png}`` after each row; until all are done, it says which
are missing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.differences import difference_table
from experiments.variants import SharedSettings, Variant, contrasts
from jaxrec.analysis.curves import LearningCurve, curves_figure
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import RefinedAttentionConfig, SoftmaxAttentionConfig, UniformAttentionConfig

#: With one target, the hit rate is the recall.
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@10")
#: Gains in Recall@1 that the paper states over the best other model of its table, {dataset: percent}.
STATED = {"beauty": 7.22, "ml-1m": 9.81, "anime": 2.31}
#: Share of the best validation that counts as reached.
REACHED = 0.98


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare AWRSR's variants.

    Attributes:
      depths: further depths of the simple variant.
    """

    learning_rate: float = 2e-3
    depths: tuple[int, ...] = (2, 4)
    out: str = "runs/awrsr-table"


def variants(depths: tuple[int, ...], dropout: float = 0.1) -> list[Variant]:
    """Return the rows; the others are compared with the first."""

    def refined(
        variant: Literal["simple", "value-weighted", "additive"], depth: int = 1
    ) -> RefinedAttentionConfig:
        return RefinedAttentionConfig(dropout=dropout, variant=variant, depth=depth)

    rows: dict[str, Any] = {
        "softmax": SoftmaxAttentionConfig(dropout=dropout),
        "uniform": UniformAttentionConfig(),
        "simple": refined("simple"),
        "value-weighted": refined("value-weighted"),
        "additive": refined("additive"),
        **{f"simple, depth {depth}": refined("simple", depth) for depth in depths},
    }
    return [Variant(name, {"encoder.attention": attention}) for name, attention in rows.items()]


def tables(out: str, result: dict[str, Any]) -> list[str]:
    """Markdown: refinement against uniform weights, and the course of training."""
    names = [row["name"] for row in result["variants"]]
    pairs = [("uniform", name) for name in names if name not in ("softmax", "uniform")]
    found = []
    if pairs and "uniform" in names:
        result["against_uniform"] = contrasts(out, pairs, ("HR@1",))
        found += [
            "Against uniform weights, corrected over these rows:",
            difference_table(result["against_uniform"]),
        ]
    curves = {name: LearningCurve.of(Path(out) / name.replace(" ", "-")) for name in names}
    result["curves"] = {
        name: {"epochs": curve.epochs.tolist(), "valid": curve.valid.tolist(), "norms": curve.norms.tolist()}
        for name, curve in curves.items()
    }
    lines = [
        [name, f"{curve.epochs_to(REACHED):.0f}", f"{curve.norms[0]:.3f}", f"{curve.norms[-1]:.3f}"]
        for name, curve in curves.items()
    ]
    header = [
        "row",
        f"epochs to {REACHED:.0%} of the best validation",
        "first gradient norm",
        "last gradient norm",
    ]
    found.append(to_markdown(header, lines))
    stated = next((x for key, x in STATED.items() if key in result["dataset"]["name"].lower()), None)
    if stated is not None:
        found.append(
            f"The paper states a gain of {stated} % in Recall@1 over the best other model of its table."
        )
    return found


def figure(result: dict[str, Any]) -> Figure:
    """Draw validation and gradient norm by epoch."""
    curves = {
        name: LearningCurve(**{field: np.array(values) for field, values in curve.items()}, metric="NDCG@10")
        for name, curve in result["curves"].items()
    }
    return curves_figure(curves)


def main(options: Options) -> None:
    """Run the study and write its record."""
    shared = {
        "evaluation": {"ks": (1, 5, 10)},
    }
    options.conduct(
        "awrsr-table",
        variants(options.depths),
        shared,
        metrics=METRICS,
        tables=lambda result: tables(options.out, result),
        figure=figure,
        title="AWRSR's table",
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
