r"""Records of studies of finished runs: protocols, comparison, stability.

    python -m experiments.studies.evaluation_studies protocols runs/ml-1m --name protocols_ml-1m \
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

from experiments.record import command_line, dataset_line, split_line, write_record
from jaxrec.analysis.compare import compare
from jaxrec.analysis.protocols import protocols
from jaxrec.analysis.stability import stability
from jaxrec.analysis.tables import to_markdown
from jaxrec.reporting.html import model_label
from jaxrec.runs import run_names


@dataclasses.dataclass(frozen=True)
class Options:
    """Record a study of finished runs.

    Attributes:
      study: study to record.
      runs: run directories; the first is the baseline, "protocols" takes one.
      name: name of the record.
      commands: commands that produced the runs, one per run.
      notes: sentences for the reader of the record.
      figures: directory for the study's tables and figures; empty = none.
    """

    study: Annotated[Literal["protocols", "compare", "stability"], tyro.conf.Positional]
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    name: str
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: str = ""


def tables_of(options: Options) -> tuple[dict[str, Any], str]:
    """Result of the study, and its tables as Markdown."""
    out = options.figures or None
    if options.study == "protocols":
        (run,) = options.runs
        evaluations = protocols(run, out=out)
        facts = {"protocols": evaluations.results, "omitted": list(evaluations.omitted)}
        counts = {"targets": evaluations.targets, "targets_in_history": evaluations.repeated}
        text = [to_markdown(*evaluations.rows()), *evaluations.note.splitlines()]
        return {**facts, **counts}, "\n\n".join(text)
    if options.study == "compare":
        comparison = compare(options.runs, out=out)
        return {**dataclasses.asdict(comparison), "limits": comparison.limits()}, comparison.to_markdown()
    study = stability(options.runs, out=out)
    return study.to_dict(), "\n".join([*(to_markdown(*table) for table in study.tables()), *study.notes()])


def main(options: Options) -> None:
    """Write the record."""
    result, tables = tables_of(options)
    trained = [json.loads((Path(run) / "results.json").read_text()) for run in options.runs]
    dataset, names = trained[0]["dataset"], run_names(options.runs)
    models = [
        f"{name}: {model_label(each['config'])}, "
        f"{len(each['seeds'])} seed(s), trained at commit {each['versions'].get('commit', 'unknown')}"
        for name, each in zip(names, trained, strict=True)
    ]
    listed = [f"{model}; `{command}`" for model, command in zip(models, options.commands, strict=False)]
    listed += models[len(listed) :]
    write_record(
        options.name,
        {"dataset": dataset, "split": trained[0]["split"]["protocol"], "models": listed, **result},
        title=f"{options.study.capitalize()} on {dataset['name']}",
        command=command_line(
            "experiments.studies.evaluation_studies", [options.study, *names, "--name", options.name]
        ),
        body=[f"{dataset_line(dataset)} {split_line(trained[0]['split'])}.", *listed, tables],
        notes=options.notes,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
