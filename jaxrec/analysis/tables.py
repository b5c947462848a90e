"""Tables as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import save_figure
from jaxrec.errors import ConfigError
from jaxrec.files import write_atomically

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
}


def mean_and_deviation(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    """Mean ± standard deviation over seeds, such as "0.1234 ± 0.0056"; "0.1234 (1 seed)" for a single one."""
    values = np.asarray(values, np.float64)
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (1 seed)"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def summary_cell(summary: Mapping[str, Any], digits: int = 4) -> str:
    """Mean ± standard deviation of an entry of `jaxrec.evaluation.metrics.over_seeds`; the mean alone for one seed."""
    spread = "" if summary["sd"] is None else f" ± {summary['sd']:.{digits}f}"
    return f"{summary['mean']:.{digits}f}{spread}"


def cell(value: Any, digits: int = 4) -> str:
    """Text of one cell: numbers with fixed digits, whole numbers and text as they are, "-" for None and NaN."""
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "-"
    if isinstance(value, (float, np.floating)):
        return f"{value:.{digits}f}"
    return str(value)


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 4) -> str:
    """Markdown table with numbers aligned to the right."""
    text = [[cell(value, digits).replace("|", "\\|") for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *text]) for i in range(len(header))]
    right = [_numeric(rows, i) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(list(header)), line(rule), *(line(row) for row in text)]) + "\n"


def to_latex(header: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 4) -> str:
    """LaTeX ``tabular`` with the rules of the booktabs package."""
    columns = "".join("r" if _numeric(rows, i) else "l" for i in range(len(header)))

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(letter, letter) for letter in c) for c in cells) + r" \\"

    body = [line([cell(value, digits) for value in row]) for row in rows]
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(list(header)), r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _numeric(rows: Sequence[Sequence[Any]], column: int) -> bool:
    return all(row[column] is None or isinstance(row[column], (int, float, np.number)) for row in rows)


def write_tables(
    out: str | Path,
    name: str,
    tables: Sequence[tuple[list[str], list[list[Any]]]],
    figures: Mapping[str, Figure] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write tables as ``name.md`` and ``name.tex``, and figures by file name, without replacing files.

    Args:
      out: directory; created if absent.
      name: stem of the two tables' files.
      tables: header and rows of each table.
      figures: {file name: figure}.
      notes: sentences below the tables; comments in LaTeX.

    Raises:
      ConfigError: one of the files exists.
    """
    figures = figures or {}
    directory = new_directory(out, (f"{name}.md", f"{name}.tex", *figures))
    write_atomically(
        directory / f"{name}.md",
        "\n".join([*(to_markdown(*table) for table in tables), *(f"{note}\n" for note in notes)]),
    )
    write_atomically(
        directory / f"{name}.tex",
        "\n".join([*(to_latex(*table) for table in tables), *(f"% {note}\n" for note in notes)]),
    )
    for file, figure in figures.items():
        save_figure(figure, directory / file)


def check_free(out: str | Path, files: Sequence[str]) -> Path:
    """Refuse a directory that cannot be written as `new_directory` does, before what it is for is computed.

    Raises:
      ConfigError: one of ``files`` exists in ``out``, or ``out`` is a file.
    """
    directory = Path(out)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--out: {directory} is a file; expected a directory")
    existing = [name for name in files if (directory / name).exists()]
    if existing:
        raise ConfigError(f"--out: {directory} already holds {', '.join(existing)}; choose another directory")
    return directory


def new_directory(out: str | Path, files: Sequence[str]) -> Path:
    """Create a directory for files that it does not hold yet.

    Raises:
      ConfigError: see `check_free`.
    """
    directory = check_free(out, files)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
