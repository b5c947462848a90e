"""Cost of training on own predictions (`jaxrec.tasks.NextItemConfig.exposure`), and of one draw from the softmax.

    python -m experiments.benchmarks.exposure_speed --record exposure_speed

Steps without exposure, with the best items and with drawn ones, on random histories of the lengths of LastFM and MovieLens
1M; and draws of one item a row by inversion, as `jaxrec.nn.choice` makes them, against the best of scores with Gumbel noise,
which needs a random number of each item. The programs of a row run in turn, so that a change in the machine's speed meets
them alike.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from experiments.benchmarks.encoder_speed import SHAPES, case_table, dataset_of
from experiments.record import command_line, write_record
from experiments.scaling.steps import Program, seconds_in_turn
from jaxrec.nn.choice import best_index, draw_index
from jaxrec.presets import sasrec
from jaxrec.tasks import NextItemConfig

#: Tasks of a step, the first of which the others are compared with.
TASKS = {
    "none": NextItemConfig(),
    "the best items": NextItemConfig(exposure=0.25, exposure_choice="greedy"),
    "drawn items": NextItemConfig(exposure=0.25),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Cost of training on own predictions.

    Attributes:
      shapes: "lastfm", "ml-1m".
      items: sizes of catalogues for single draws.
      rows: draws at a time.
      steps: steps per round.
      rounds: rounds of each program.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    items: tuple[int, ...] = (2_000, 12_000, 100_000)
    rows: int = 64
    steps: int = 3
    rounds: int = 5
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def step_cases(shape: str, options: Options) -> list[dict[str, Any]]:
    """Seconds of a step with each kind of exposure."""
    dataset = dataset_of(shape)
    *_, length, batch_rows = SHAPES[shape]
    base = sasrec().updated({"batches.max_length": length, "batches.batch_size": batch_rows})
    programs = [Program(base.updated({"task": task}), dataset, options.steps) for task in TASKS.values()]
    times = seconds_in_turn(programs, options.rounds)
    return [
        {
            "shape": shape,
            "exposure": name,
            "seconds_of_a_step": float(np.median(own)),
            # Of the same round: paired, so that drift cancels.
            "times_as_long": float(np.median(own / times[:, 0])),
        }
        for name, own in zip(TASKS, times.T, strict=True)
    ]


def with_noise(scores: Array, key: Array) -> Array:
    """A draw from the softmax of each row, as the best of scores with Gumbel noise."""
    return best_index(scores + jax.random.gumbel(key, scores.shape, jnp.float32))


def inverted(scores: Array, key: Array) -> Array:
    """A draw from the softmax of each row, from one random number."""
    return draw_index(scores, jax.random.uniform(key, (len(scores),)))


def seconds_of(draw: Callable[[Array, Array], Array], scores: Array, number: int) -> float:
    """Seconds of one draw of every row."""
    start = time.perf_counter()
    draw(scores, jax.random.key(number)).block_until_ready()
    return time.perf_counter() - start


def draw_case(items: int, options: Options) -> dict[str, Any]:
    """Seconds of draws from a catalogue in both ways."""
    scores = jax.random.normal(jax.random.key(0), (options.rows, items))
    ways = [jax.jit(way) for way in (with_noise, inverted)]
    rounds = [[seconds_of(way, scores, number) for way in ways] for number in range(options.rounds + 1)]
    times = np.array(rounds[1:])  # the first one compiles
    return {
        "items": items,
        "draws": options.rows,
        "with_noise": float(np.median(times[:, 0])),
        "inverted": float(np.median(times[:, 1])),
        "times_as_long": float(np.median(times[:, 1] / times[:, 0])),
    }


def main(options: Options) -> dict[str, Any]:
    """Measure every shape and every catalogue."""
    steps = [case for shape in options.shapes for case in step_cases(shape, options)]
    draws = [draw_case(items, options) for items in options.items]
    return {"cases": steps, "draws": draws, "options": dataclasses.asdict(options)}


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    result = main(arguments)
    tables = [case_table(result["cases"]), case_table(result["draws"])]
    if arguments.record:
        write_record(
            arguments.record,
            result,
            title="Training on own predictions, and draws from the softmax",
            command=command_line(__spec__.name),
            body=tables,
            notes=[
                "Medians over rounds in which all programs ran in turn, in seconds; ratios are paired by round."
            ],
        )
    print(json.dumps(result) if arguments.json else "\n\n".join(tables))
