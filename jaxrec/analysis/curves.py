"""Learning curves of finished runs: validation metric and norm of the gradient by epoch, several runs in one figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import COLOURS
from jaxrec.training.logging import read_metrics


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """Course of a training, means over seeds.

    Attributes:
      epochs: float64[N] of the validations; none where the run was not trained here or its log is lost.
      valid: float64[N], the validation metric.
      norms: float64[N], norm of the gradient, mean over the last chunk of steps before each.
      metric: name of the validation metric.
    """

    epochs: np.ndarray
    valid: np.ndarray
    norms: np.ndarray
    metric: str = ""

    @classmethod
    def of(cls, run: str | Path) -> LearningCurve:
        """Read the log of a run directory; a seed that has ended keeps its last values."""
        epoch, norms, valid, points, metric = 0.0, np.array(np.nan), np.array(np.nan), [], ""
        log = Path(run) / "log.jsonl"
        for line in read_metrics(log) if log.is_file() else ():
            if "gradient_norm" in line:
                epoch, norms = line.get("epoch", epoch), _continued(line["gradient_norm"], norms)
            elif line.get("valid") and line.get("step"):
                metric, values = next(iter(line["valid"].items()))
                valid = _continued(values, valid)
                points.append((epoch, float(valid.mean()), float(norms.mean())))
        epochs, means, norms = np.array(points, np.float64).reshape(-1, 3).T
        return cls(epochs, means, norms, metric)

    def epochs_to(self, share: float) -> float:
        """Epochs until the validation metric reaches a share of its best."""
        return float(self.epochs[np.argmax(self.valid >= share * self.valid.max())])


def _continued(values: list[float | None], last: np.ndarray) -> np.ndarray:
    """``values`` of the seeds, with those of ``last`` where a seed has none."""
    own = np.array(values, np.float64)
    return np.where(np.isnan(own), last, own)


def curves_figure(curves: Mapping[str, LearningCurve]) -> Figure:
    """Draw validation metric and norm of the gradient by epoch, a line per run."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, curve), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        left.plot(curve.epochs, curve.valid, marker=".", color=colour, label=name)
        right.plot(curve.epochs, curve.norms, marker=".", color=colour, label=name)
    metrics = " or ".join(dict.fromkeys(curve.metric for curve in curves.values()))
    left.set(xlabel="epoch", ylabel=f"validation {metrics}")
    right.set(xlabel="epoch", ylabel="norm of the gradient", yscale="log")
    right.legend(fontsize=8)
    return figure
