"""Where a study's tables and figures go: never over what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxrec.errors import ConfigError
from jaxrec.evaluation.tables import to_latex, to_markdown
from jaxrec.reporting.comparison import save_figure


def write_tables(
    out: str | Path,
    name: str,
    tables: Sequence[tuple[list[str], list[list[Any]]]],
    figures: Mapping[str, Figure] | None = None,
) -> None:
    """Tables as ``name.md`` and ``name.tex``, and figures by file name, in a new directory."""
    figures = figures or {}
    directory = new_directory(out, (f"{name}.md", f"{name}.tex", *figures))
    (directory / f"{name}.md").write_text("\n".join(to_markdown(*table) for table in tables))
    (directory / f"{name}.tex").write_text("\n".join(to_latex(*table) for table in tables))
    for file, figure in figures.items():
        save_figure(figure, directory / file)


def new_directory(out: str | Path, files: Sequence[str]) -> Path:
    """Make ``out`` and refuse to replace any of ``files`` in it."""
    directory = Path(out)
    there = [name for name in files if (directory / name).exists()]
    if there:
        raise ConfigError(f"out: {directory} already holds {', '.join(there)}; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
