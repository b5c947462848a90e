"""Training rate of each encoder against SASRec of the same width, on histories of the lengths of LastFM and MovieLens 1M.

    python -m experiments.benchmarks.encoder_speed --record encoder_speed

All programs of a shape are compiled first and run in turn, round after round, so that a change in the machine's speed meets
all of them alike. The rate counts positions with a target; the pretraining of S3-Rec, which has none, counts interactions.
The items are random: no figure depends on them.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.record import RESULTS, command_line, number, write_record
from experiments.scaling.steps import Program, random_histories, seconds_in_turn
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.tables import to_markdown
from jaxrec.config import RunConfig
from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.dataset import SequenceDataset
from jaxrec.presets import PRESETS

#: Users, mean and standard deviation of the logarithm of a history's length, items, row length, rows of a batch.
SHAPES = {
    "lastfm": (1_090, 3.35, 0.95, 3_646, 50, 64),
    "ml-1m": (2_000, 4.6, 0.95, 3_416, 200, 32),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Training rate of each encoder against SASRec.

    Attributes:
      presets: encoders to measure, beside "sasrec".
      shapes: "lastfm", "ml-1m".
      width: of every encoder.
      steps: steps per round.
      rounds: rounds of each program.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    presets: tuple[str, ...] = ("gru4rec", "srgnn", "stosa", "sasrec-s3rec", "bert4rec", "s3rec-pretrain")
    shapes: tuple[str, ...] = tuple(SHAPES)
    width: int = 64
    steps: int = 3
    rounds: int = 5
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def dataset_of(shape: str) -> SequenceDataset:
    """Random histories of the lengths of a dataset, with five attributes for each item."""
    users, mean, spread, n_items, _, _ = SHAPES[shape]
    generator = np.random.default_rng(1)
    lengths = np.clip(generator.lognormal(mean, spread, users).astype(np.int64), 5, 2_000)
    dataset = random_histories(lengths, n_items)
    names = [[f"a{a}" for a in generator.integers(0, 300, 5)] for _ in range(n_items)]
    return dataclasses.replace(dataset, attributes=AttributeTable.from_lists(names))


def configuration(preset: str, shape: str, options: Options) -> RunConfig:
    """The preset with the shape's rows; batches stay packed, or prefixes for pretraining."""
    *_, length, rows = SHAPES[shape]
    config = PRESETS[preset]()
    mode = "prefix" if config.batches.mode == "prefix" else "packed"
    return config.updated(
        {
            "batches.max_length": length,
            "batches.batch_size": rows,
            "batches.mode": mode,
            "encoder.width": options.width,
        }
    )


def measure(shape: str, options: Options) -> list[dict[str, Any]]:
    """Seconds of a step and rates of all encoders on one shape."""
    dataset = dataset_of(shape)
    programs, compile_seconds = {}, {}
    for preset in ("sasrec", *options.presets):
        started = time.perf_counter()
        programs[preset] = Program(configuration(preset, shape, options), dataset, options.steps)
        compile_seconds[preset] = time.perf_counter() - started
    times = seconds_in_turn(list(programs.values()), options.rounds)
    seconds = dict(zip(programs, times.T, strict=True))
    rates = {preset: programs[preset].targets / options.steps / seconds[preset] for preset in programs}
    return [
        {
            "shape": shape,
            "preset": preset,
            "parameters": programs[preset].setup.encoder.parameter_count(),
            "interactions_per_step": programs[preset].targets / options.steps,
            "seconds_per_step": float(np.median(seconds[preset])),
            "seconds_per_epoch": float(
                np.median(seconds[preset]) * programs[preset].setup.schedule.steps_per_epoch
            ),
            "interactions_per_second": float(np.median(rates[preset])),
            # Of the same round: paired, so that drift cancels.
            "speed_against_sasrec": float(np.median(rates[preset] / rates["sasrec"])),
            "compile_seconds": compile_seconds[preset],
        }
        for preset in programs
    ]


def figure(cases: list[dict[str, Any]]) -> Figure:
    """Draw the seconds of an epoch of each encoder over those of SASRec."""
    shapes = list(dict.fromkeys(case["shape"] for case in cases))
    drawing = Figure(figsize=(5 * len(shapes), 3.5), layout="constrained")
    for axes, shape in zip(drawing.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        rows = [case for case in cases if case["shape"] == shape]
        base = next(case["seconds_per_epoch"] for case in rows if case["preset"] == "sasrec")
        axes.barh([case["preset"] for case in rows], [case["seconds_per_epoch"] / base for case in rows])
        axes.set(title=shape, xlabel="seconds of an epoch over SASRec's", xscale="log")
        axes.axvline(1, color="black", linewidth=0.8)
    return drawing


def case_table(cases: list[dict[str, Any]]) -> str:
    """Table of cases in Markdown, whose first two entries are names and whose others are numbers."""
    rows = [[*list(case.values())[:2], *map(number, list(case.values())[2:])] for case in cases]
    return to_markdown(list(cases[0]), rows)


def main(options: Options) -> dict[str, Any]:
    """Measure every shape."""
    cases = [case for shape in options.shapes for case in measure(shape, options)]
    return {"cases": cases, "options": dataclasses.asdict(options)}


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    result = main(arguments)
    table = case_table(result["cases"])
    if arguments.record:
        write_record(
            arguments.record,
            result,
            title="Training rate of encoders",
            command=command_line(__spec__.name),
            body=[table],
            notes=[
                "Medians over rounds in which all programs ran in turn; rates against SASRec are paired by round."
            ],
        )
        save_figure(figure(result["cases"]), RESULTS / f"{arguments.record}.png")
    print(json.dumps(result) if arguments.json else table)
