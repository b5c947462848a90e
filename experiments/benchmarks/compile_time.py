"""Time of compiling the training step, and what it goes into: parts of the main preset left out, one at a time.

    python -m experiments.benchmarks.compile_time --record compile_time

Every variant is traced and compiled anew in each round, one after another, so that a change in the machine's speed meets
all of them alike; no cache is read. The fusions are those of the optimised program: on a CPU, LLVM compiles a function for
nearly each of them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from experiments.record import command_line, number, write_record
from experiments.scaling.steps import Program
from jaxrec.analysis.tables import to_markdown
from jaxrec.data import SequenceDataset, load_dataset
from jaxrec.presets import PRESETS

#: Changes of the preset by the name of the variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "one layer": {"encoder.layers": 1},
    "four layers": {"encoder.layers": 4},
    "no dropout of weights": {"encoder.attention.dropout": 0.0},
    "no dropout": {"encoder.attention.dropout": 0.0, "encoder.dropout": 0.0},
    "plain gradient descent": {"optimizer.algorithm": "sgd", "optimizer.beta1": 0.0},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Time of compiling the training step.

    Attributes:
      data: dataset, as for ``jaxrec train``.
      preset: settings that the variants change.
      rounds: times that each variant is compiled.
      steps: of a chunk.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    data: str = "movietweetings"
    preset: str = "sasrec"
    rounds: int = 3
    steps: int = 8
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def compile_once(options: Options, changes: dict[str, Any], dataset: SequenceDataset) -> dict[str, float]:
    """Seconds of wall and processor time of tracing, of compiling, and the fusions of the result."""
    config = PRESETS[options.preset]().updated(changes)
    durations = {"trace": 0.0, "compile": 0.0}

    def listen(event: str, seconds: float, **details: Any) -> None:
        if details.get("fun_name") in ("chunk", "jit(chunk)"):
            durations["compile" if "backend_compile" in event else "trace"] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        processor = time.process_time()
        program = Program(config, dataset, options.steps)
        processor = time.process_time() - processor
    finally:
        jax.monitoring.clear_event_listeners()
    fusions = len(re.findall(r" fusion\(", program.compiled.as_text()))
    return {**durations, "processor_seconds_with_initialisation": processor, "fusions": fusions}


def main(options: Options) -> dict[str, Any]:
    """Compile every variant in every round."""
    jax.config.update("jax_enable_compilation_cache", False)
    dataset = load_dataset(PRESETS[options.preset]().updated({"data.source": options.data}).data)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, changes in VARIANTS.items():
            rounds[name].append(compile_once(options, changes, dataset))
    compared = np.array([case["compile"] for case in rounds["preset"]])
    cases = [
        {
            "variant": name,
            **{key: float(np.median([case[key] for case in measured])) for key in measured[0]},
            "compile_against_preset": float(
                np.median(np.array([case["compile"] for case in measured]) / compared)
            ),
        }
        for name, measured in rounds.items()
    ]
    return {"cases": cases, "options": dataclasses.asdict(options)}


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    result = main(arguments)
    header = [
        "variant",
        "tracing, s",
        "compiling, s",
        "processor, with initialisation, s",
        "fusions",
        "compiling over the preset's",
    ]
    table = to_markdown(
        header, [[case["variant"], *map(number, list(case.values())[1:])] for case in result["cases"]]
    )
    if arguments.record:
        write_record(
            arguments.record,
            result,
            title="Time of compiling the training step",
            command=command_line(__spec__.name),
            body=[table],
            notes=[
                "Medians over rounds in which all variants were compiled in turn; ratios are paired by round."
            ],
        )
    print(json.dumps(result) if arguments.json else table)
