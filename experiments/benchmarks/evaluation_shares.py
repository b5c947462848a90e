"""Memory and reading of one process of several that evaluate together, with and without shares of the log.

    python -m data_prep.synthetic --rows 30000000 --users 200000 --items 4000 --out log.parquet
    jaxrec prepare log.parquet --low-memory --filter k-core --out data/thirty-million
    python -m experiments.benchmarks.evaluation_shares data/thirty-million --record

Processes on this machine, with one device each, rank the test targets with an untrained encoder (what is read and held does
not depend on its values), with as many shares as processes and with one share; and one process alone does. Before the
evaluation each process lets go of the pages of the log that splitting has read; those it holds at the end are those that
evaluating read.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.benchmarks.preparation import Memory
from experiments.record import command_line, write_record
from jaxrec.analysis.tables import to_markdown


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the evaluation in shares.

    Attributes:
      data: a prepared dataset.
      processes: processes that evaluate together.
      record: write experiments/results/evaluation_shares.*.
      worker: of the processes themselves: number, shares and port.
      ranks: of the processes themselves: file for the ranks.
    """

    data: Annotated[Path, tyro.conf.Positional]
    processes: int = 2
    record: bool = False
    worker: tuple[int, ...] = ()
    ranks: str = ""


def resident_mib(file: str) -> float:
    """MiB of a mapped file that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(file)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return round(total / 1024, 1)


def work(options: Options) -> None:
    """Evaluate as one of the processes; print the measurements as JSON."""
    number, shares, port = options.worker
    import jax
    import numpy as np

    if options.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", options.processes, number)
    from jaxrec.config import RunConfig
    from jaxrec.data import load_dataset
    from jaxrec.training.distributed import meet
    from jaxrec.training.setup import prepare
    from jaxrec.training.state import initial_state

    config = RunConfig().updated(
        {
            "mesh.data": options.processes, "batches.shares": shares, "training.feed": "streamed",
            "encoder.width": 16, "encoder.layers": 1, "data.source": str(options.data),
        }
    )  # fmt: skip
    dataset = load_dataset(config.data)
    setup = prepare(config, dataset)
    make = jax.jit(
        jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)),
        out_shardings=setup.sharding.shardings(),
    )
    params = setup.sharding.seed_params(make(np.zeros(1, np.uint32)).params, 0)
    cases = setup.split.cases("test")
    few = cases.select(np.linspace(0, len(cases) - 1, 20_000).astype(np.int64))
    setup.evaluate(params, few)  # compiles
    meet()
    for array in (dataset.items, dataset.timestamps):
        base: Any = array
        while not isinstance(base, mmap.mmap):
            base = base.base
        base.madvise(mmap.MADV_DONTNEED)
    memory = Memory()
    before, began = memory.field("RssAnon"), os.times()
    evaluation = setup.evaluate(params, cases)
    ended = os.times()
    np.save(options.ranks, evaluation.ranks)
    result = {
        "anonymous_before_mib": before,
        "anonymous_peak_mib": max(memory.anonymous, memory.field("RssAnon")),
        "log_mib": resident_mib("items.npy"),
        "cpu_seconds": round(ended.user + ended.system - began.user - began.system, 1),
        "metrics": evaluation.metrics,
    }
    meet()
    print(json.dumps(result), flush=True)


def together(options: Options, processes: int, shares: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Measurements and ranks of all processes of one evaluation."""
    import numpy as np

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.benchmarks.evaluation_shares", str(options.data)]
    command += ["--processes", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{number}.npy" for number in range(processes)]
        running = [
            subprocess.Popen(
                [*command, "--ranks", file, "--worker", str(number), str(shares), str(port)],
                stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            for number, file in enumerate(files)
        ]  # fmt: skip
        outputs = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise SystemExit("a process failed")
        return [json.loads(output.splitlines()[-1]) for output in outputs], [np.load(file) for file in files]


def main(options: Options) -> None:
    """Measure one process, several with one share, and several with one share each."""
    if options.worker:
        work(options)
        return
    import numpy as np

    from jaxrec.data import load_dataset

    dataset = load_dataset(str(options.data))
    size = dataset.n_interactions * 4 / 2**20
    several = options.processes
    runs = [(*pair, *together(options, *pair)) for pair in ((1, several), (several, 1), (several, several))]
    alone = runs[0][3][0]
    rows = [
        [
            str(processes), str(shares), str(number), f"{each['log_mib']:,.1f}", f"{each['anonymous_before_mib']:,}",
            f"{each['anonymous_peak_mib'] - each['anonymous_before_mib']:,}", f"{each['cpu_seconds']:.1f}",
            f"{int((ranks[number] != alone).sum()):,}", f"{each['metrics']['NDCG@10']:.8f}",
        ]
        for processes, shares, results, ranks in runs
        for number, each in enumerate(results)
    ]  # fmt: skip
    header = [
        "processes", "shares", "process", f"of the log's {size:,.1f} MiB read", "anonymous memory before, MiB",
        "more at the peak, MiB", "CPU seconds", "ranks other than those of one process", "NDCG@10",
    ]  # fmt: skip
    furthest = max(int(np.abs(of_one.astype(np.int64) - alone).max()) for run in runs for of_one in run[3])
    agree = all(np.array_equal(run[3][0], of_one) for run in runs for of_one in run[3])
    about = (
        f"{dataset.n_users:,} users, {dataset.n_items:,} items, {dataset.n_interactions:,} interactions; {len(alone):,} "
        f"test targets of leave-one-out. The processes of one evaluation have {'equal' if agree else 'DIFFERENT'} "
        f"ranks; from those of one process a rank differs by at most {furthest}."
    )
    table = to_markdown(header, rows)
    if not options.record:
        print(about, table, sep="\n\n")
        return
    write_record(
        "evaluation_shares",
        {
            "dataset": dataset.counts,
            "largest_difference": furthest,
            "runs": [
                {
                    "processes": processes,
                    "shares": shares,
                    "measured": results,
                    "others": int((ranks[0] != alone).sum()),
                }
                for processes, shares, results, ranks in runs
            ],
        },
        title="Evaluation by several processes, in shares of the log",
        command=command_line("experiments.benchmarks.evaluation_shares"),
        body=[about, table],
        notes=[
            "With one share every process reads the whole log and all processes compute each batch together; with one share "
            "per process each ranks the cases of its own part on its own device. Batches of other sizes round in "
            "another way, which moves a rank where two of the untrained encoder's scores are closer than that."
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)))
