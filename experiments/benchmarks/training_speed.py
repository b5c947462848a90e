"""Training speed on real interactions: a batch mode against padded batches, interleaved in one run.

    python -m experiments.benchmarks.training_speed --json
    python -m experiments.benchmarks.training_speed --data path/to/ml-1m.txt.gz --preset sasrec-ml1m --json

The dataset, attention, objective and every other setting are those of `jaxrec train`. The two modes take turns, so the
ratio holds where the machine's speed drifts; the median over the rounds is reported. Peak memory is that of a process
which runs the one mode only.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.record import command_line, number, write_record
from jaxrec.analysis.tables import to_markdown

KEYS = (
    "interactions_per_second",
    "epoch_seconds",
    "step_seconds",
    "compile_seconds",
    "fill_rate",
    "peak_rss_mib",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Training speed of a batch mode against padded batches.

    Attributes:
      data: as for ``jaxrec train``.
      preset: starting configuration.
      attention: mechanism; empty = the preset's.
      objective: loss; empty = the preset's.
      mode: batch mode; empty = the preset's.
      batch_size: rows of a step; 0 = the preset's.
      max_length: positions of a row; 0 = the preset's.
      dtype: operands of matrix products in encoder and loss; empty = the preset's.
      steps: steps per round.
      rounds: rounds of each mode.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    data: str = "movietweetings"
    preset: str = "sasrec"
    attention: str = ""
    objective: str = ""
    mode: Literal["", "packed", "padded", "prefix"] = ""
    batch_size: int = 0
    max_length: int = 0
    dtype: Literal["", "float32", "bfloat16"] = ""
    steps: int = 6
    rounds: int = 5
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def configuration(options: Options, mode: str = "") -> Any:
    """The run's configuration; ``mode`` overrides the batch mode."""
    from jaxrec.config import NAMED_SECTIONS
    from jaxrec.presets import PRESETS

    config = PRESETS[options.preset]()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=options.data))
    for path, name in (("encoder.attention", options.attention), ("objective", options.objective)):
        if name:
            config = config.updated({path: NAMED_SECTIONS[path][name]()})
    batches = {
        "mode": mode or options.mode,
        "batch_size": options.batch_size,
        "max_length": options.max_length,
    }
    batches = {name: value for name, value in batches.items() if value}
    config = dataclasses.replace(config, batches=dataclasses.replace(config.batches, **batches))
    if options.dtype:
        config = config.updated({"encoder.dtype": options.dtype, "objective.dtype": options.dtype})
    return config


class Trial:
    """One mode, compiled and ready to run rounds of steps."""

    def __init__(self, options: Options, mode: str, dataset: Any):
        import jax
        import jax.numpy as jnp

        from jaxrec.data.sampler import Position
        from jaxrec.training.setup import prepare
        from jaxrec.training.state import initial_state
        from jaxrec.training.step import make_train_chunk

        self.options = options
        self.setup = prepare(configuration(options, mode), dataset)
        setup = self.setup
        chunk = make_train_chunk(setup.task, setup.optimizer, setup.config.batches)
        self.state = jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed))(
            jnp.zeros(1, jnp.uint32)
        )
        self.position = Position()
        started = time.perf_counter()
        self._chunk = chunk.lower(self.state, self._rows(), setup.resources).compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary_bytes = int(self._chunk.memory_analysis().temp_size_in_bytes)
        self.seconds: list[float] = []
        self.targets: list[float] = []
        self.round()
        self.seconds, self.targets = [], []

    def _rows(self) -> Any:
        from jaxrec.training.feed import device_rows

        batch_size = self.setup.config.batches.batch_size
        rows, self.position = self.setup.streams[0].take(self.position, self.options.steps * batch_size)
        return device_rows([rows], self.options.steps)

    def round(self) -> None:
        """Run the steps of one round, planning of the batches included."""
        import jax

        started = time.perf_counter()
        self.state, metrics = self._chunk(self.state, self._rows(), self.setup.resources)
        metrics = jax.device_get(metrics)
        self.seconds.append(time.perf_counter() - started)
        self.targets.append(float(metrics.targets.sum()))

    def report(self, peak_rss_mib: float) -> dict[str, float]:
        """The figures of this mode."""
        rate = statistics.median(t / s for t, s in zip(self.targets, self.seconds, strict=True))
        return {
            "interactions_per_second": rate,
            "epoch_seconds": self.setup.streams[0].targets_per_epoch / rate,
            "step_seconds": statistics.median(self.seconds) / self.options.steps,
            "compile_seconds": self.compile_seconds,
            "fill_rate": self.setup.streams[0].fill_rate,
            "peak_rss_mib": peak_rss_mib,
        }


def _peak(options: Options, mode: str, queue: Any) -> None:
    from jaxrec.data import load_dataset

    Trial(options, mode, load_dataset(configuration(options).data))
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak_rss_mib(options: Options, mode: str) -> float:
    """Peak memory of a fresh process that compiles and runs one round of ``mode``."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(options, mode, queue))
    process.start()
    peak = queue.get()
    process.join()
    return float(peak)


def main(options: Options) -> dict[str, Any]:
    """Run both modes in turn."""
    mode = configuration(options).batches.mode
    peaks = {name: peak_rss_mib(options, name) for name in {mode, "padded"}}
    from jaxrec.data import load_dataset

    dataset = load_dataset(configuration(options).data)
    trials = {name: Trial(options, name, dataset) for name in dict.fromkeys((mode, "padded"))}
    for _ in range(options.rounds):
        for trial in trials.values():
            trial.round()
    from jaxrec.reporting.results import hardware, versions

    reports = {name: trial.report(peaks[name]) for name, trial in trials.items()}
    setup = trials[mode].setup
    return {
        **reports[mode],
        "mode": mode,
        "padded": reports["padded"],
        "speedup_over_padded": reports[mode]["interactions_per_second"]
        / reports["padded"]["interactions_per_second"],
        "dataset": setup.dataset.name,
        "targets_per_epoch": setup.streams[0].targets_per_epoch,
        "options": {**dataclasses.asdict(options), "data": Path(options.data).name},
        "versions": versions(),
        "hardware": hardware(),
    }


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    result = main(arguments)
    for name in (result["mode"], "padded"):
        figures = result if name == result["mode"] else result["padded"]
        print(name, *(f"{key} {figures[key]:,.4g}" for key in KEYS), sep="\n  ", file=sys.stderr)
    if arguments.record:
        modes = {result["mode"]: result, "padded": result["padded"]}
        table = [[name, *(number(modes[name][key]) for key in KEYS)] for name in modes]
        write_record(
            arguments.record,
            result,
            title="Speed of training",
            command=command_line(__spec__.name),
            body=[to_markdown(["mode", *KEYS], table)],
            notes=[f"{result['dataset']}, {result['targets_per_epoch']:,} training targets per epoch."],
        )
    print(
        json.dumps(result)
        if arguments.json
        else f"{result['speedup_over_padded']:.2f} times as fast as padded"
    )
