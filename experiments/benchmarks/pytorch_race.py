"""Time of a training step against the best that we could write in PyTorch (`pytorch_sasrec.py`), on the same batches.

    python -m experiments.benchmarks.pytorch_race --torch-python PYTHON --data ml-1m_sasrec.txt.gz --preset sasrec-ml1m
    python -m experiments.benchmarks.pytorch_race --torch-python PYTHON --data amazon_beauty_5core.csv.gz

PyTorch is no dependency of the package: ``--torch-python`` is the Python of an environment that has it. All programs run
the same packed batches with the same dropout, in turn, a few steps each, so that a change in the machine's speed meets all
of them alike; ratios are medians over the rounds. jaxrec has one device per core, as with ``jaxrec train --mesh.data 0``,
PyTorch one thread per core. Seconds of PyTorch contain the layout of its batches, those of jaxrec the filling of its rows.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.record import RESULTS, command_line, number, write_record
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.tables import to_markdown
from jaxrec.cli.devices import with_devices
from jaxrec.config import RunConfig
from jaxrec.cores import physical_cores
from jaxrec.data import load_dataset
from jaxrec.presets import named_config


@dataclasses.dataclass(frozen=True)
class Options:
    """Training step of jaxrec and of PyTorch.

    Attributes:
      torch_python: Python of an environment with PyTorch.
      data: as for ``jaxrec train``.
      preset: ``sasrec`` or ``sasrec-ml1m``.
      steps: steps of a round, each on its own batch.
      rounds: rounds of each program.
      buckets: of lengths, in a batch of PyTorch.
      devices: of jaxrec; 0 = one per core.
      record: name of the record to write in experiments/results; empty = none.
    """

    torch_python: str
    data: str = "movietweetings"
    preset: str = "sasrec"
    steps: int = 4
    rounds: int = 7
    buckets: int = 12
    devices: int = 0
    record: str = ""


class Jaxrec:
    """The compiled chunk of a run on fixed batches."""

    def __init__(self, config: RunConfig, dataset: Any, steps: int):
        import jax

        from jaxrec.data.sampler import Position
        from jaxrec.training.feed import device_rows
        from jaxrec.training.setup import prepare
        from jaxrec.training.state import initial_state
        from jaxrec.training.step import make_train_chunk

        self.setup = setup = prepare(config, dataset)
        rows, _ = setup.streams[0].take(Position(), steps * config.batches.batch_size)
        self.plan = device_rows([rows], steps)
        self.rows = setup.sharding.put(config.batches.batch_size)(jax.tree.map(np.asarray, self.plan))
        initial = jax.jit(
            jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)),
            out_shardings=setup.sharding.shardings(),
        )
        self.state = initial(np.zeros(1, np.uint32))
        chunk = make_train_chunk(setup.task, setup.optimizer, config.batches, "map", 1, setup.sharding)
        started = time.perf_counter()
        self.compiled = chunk.lower(self.state, self.rows, setup.resources).compile()
        self.compile_seconds = time.perf_counter() - started

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds and mean loss of a round."""
        import jax

        started = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.rows, self.setup.resources)
        metrics = jax.device_get(metrics)
        return time.perf_counter() - started, float(metrics.loss.mean())


