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
from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import RefinedAttentionConfig, SoftmaxAttentionConfig, UniformAttentionConfig
from jaxrec.training.logging import read_metrics

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


@dataclasses.dataclass(frozen=True)
class Curve:
    """Course of a training, means over seeds.

    Attributes:
      epochs: float64[N] of the validations.
      valid: float64[N], the validation metric.
      norms: float64[N], norm of the gradient in the last chunk of steps before each.
    """

    epochs: np.ndarray
    valid: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, run: Path) -> Curve:
        """Read the log of a run; a seed that has ended keeps its last values."""
        epoch, norms, valid, points = 0.0, np.array(np.nan), np.array(np.nan), []
        for line in read_metrics(run / "log.jsonl"):
            if "gradient_norm" in line:
                epoch, norms = line["epoch"], _continued(line["gradient_norm"], norms)
            elif "valid" in line and line.get("step"):
                valid = _continued(next(iter(line["valid"].values())), valid)
                points.append((epoch, float(valid.mean()), float(norms.mean())))
        return cls(*np.array(points, np.float64).reshape(-1, 3).T)

    def epochs_to(self, share: float) -> float:
        """Epochs until the validation metric reaches a share of its best."""
        return float(self.epochs[np.argmax(self.valid >= share * self.valid.max())])


def _continued(values: list[float | None], last: np.ndarray) -> np.ndarray:
    """``values`` of the seeds, with those of ``last`` where a seed has none."""
    own = np.array(values, np.float64)
    return np.where(np.isnan(own), last, own)


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
    curves = {name: Curve.of(Path(out) / name.replace(" ", "-")) for name in names}
    result["curves"] = {
        name: {field.name: getattr(curve, field.name).tolist() for field in dataclasses.fields(curve)}
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
    drawing = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for (name, curve), colour in zip(result["curves"].items(), COLOURS * 3, strict=False):
        left.plot(curve["epochs"], curve["valid"], color=colour, label=name)
        right.plot(curve["epochs"], curve["norms"], color=colour, label=name)
    left.set(xlabel="epoch", ylabel="validation NDCG@10")
    right.set(xlabel="epoch", ylabel="norm of the gradient", yscale="log")
    right.legend(fontsize=8)
    return drawing


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
