"""Write the records of studies and benchmarks: the only code that writes under ``experiments/results``.

As a command, it records a finished run:

    jaxrec train --seeds 5 --workdir runs/movietweetings
    python -m experiments.record runs/movietweetings --name sasrec_movietweetings --command "jaxrec train --seeds 5"

A record is a pair of files. ``NAME.json`` has everything that was measured, with the command, versions, commit and hardware;
``NAME.md`` has the same command and closing line around the tables that a person reads. Of data files only the name is
recorded, so that a record says nothing about the disk of whoever measured.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrec.analysis.tables import summary_cell, to_markdown
from jaxrec.reporting.results import hardware, versions

#: Folder of the records, relative to the root of the repository.
RESULTS = Path("experiments/results")
#: Options that say where or how to print, not what to measure.
_OUTPUT_OPTIONS = ("--json", "--record", "--notes")


def write_record(
    name: str,
    result: Mapping[str, Any],
    *,
    title: str,
    command: str,
    body: Sequence[str],
    notes: Sequence[str] = (),
    folder: Path | str = RESULTS,
) -> Path:
    """Write ``NAME.json`` and ``NAME.md``.

    Args:
      name: file name of the record, without an ending.
      result: measurements; "versions" and "hardware" of this process are added where the result has none of its own.
      title: heading of the Markdown file.
      command: command that repeats the measurement, as `command_line` returns it.
      body: Markdown paragraphs and tables.
      notes: paragraphs after the body: what a reader must know to judge the numbers.
      folder: folder to write to.

    Returns:
      Path of the Markdown file.
    """
    whole = {
        "command": command,
        "notes": list(notes),
        **result,
        "versions": result.get("versions") or versions(),
        "hardware": result.get("hardware") or hardware(),
    }
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(whole, indent=1, allow_nan=False)
    path.with_name(f"{path.name}.json").write_text(text + "\n")
    parts = [f"# {title}", f"`{command}`", *(part.strip("\n") for part in body), *notes, closing_line(whole)]
    page = path.with_name(f"{path.name}.md")
    page.write_text("\n\n".join(parts) + "\n")
    return page


def closing_line(record: Mapping[str, Any]) -> str:
    """Versions, commit and hardware in one sentence."""
    installed, machine = record["versions"], record["hardware"]
    packages = ", ".join(f"{package} {version}" for package, version in installed.items())
    devices = ", ".join(dict.fromkeys(machine.get("devices", ())))
    return f"{packages}; {machine['processor']}, {machine['cores']} cores{', ' if devices else ''}{devices}."


def command_line(module: str, arguments: Sequence[str] | None = None) -> str:
    """``python -m MODULE ARGUMENTS``, without options of output and without folders outside the repository.

    Args:
      module: name of the script's module; ``__spec__.name`` inside the script.
      arguments: command-line arguments; default: those of this process.
    """
    words = [f"python -m {module}"]
    ignored = False
    for argument in sys.argv[1:] if arguments is None else arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if argument.startswith("--"):
            ignored = option in _OUTPUT_OPTIONS
        if not ignored:
            words.append(shlex.quote(f"{_without_folder(option)}{equals}{_without_folder(value)}"))
        if equals:
            ignored = False
    return " ".join(words)


def _without_folder(argument: str) -> str:
    outside = argument.startswith(("/", "..", "~"))
    return Path(argument).name if outside else argument


def named_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with the names of its files and folders rather than their paths."""
    return {name: _named(value) for name, value in config.items()}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _named(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_named(part) for part in value]
    return _without_folder(value) if isinstance(value, str) else value


def number(value: float) -> str:
    """Format with four significant figures, all digits before the decimal point, and no exponent for large numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def split_line(split: Mapping[str, Any]) -> str:
    """Strategy, targets and cuts of a split, as results.json has them; of older results the strategy alone."""
    return str(split.get("description", split["protocol"]))


def dataset_line(dataset: Mapping[str, Any]) -> str:
    """Name, size and fingerprint of a dataset, as results.json has them."""
    return (
        f"{dataset['name']}: {dataset['users']:,} users, {dataset['items']:,} items, "
        f"{dataset['interactions']:,} interactions (fingerprint `{dataset['fingerprint'][:16]}`)."
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Record the results of a finished run.

    Attributes:
      run: run directory.
      name: name of the record.
      command: command that produced the run.
      notes: sentences for the reader of the record.
    """

    run: Annotated[str, tyro.conf.Positional]
    name: str
    command: str
    notes: tuple[str, ...] = ()


def main(options: Options) -> None:
    """Write the record of a run."""
    results = json.loads((Path(options.run) / "results.json").read_text())
    results["config"] = named_data(results["config"])
    notes = [*options.notes]
    if len(results["seeds"]) == 1:
        notes.insert(0, "One seed: the spread over seeds is not known.")
    names = [name for name in results["metrics"] if not name.startswith("MRR@")]
    rows = [
        [baseline, *(f"{values[name]:.4f}" for name in names)]
        for baseline, values in results["baselines"].items()
    ]
    measured = [summary_cell(results["metrics"][name]) for name in names]
    rows.append([f"{results['config']['encoder']['name']}, {len(results['seeds'])} seed(s)", *measured])
    timing, training = results["timing"], results["training"]
    write_record(
        options.name,
        results,
        title=f"{results['config']['encoder']['name']} on {results['dataset']['name']}",
        command=options.command,
        body=[
            f"{dataset_line(results['dataset'])} {split_line(results['split'])}; {results['protocol']}.",
            to_markdown(["", *names], rows),
        ],
        notes=[
            *notes,
            f"{training['parameters']:,} parameters; best at steps {training['best_steps']} of {training['steps']} "
            f"({training['epochs']} epochs); compiling {timing['compile_seconds']} s, training "
            f"{timing['training_seconds']} s, evaluating {timing['evaluation_seconds']} s, "
            f"{timing['interactions_per_second']:,.0f} real interactions/s.",
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
