"""Keep what the studies of finished runs say: protocols, comparison, stability.

    python -m experiments.studies.evaluation_studies protocols runs/ml-1m --name protocols_ml-1m \\
        --commands "jaxrec train --data ml-1m.txt.gz --preset sasrec-ml1m"
    python -m experiments.studies.evaluation_studies compare runs/five runs/original --name compare_movietweetings

Writes ``experiments/results/NAME.json`` and ``NAME.md``; figures go to ``--figures``, if given.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrec.analysis.tables import to_markdown
from jaxrec.reporting.results import hardware, versions
from jaxrec.training import runs as studies


@dataclasses.dataclass(frozen=True)
class Options:
    """Keep a study of finished runs.

    Attributes:
      study: which.
      runs: run directories; the first is the baseline, "protocols" takes one.
      name: of the record.
      commands: what produced the runs, one each.
      notes: what a reader must know besides, a sentence each.
      figures: directory for the study's tables and figures; empty = none.
    """

    study: Annotated[Literal["protocols", "compare", "stability"], tyro.conf.Positional]
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    name: str
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: str = ""


def tables_of(options: Options) -> tuple[dict[str, Any], str]:
    """The study's result, and its tables as Markdown."""
    out = options.figures or None
    if options.study == "protocols":
        (run,) = options.runs
        found = studies.protocols(run, out=out)
        return {"protocols": found.results}, to_markdown(*found.rows())
    if options.study == "compare":
        comparison = studies.compare(options.runs, out=out)
        return {**dataclasses.asdict(comparison), "limits": comparison.limits()}, comparison.to_markdown()
    study = studies.stability(options.runs, out=out)
    summaries = {
        name: {each.perturbation.name: each.summary() for each in found} for name, found in study.runs.items()
    }
    effects = {
        name: {edit: effect._asdict() for edit, effect in found.items()}
        for name, found in study.effects.items()
    }
    return {"runs": summaries, "effects": effects}, "\n".join(to_markdown(*each) for each in study.tables())


def main(options: Options) -> None:
    """Write both records."""
    result, tables = tables_of(options)
    trained = [json.loads((Path(run) / "results.json").read_text()) for run in options.runs]
    dataset, names = trained[0]["dataset"], studies.run_names(options.runs)
    models = [
        f"{name}: {each['config']['encoder']['name']} with {each['config']['attention']['name']} attention, "
        f"{len(each['seeds'])} seed(s), trained at commit {each['versions'].get('commit', 'unknown')}"
        for name, each in zip(names, trained, strict=True)
    ]
    listed = [f"{model}; `{command}`" for model, command in zip(models, options.commands, strict=False)]
    listed += models[len(listed) :]
    command = f"python -m experiments.studies.evaluation_studies {options.study} {' '.join(names)}"
    installed, machine = versions(), hardware()
    record = {
        "command": command,
        "dataset": dataset,
        "split": trained[0]["split"]["protocol"],
        "models": listed,
        "notes": list(options.notes),
        **result,
        "versions": installed,
        "hardware": machine,
    }
    folder = Path("experiments/results")
    (folder / f"{options.name}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    lines = [
        f"`{command}`",
        f"{dataset['name']}: {dataset['users']:,} users, {dataset['items']:,} items, fingerprint "
        f"`{dataset['fingerprint'][:16]}`; {trained[0]['split']['protocol']}.",
        *listed,
        tables.rstrip(),
        *options.notes,
        ", ".join(f"{package} {version}" for package, version in installed.items())
        + f"; {machine['processor']}, {machine['cores']} cores.",
    ]
    (folder / f"{options.name}.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
