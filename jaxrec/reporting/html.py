"""Figures and HTML report page of one run."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.groups import group_figures
from jaxrec.analysis.tables import summary_cell
from jaxrec.config import NAMED_SECTIONS, RunConfig, from_dict
from jaxrec.files import write_atomically
from jaxrec.reporting.advice import next_steps
from jaxrec.reporting.examples import Example
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import FitResult


def write_figures(fit: FitResult, results: dict[str, Any], directory: Path) -> list[tuple[str, Path]]:
    """Draw the training curve and the test metric by history length and popularity: (caption, file) of each figure."""
    folder = directory / "figures"
    folder.mkdir(exist_ok=True)
    metric = fit.setup.config.metric
    by_group = group_figures({model_label(results["config"]): fit.test}, fit.setup.split, "test", metric)
    figures = [
        (
            "Training loss and validation metric",
            "training.png",
            _training_curve(read_metrics(directory / "log.jsonl"), metric),
        ),
        (
            f"Test {metric} by length of the history",
            "by_history_length.png",
            by_group["by_history_length"],
        ),
        (f"Test {metric} by popularity of the target", "by_popularity.png", by_group["by_popularity"]),
    ]
    for _, file, figure in figures:
        save_figure(figure, folder / file)
    return [(caption, folder / file) for caption, file, _ in figures]


def model_label(config: Mapping[str, Any]) -> str:
    """Name of a model in tables: "transformer (softmax, cross-entropy)".

    It has the encoder, the attention where there is any, the task unless that is the next item, and the loss.

    Args:
      config: the configuration of a run as in ``results.json``.
    """
    attention = config["encoder"].get("attention") or config.get("attention")
    sections = (attention, config.get("task"), config.get("objective"))
    names = [
        str(section["name"])
        for section in sections
        if isinstance(section, Mapping) and section.get("name", "next-item") != "next-item"
    ]
    return f"{config['encoder']['name']} ({', '.join(names)})" if names else str(config["encoder"]["name"])


def _training_curve(lines: list[dict[str, Any]], metric: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.add_subplot()
    # A damaged log may lack names or numbers.
    seeds = max((len(line["loss"]) for line in lines if "loss" in line), default=0)
    trained = [line for line in lines if "step" in line and len(line.get("loss", [])) == seeds > 0]
    steps, losses = [line["step"] for line in trained], np.array([line["loss"] for line in trained], float)
    if steps:  # none where the log of a resumed run was lost
        axis.plot(steps, losses.reshape(len(steps), -1), color="tab:blue", alpha=0.8, linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss", color="tab:blue")
    validations = [
        (line["step"], line["valid"][metric])
        for line in lines
        if "step" in line and metric in line.get("valid", {})
    ]
    if validations:
        right = axis.twinx()
        right.plot(
            [step for step, _ in validations],
            np.array([scores for _, scores in validations], float),
            color="tab:orange",
            marker=".",
            linewidth=1,
        )
        right.set_ylabel(f"validation {metric}", color="tab:orange")
    return figure


def write_page(
    results: dict[str, Any],
    figures: list[tuple[str, Path]],
    directory: Path,
    examples: Sequence[Example] = (),
    titles: bool = True,
) -> Path:
    """Write one self-contained HTML page and return its path.

    Args:
      results: content of ``results.json``.
      figures: caption and file of each figure.
      directory: where ``report.html`` is written.
      examples: users to show.
      titles: whether the items have titles.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxrec", "reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pictures = [(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in figures]
    page = environment.get_template("run.html.jinja").render(
        results=results,
        label=model_label(results["config"]),
        metrics=list(results["metrics"]),
        spread=summary_cell,
        figures=pictures,
        examples=list(examples),
        steps=next_steps(results, directory, titles),
        options=changed_options(results["config"]),
    )
    path = directory / "report.html"
    write_atomically(path, page)
    return path


def changed_options(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Options of a configuration that differ from the default of their class: name, value, default.

    Args:
      config: as in ``results.json``.
    """
    given = from_dict(config)
    default = RunConfig()
    rows: list[tuple[str, str, str]] = []

    def compare(section: Any, default: Any, path: str) -> None:
        if type(section) is not type(default):
            names = [NAMED_SECTIONS[path].label_of(type(part)) for part in (section, default)]
            rows.append((f"--{path}", names[0], names[1]))
            default = type(section)()
        for field in dataclasses.fields(section):
            value, usual = getattr(section, field.name), getattr(default, field.name)
            name = f"{path}.{field.name}"
            if dataclasses.is_dataclass(value):
                compare(value, usual, name)
            elif value != usual:
                rows.append((f"--{name.replace('_', '-')}", _text(value), _text(usual)))

    for field in dataclasses.fields(given):
        compare(getattr(given, field.name), getattr(default, field.name), field.name)
    return rows


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "(none)"
    return "(empty)" if value == "" else str(value)
