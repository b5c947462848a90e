"""Colours and files of figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file name (.png, .pdf, .svg)."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
