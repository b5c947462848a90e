"""Colours and files of figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrec.files import write_atomically

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure in the format of the file name (.png, .pdf, .svg), at ``dpi`` dots per inch."""
    path = Path(path)
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, dpi=dpi, format=path.suffix[1:] or None))


def from_zero(axes: Axes) -> None:
    """Begin the vertical axis at zero, with room above what is drawn: call it last."""
    axes.set_ylim(0.0, 1.04 * axes.get_ylim()[1])
