"""One run on meshes of one to eight devices and by two processes: equality of the numbers and memory of a device.

    python -m experiments.scaling.mesh_equality

Forced host devices of one CPU: this shows numbers and memory, never a speed. Writes
``experiments/results/mesh_equality.md``.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.record import command_line, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.config import RunConfig, save_config
from jaxrec.cores import available_cores
from jaxrec.data import load_dataset
from jaxrec.data.sampler import Position
from jaxrec.presets import smoke
from jaxrec.runs import Run
from jaxrec.sharding import MeshConfig
from jaxrec.training.feed import device_rows
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import train
from jaxrec.training.setup import TrainingSetup, prepare
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk

MESHES = ((1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (8, 1), (2, 4), (1, 8))


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare meshes.

    Attributes:
      epochs: length of the run.
      processes: also run it by two processes with two devices each.
      write: record the table.
    """

    epochs: float = 8.0
    processes: bool = True
    write: bool = True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one run.

    Attributes:
      losses: mean of each chunk of steps.
      params: best parameters on the host, tables without padding.
      metrics: on the test targets.
    """

    losses: list[float]
    params: list[np.ndarray]
    metrics: dict[str, float]


def configuration(options: Options, mesh: MeshConfig) -> RunConfig:
    """A small SASRec with dropout and the exact cross-entropy."""
    base = smoke()
    return dataclasses.replace(
        base,
        encoder=dataclasses.replace(base.encoder, width=32, dropout=0.2),
        training=dataclasses.replace(base.training, epochs=options.epochs, evaluate_every=4),
        mesh=mesh,
    )


def host(params: Any, rows: int) -> list[np.ndarray]:
    """Parameters of the first seed on the host, without padding of tables and without the bias of all keys.

    That bias changes no softmax, so its gradient is rounding alone, which Adam scales up to whole steps.
    """
    params = jax.tree.map(lambda x: np.asarray(x)[0], params)
    for layer in params.values():
        if "attention" in layer:
            bias = layer["attention"]["projections"]["bias"]
            width = len(bias) // 3
            layer["attention"]["projections"]["bias"] = np.delete(bias, np.s_[width : 2 * width])
    return [x[:rows] if x.ndim and x.shape[0] >= rows else x for x in jax.tree.leaves(params)]


def losses(run: Path) -> list[float]:
    """Mean loss of each logged chunk of steps."""
    return [line["loss"][0] for line in read_metrics(run / "log.jsonl") if "loss" in line]


def memory(config: RunConfig) -> dict[str, int]:
    """Bytes on one device: of item tables with their moments, of all arguments and temporaries of the compiled steps."""
    setup: TrainingSetup = prepare(config)
    sharding = setup.sharding
    make = jax.jit(
        jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)),
        out_shardings=sharding.shardings(),
    )
    state = make(np.zeros(1, np.uint32))
    steps = 2
    rows, _ = setup.streams[0].take(Position(), steps * config.batches.batch_size)
    chunk = make_train_chunk(setup.task, setup.optimizer, config.batches, "map", sharding=sharding)
    plan = sharding.put(config.batches.batch_size)(device_rows([rows], steps))
    analysis = chunk.lower(state, plan, setup.resources).compile().memory_analysis()
    pairs = zip(jax.tree.leaves(sharding.axes), jax.tree.leaves(state), strict=True)
    tables = sum(x.addressable_shards[0].data.nbytes for axis, x in pairs if axis >= 0)
    return {
        "tables": tables,
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }


def run_mesh(options: Options, mesh: MeshConfig, folder: Path) -> Outcome:
    """Train on one mesh."""
    config = configuration(options, mesh)
    fit = train(config, None, folder, progress=False)
    rows = fit.setup.dataset.n_items + 1
    return Outcome(losses(folder), host(fit.params, rows), fit.test[0].metrics)


def run_processes(options: Options, folder: Path) -> tuple[Outcome, float]:
    """The run by two processes with two devices each, and its wall seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = configuration(options, MeshConfig(2, 2))
    save_config(config, folder / "config.json")
    program = (
        "import sys; from pathlib import Path; from jaxrec.training.distributed import DistributedConfig, join;"
        f"join(DistributedConfig('manual', '127.0.0.1:{port}', 2, int(sys.argv[1])));"
        "from jaxrec.api import fit; from jaxrec.config import load_config;"
        "folder = Path(sys.argv[2]);"
        "fit(None, load_config(folder / 'config.json'), folder / 'run', progress=False)"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = time.perf_counter()
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(number), str(folder)], env=environment)
        for number in range(2)
    ]
    try:
        codes = [process.wait(timeout=1800) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise SystemExit(f"the two processes ended with {codes}")
    seconds = time.perf_counter() - started
    results = json.loads((folder / "run" / "results.json").read_text())
    run = Run(folder / "run")
    metrics = {name: value["mean"] for name, value in results["metrics"].items()}
    return Outcome(losses(folder / "run"), host(run.best_params, run.catalogue.n_items + 1), metrics), seconds


COLUMNS = ("devices (data x item)", "last loss", "max diff., loss", "of params", "HR@10", "NDCG@10")
MEMORY = ("tables", "arguments", "temporaries")


def row(label: str, outcome: Outcome, first: Outcome, memory: dict[str, int] | None) -> list[str]:
    """One row of the table."""
    difference = max(float(np.abs(a - b).max()) for a, b in zip(outcome.params, first.params, strict=True))
    loss_difference = max(abs(a - b) for a, b in zip(outcome.losses, first.losses, strict=True))
    return [
        label,
        f"{outcome.losses[-1]:.6f}",
        f"{loss_difference:.1e}",
        f"{difference:.1e}",
        f"{outcome.metrics['HR@10']:.4f}",
        f"{outcome.metrics['NDCG@10']:.4f}",
        *(f"{memory[name]:,}" if memory else "-" for name in MEMORY),
    ]


def main(options: Options) -> str:
    """Run all meshes and return the table."""
    dataset = load_dataset("movietweetings")
    rows: list[list[str]] = []
    first, notes = None, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        for shape in MESHES:
            mesh = MeshConfig(*shape)
            outcome = run_mesh(options, mesh, folder / f"{shape[0]}x{shape[1]}")
            first = first or outcome
            label = f"{shape[0] * shape[1]} ({shape[0]} x {shape[1]})"
            rows.append(row(label, outcome, first, memory(configuration(options, mesh))))
            print(*rows[-1], flush=True)
        assert first is not None
        if options.processes:
            (folder / "pair").mkdir()
            outcome, seconds = run_processes(options, folder / "pair")
            rows.append(row("4 (2 x 2), two processes", outcome, first, None))
            notes = [
                f"The two processes took {seconds:.0f} s of wall time from start to report; all share "
                f"{available_cores()} cores."
            ]
    table = to_markdown([*COLUMNS, *MEMORY], rows)
    if not options.write:
        return table
    config = configuration(options, MeshConfig())
    introduction = (
        f"{dataset.name}: {dataset.n_items:,} items; SASRec of width {config.encoder.width} with dropout "
        f"{config.encoder.dropout}, exact cross-entropy, batches of {config.batches.batch_size} rows of "
        f"{config.batches.max_length}, {options.epochs:g} epochs, one seed. Losses are logged with six decimals. Forced "
        "host devices of one CPU show that the numbers agree and what each device holds; they say nothing of speed. "
        "Differences are to one device: of the mean losses of the chunks of steps, and of all best parameters but "
        "the bias of all keys, whose true gradient is zero. Bytes are those of one device: item tables with both moments of "
        "Adam; all arguments of the compiled steps (the log among them); their temporaries."
    )
    write_record(
        "mesh_equality",
        {"rows": [dict(zip([*COLUMNS, *MEMORY], each, strict=True)) for each in rows]},
        title="One run on meshes of one to eight devices",
        command=command_line(__spec__.name),
        body=[introduction, table],
        notes=notes,
    )
    return table


if __name__ == "__main__":
    print(main(tyro.cli(Options)))