class PyTorch:
    """The process of `pytorch_sasrec` in one precision."""

    def __init__(self, options: Options, config: RunConfig, n_items: int, batches: str, precision: list[str]):
        encoder: Any = config.encoder
        settings = {
            "batches": batches,
            "items": n_items,
            "max-length": config.batches.max_length,
            "width": encoder.width,
            "layers": encoder.layers,
            "threads": physical_cores(),
            "buckets": options.buckets,
            "dropout": encoder.dropout,
            "attention-dropout": encoder.attention.dropout,
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        script = Path(__file__).with_name("pytorch_sasrec.py")
        self.process = subprocess.Popen(
            [options.torch_python, str(script), *words, *precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds and mean loss of a round."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["loss"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def save_batches(program: Jaxrec, path: Path) -> int:
    """Write the sequences of a program's batches for PyTorch; return the number of targets."""
    from jaxrec.data.batches import gather_batch
    from jaxrec.data.packing import PackedRows

    config, items = program.setup.config.batches, np.asarray(program.setup.dataset.items)
    arrays, targets = {}, 0
    for step in range(program.plan.lengths.shape[1]):
        rows = PackedRows(*(np.asarray(part)[0, step] for part in program.plan))
        batch = gather_batch(
            rows, items, max_length=config.max_length, position_origin=config.position_origin
        )
        real = batch.segments > 0
        for name in ("items", "positions", "targets"):
            arrays[f"{name}_{step}"] = getattr(batch, name)[real]
        arrays[f"lengths_{step}"] = rows.lengths[rows.lengths > 0]
        targets += int(real.sum())
    np.savez(path, **arrays)
    return targets


def figure(seconds: dict[str, np.ndarray], title: str) -> Figure:
    """Median and rounds of each program, in milliseconds per step."""
    drawing = Figure(figsize=(6, 2.8), layout="constrained")
    axes = drawing.subplots()
    names = list(seconds)[::-1]
    medians = [1000 * float(np.median(seconds[name])) for name in names]
    axes.barh(names, medians, color=["C0" if name.startswith("jaxrec") else "C1" for name in names])
    for place, name in enumerate(names):
        axes.plot(1000 * seconds[name], np.full(len(seconds[name]), place), "k.", markersize=4)
    axes.set(xlabel="milliseconds per step: median (bar) and rounds (dots)", xlim=(0, None))
    drawing.suptitle(title, fontsize=10)
    return drawing


def main(options: Options) -> None:
    """Run all programs in turn and print their times."""
    config = named_config(options.preset).updated({"data.source": options.data, "mesh.data": options.devices})
    config = with_devices(config, resume=False)
    dataset = load_dataset(config.data)
    short = config.updated({"encoder.dtype": "bfloat16", "objective.dtype": "bfloat16"})
    ours = {
        "jaxrec, float32": Jaxrec(config, dataset, options.steps),
        "jaxrec, bfloat16": Jaxrec(short, dataset, options.steps),
    }
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.npz"
        targets = save_batches(ours["jaxrec, float32"], batches)

        def pytorch(*precision: str) -> PyTorch:
            return PyTorch(options, config, dataset.n_items, str(batches), list(precision))

        theirs = {
            "PyTorch, float32": pytorch(),
            "PyTorch, bfloat16 loss": pytorch("--loss", "bf16"),
            "PyTorch, bfloat16": pytorch("--loss", "bf16", "--encoder", "bf16"),
        }
        programs: dict[str, Any] = {**ours, **theirs}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        losses: dict[str, float] = {}
        for _ in range(options.rounds + 1):
            for name, program in programs.items():
                taken, losses[name] = program.run(options.steps)
                seconds[name].append(taken / options.steps)
        for program in theirs.values():
            program.close()
    times = {name: np.asarray(values[1:]) for name, values in seconds.items()}
    best = min(list(theirs)[1:], key=lambda name: float(np.median(times[name])))
    ratios = {
        f"{a} / {b}": float(np.median(times[a] / times[b]))
        for a, b in (
            ("jaxrec, float32", "PyTorch, float32"),
            ("jaxrec, bfloat16", best),
            ("jaxrec, float32", best),
        )
    }
    table = [
        [
            name,
            f"{np.median(values):.3f}",
            number(targets / options.steps / float(np.median(values))),
            f"{losses[name]:.3f}",
        ]
        for name, values in times.items()
    ]
    body = [
        to_markdown(["program", "seconds per step", "interactions/s", "last loss"], table),
        to_markdown(["ratio of times", ""], [[name, f"{ratio:.2f}"] for name, ratio in ratios.items()]),
    ]
    print("\n".join(body))
    if options.record:
        title = f"Training step of {options.preset} against PyTorch, {dataset.name}"
        save_figure(figure(times, title), RESULTS / f"{options.record}.png")
        version = theirs["PyTorch, float32"].version
        write_record(
            options.record,
            {
                "seconds": {name: values.tolist() for name, values in times.items()},
                "ratios": ratios,
                "targets_per_step": targets / options.steps,
                "devices": config.mesh.data,
                "pytorch": version,
                "options": {
                    **dataclasses.asdict(options),
                    "data": Path(options.data).name,
                    "torch_python": Path(options.torch_python).name,
                },
            },
            title=title,
            command=command_line("experiments.benchmarks.pytorch_race"),
            body=[*body, f"![]({options.record}.png)"],
            notes=[
                f"Medians over {options.rounds} rounds in which all programs ran in turn, {options.steps} steps each, on "
                f"the same packed batches; ratios are paired by round. jaxrec on {config.mesh.data} devices of the CPU, "
                f"PyTorch {version['torch']} on {version['threads']} threads, in {options.buckets} buckets of lengths. "
                "'bfloat16 loss' has bfloat16 operands in the loss alone."
            ],
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
