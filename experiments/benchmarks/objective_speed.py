"""Speed and memory of training with each objective, every other setting the same.

    python -m experiments.benchmarks.objective_speed --json
    python -m experiments.benchmarks.objective_speed --data path/to/amazon_beauty.txt.gz --json

Each objective runs in a process of its own, so that the peak of memory is its own. Exact cross-entropy runs first and
last: what lies between its two rates is the drift of the machine.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import sys
from pathlib import Path
from queue import Empty
from typing import Annotated, Any

import tyro

from experiments.benchmarks import training_speed
from experiments.record import command_line, number, write_record
from jaxrec.analysis.tables import to_markdown


@dataclasses.dataclass(frozen=True)
class Options:
    """Training speed and memory of each objective.

    Attributes:
      data: as for ``jaxrec train``.
      preset: starting configuration.
      objectives: names; empty = all that work with its encoder.
      batch_size: rows of a step; 0 = the preset's.
      steps: steps per round.
      rounds: rounds of each objective.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    data: str = "movietweetings"
    preset: str = "sasrec"
    objectives: tuple[str, ...] = ()
    batch_size: int = 0
    steps: int = 6
    rounds: int = 5
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def _measure(options: Options, objective: str, queue: Any) -> None:
    from jaxrec.reporting.results import hardware, versions

    chosen = training_speed.Options(
        data=options.data,
        preset=options.preset,
        objective=objective,
        batch_size=options.batch_size,
        steps=options.steps,
    )
    config = training_speed.configuration(chosen)
    from jaxrec.data import load_dataset

    dataset = load_dataset(config.data)
    trial = training_speed.Trial(chosen, config.batches.mode, dataset)
    for _ in range(options.rounds):
        trial.round()
    figures = trial.report(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    queue.put(
        {
            "objective": objective,
            **figures,
            "temporary_mib": trial.temporary_bytes / 2**20,
            "dataset": {"name": dataset.name, "items": dataset.n_items, "fingerprint": dataset.fingerprint},
            "versions": versions(),
            "hardware": hardware(),
        }
    )


def measure(options: Options, objective: str) -> dict[str, Any]:
    """The figures of one objective, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(options, objective, queue))
    process.start()
    while True:
        try:
            figures: dict[str, Any] = queue.get(timeout=1.0)
            break
        except Empty:
            if not process.is_alive():
                raise RuntimeError(
                    f"the process that measured {objective!r} ended with {process.exitcode}"
                ) from None
    process.join()
    print(
        f"{objective}: {figures['interactions_per_second']:,.0f} interactions/s", file=sys.stderr, flush=True
    )
    return figures


def main(options: Options) -> dict[str, Any]:
    """Measure one objective after another."""
    from jaxrec.models import STOSAConfig
    from jaxrec.objectives import OBJECTIVES
    from jaxrec.presets import PRESETS

    reference = "cross-entropy"
    distances = isinstance(PRESETS[options.preset]().encoder, STOSAConfig)
    known = [name for name in OBJECTIVES if distances or name != "bpr-pvn"]
    names = [name for name in options.objectives or known if name != reference]
    rows = [measure(options, name) for name in [reference, *names, reference]]
    common = {key: rows[0].pop(key) for key in ("dataset", "versions", "hardware")}
    for row in rows[1:]:
        for key in common:
            row.pop(key)
    first, last = rows[0]["interactions_per_second"], rows[-1]["interactions_per_second"]
    for row in rows:
        row["speed_against_cross_entropy"] = 2 * row["interactions_per_second"] / (first + last)
    return {
        "cases": rows,
        "drift": last / first,
        **common,
        "options": {**dataclasses.asdict(options), "data": Path(options.data).name},
    }


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    result = main(arguments)
    if arguments.record:
        keys = (
            "interactions_per_second",
            "speed_against_cross_entropy",
            "compile_seconds",
            "peak_rss_mib",
            "temporary_mib",
        )
        table = [[case["objective"], *(number(case[key]) for key in keys)] for case in result["cases"]]
        write_record(
            arguments.record,
            result,
            title="Speed and memory of training with each objective",
            command=command_line(__spec__.name),
            body=[to_markdown(["objective", *keys], table)],
            notes=[
                f"{result['dataset']['name']}, {result['dataset']['items']:,} items. Cross-entropy ran first and last; its "
                f"second rate was {result['drift']:.2f} of its first."
            ],
        )
    if arguments.json:
        print(json.dumps(result))
    else:
        for case in result["cases"]:
            print(
                f"{case['objective']:24} {case['interactions_per_second']:10,.0f} /s  "
                f"{case['speed_against_cross_entropy']:5.2f}x  {case['peak_rss_mib']:7,.0f} MiB"
            )
