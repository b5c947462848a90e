"""Figures of one run, and the HTML page that shows them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrec.training.journal import read_journal
from jaxrec.training.loop import FitResult


def write_figures(fit: FitResult, results: dict[str, Any], directory: Path) -> list[tuple[str, Path]]:
    """Draw the training curve and the test metric by history length and by item popularity: (caption, file) each."""
    folder = directory / "figures"
    folder.mkdir(exist_ok=True)
    metric = fit.setup.config.training.metric
    values = np.mean([evaluation.values(metric) for evaluation in fit.test], axis=0)
    evaluation = fit.test[0]
    first_target = evaluation.targets[evaluation.target_offsets[:-1]]
    lengths = fit.setup.split.test.history_stops - fit.setup.split.test.history_starts
    by_user = dict(zip(fit.setup.split.test.users.tolist(), lengths.tolist(), strict=True))
    history_lengths = np.array([by_user[user] for user in evaluation.users.tolist()])
    popularity = fit.setup.split.item_counts[first_target]
    drawn = [
        ("Training loss and validation metric", "training.png", _training_curve(read_journal(directory / "log.jsonl"), metric)),
        (f"Test {metric} by length of the history", "by_history_length.png", _by_group(history_lengths, values, "interactions in the history", metric)),
        (f"Test {metric} by popularity of the target", "by_popularity.png", _by_group(popularity, values, "training interactions of the target", metric)),
    ]
    out = []
    for caption, name, figure in drawn:
        FigureCanvasAgg(figure)
        figure.savefig(folder / name, dpi=110)
        out.append((caption, folder / name))
    return out


def _training_curve(lines: list[dict[str, Any]], metric: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.add_subplot()
    steps = [line["step"] for line in lines if "loss" in line]
    losses = np.array([line["loss"] for line in lines if "loss" in line]).reshape(len(steps), -1)
    axis.plot(steps, losses, color="tab:blue", alpha=0.8, linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss", color="tab:blue")
    validations = [(line["step"], line["valid"][metric]) for line in lines if "valid" in line]
    if validations:
        right = axis.twinx()
        right.plot([step for step, _ in validations], [scores for _, scores in validations], color="tab:orange", marker=".", linewidth=1)
        right.set_ylabel(f"validation {metric}", color="tab:orange")
    return figure


def quantile_groups(values: np.ndarray, groups: int = 6) -> list[tuple[str, np.ndarray]]:
    """Split cases into about equal groups by ``values`` int[E]: (label such as "3-5", indices) each."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, groups + 1)).astype(np.int64))
    edges[-1] += 1
    bounds = zip(edges[:-1], edges[1:], strict=True)
    return [
        (f"{low}" if high - low == 1 else f"{low}-{high - 1}", np.flatnonzero((values >= low) & (values < high)))
        for low, high in bounds
    ]


def _by_group(values: np.ndarray, metric_values: np.ndarray, label: str, metric: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.add_subplot()
    groups = [(name, index) for name, index in quantile_groups(values) if len(index)]
    means = [metric_values[index].mean() for _, index in groups]
    # 95 % interval of the mean over users.
    errors = [1.96 * metric_values[index].std() / np.sqrt(len(index)) for _, index in groups]
    axis.bar(range(len(groups)), means, yerr=errors, color="tab:blue", alpha=0.8, capsize=3)
    axis.set_xticks(range(len(groups)), [f"{name}\nn={len(index)}" for name, index in groups], fontsize=8)
    axis.set_xlabel(label)
    axis.set_ylabel(metric)
    return figure


def write_page(results: dict[str, Any], figures: list[tuple[str, Path]], directory: Path) -> Path:
    """One self-contained HTML page; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxrec", "reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pictures = [(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in figures]
    page = environment.get_template("run.html.jinja").render(
        results=results,
        metrics=list(results["metrics"]),
        figures=pictures,
        config=json.dumps(results["config"], indent=2),
    )
    path = directory / "report.html"
    path.write_text(page)
    return path
