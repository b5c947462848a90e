"""Record the checks of finished runs: use of order, dependence on ties, breakdowns, and baselines without training.

    jaxrec train --seeds 2 --workdir runs/movietweetings
    python -m experiments.studies.checks runs/movietweetings --name checks_movietweetings --command "..." --retie 10

A log without times has no ties to reorder: leave ``--retie`` at 0. Figures go to ``--figures``, if given.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated

import tyro

from experiments.record import command_line, dataset_line, write_record
from jaxrec.analysis.checks import Checks, run_checks
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.data import load_dataset
from jaxrec.data.dataset import SequenceDataset
from jaxrec.evaluation.baselines import baseline_rankers, evaluate_baselines
from jaxrec.reporting.html import model_label
from jaxrec.runs import Run


@dataclasses.dataclass(frozen=True)
class Options:
    """Record the checks of a run.

    Attributes:
      run: directory of a finished run.
      name: name of the record.
      command: command that produced the run.
      retie: random orders of simultaneous interactions; 0 for a log without times.
      notes: sentences for the reader of the record.
      figures: directory for the tables and figures; empty = none.
      data: path of the dataset, where it is not the one stored in the run.
    """

    run: Annotated[str, tyro.conf.Positional]
    name: str
    command: str
    retie: int = 0
    notes: tuple[str, ...] = ()
    figures: str = ""
    data: str = ""


def _dataset(options: Options) -> SequenceDataset | None:
    """The dataset at another path, read with the options stored in the run."""
    if not options.data:
        return None
    return load_dataset(options.data, Run(options.run).config.data)


def main(options: Options) -> None:
    """Evaluate, check, and write the record."""
    run = Run(options.run, _dataset(options))
    setup, config = run.setup, run.config
    started = time.perf_counter()
    evaluations = run.evaluate("test")
    seconds = {"evaluation of the run": time.perf_counter() - started}
    started = time.perf_counter()
    baseline_rankers(setup.split)
    seconds["fitting all baselines"] = time.perf_counter() - started
    started = time.perf_counter()
    baselines = evaluate_baselines(setup.split, "test", config.evaluation)
    seconds["fitting and evaluating all baselines"] = time.perf_counter() - started
    results = run_checks(run, "test", Checks("both", options.retie, breakdown=True), evaluations, baselines)
    seconds |= {f"--{name}": value for name, value in results.seconds.items()}
    trained = run.results
    metrics = ("HR@10", "NDCG@10", "MRR")
    rows = [
        [name, *(f"{each.metrics[metric]:.4f}" for metric in metrics)] for name, each in baselines.items()
    ]
    label = model_label(trained["config"])
    values = [mean_and_deviation([each.metrics[metric] for each in evaluations]) for metric in metrics]
    rows.append([f"{label}, {len(evaluations)} seed(s)", *values])
    if options.figures:
        results.write(options.figures)
    write_record(
        options.name,
        {
            "dataset": trained["dataset"],
            "split": trained["split"],
            "model": {
                "label": label,
                "command": options.command,
                "commit": trained["versions"].get("commit"),
            },
            "metrics": {metric: [each.metrics[metric] for each in evaluations] for metric in metrics},
            "baselines": {name: each.metrics for name, each in baselines.items()},
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            **{name: value for name, value in results.to_dict().items() if name != "check_seconds"},
        },
        title=f"Checks of {label} on {trained['dataset']['name']}",
        command=command_line(__spec__.name if __spec__ else "experiments.studies.checks", sys.argv[1:]),
        body=[
            f"{dataset_line(trained['dataset'])} {evaluations[0].protocol}. Model: `{options.command}`, trained at commit "
            f"{trained['versions'].get('commit', 'unknown')}.",
            to_markdown(["", *metrics], rows),
            results.to_markdown(),
            to_markdown(["step", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()]),
        ],
        notes=options.notes,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
