"""Keep what a benchmark measured in the repository."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrec.analysis.tables import to_markdown

RESULTS = Path("experiments/results")


def shown(benchmark: str, options: Any) -> str:
    """The command that a benchmark with these ``options`` (a dataclass) was, without the folder of its data."""
    words = [f"python -m experiments.benchmarks.{benchmark}"]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default or field.name in ("json", "record", "notes"):
            continue
        text = Path(value).name if field.name == "data" else value
        text = " ".join(map(str, value)) if isinstance(value, tuple) else text
        words.append(f"--{field.name.replace('_', '-')} {text}")
    return " ".join([*words, "--json"])


def number(value: float) -> str:
    """Four significant figures, but everything before the decimal point, and no exponent for large numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def keep(
    name: str,
    title: str,
    command: str,
    result: dict[str, Any],
    header: list[str],
    rows: list[list[Any]],
    notes: Sequence[str] = (),
) -> None:
    """``experiments/results/NAME.json`` with everything, and ``NAME.md`` to read.

    Args:
      name: of the record.
      title: its heading.
      command: what a reader types to measure again.
      result: what was measured, with "versions" and "hardware" of `jaxrec.reporting.results`.
      header, rows: of the table to read.
      notes: paragraphs below it.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"command": command, **result}, indent=1) + "\n")
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    hardware = result["hardware"]
    devices = ", ".join(hardware["devices"])
    closing = f"{versions}; {hardware['processor']}, {hardware['cores']} cores, {devices}."
    parts = [f"# {title}", f"`{command}`", to_markdown(header, rows).rstrip(), *notes, closing]
    (RESULTS / f"{name}.md").write_text("\n\n".join(parts) + "\n")
