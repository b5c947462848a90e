"""Cost of leaving the user's own items out of the negatives, in a training step.

    python -m experiments.benchmarks.exclusion_speed --record exclusion_speed

The same step with and without `exclude_seen`, for draws of each position, shared draws and the whole catalogue, on random
histories of the lengths of LastFM and MovieLens 1M. Both programs of a row run in turn, so that a change in the machine's
speed meets them alike.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.benchmarks.encoder_speed import SHAPES, case_table, dataset_of
from experiments.record import command_line, write_record
from experiments.scaling.steps import Program, seconds_in_turn
from jaxrec.objectives import SampledSoftmaxConfig
from jaxrec.presets import sasrec

#: Draws: label, sampler, negatives, whether a step's positions share them.
DRAWS = (
    ("one of its own", "uniform", 1, False),
    ("one of its own by popularity", "popularity", 1, False),
    ("128 shared", "uniform", 128, True),
    ("1,024 shared by popularity", "popularity", 1_024, True),
    ("the whole catalogue", "uniform", 10**9, True),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Cost of leaving the user's own items out of the negatives.

    Attributes:
      shapes: "lastfm", "ml-1m".
      steps: steps per round.
      rounds: rounds of each program.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    steps: int = 3
    rounds: int = 5
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def measure(shape: str, options: Options) -> list[dict[str, Any]]:
    """Seconds of a step with and without the user's items, for each draw."""
    dataset = dataset_of(shape)
    *_, length, batch_rows = SHAPES[shape]
    base = sasrec().updated({"batches.max_length": length, "batches.batch_size": batch_rows})
    cases = []
    for label, sampler, n_negatives, shared in DRAWS:
        objective = SampledSoftmaxConfig(n_negatives=n_negatives, sampler=sampler, shared=shared)
        both = (objective, dataclasses.replace(objective, exclude_seen=True))
        programs = [Program(base.updated({"objective": each}), dataset, options.steps) for each in both]
        times = seconds_in_turn(programs, options.rounds)
        cases.append(
            {
                "shape": shape,
                "negatives": label,
                "seconds_of_a_step": float(np.median(times[:, 0])),
                "without_own_items": float(np.median(times[:, 1])),
                # Of the same round: paired, so that drift cancels.
                "times_as_long": float(np.median(times[:, 1] / times[:, 0])),
            }
        )
    return cases


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
            title="The user's own items among the negatives or not",
            command=command_line(__spec__.name),
            body=[table],
            notes=["Medians over rounds in which both programs ran in turn; the ratio is paired by round."],
        )
    print(json.dumps(result) if arguments.json else table)
