"""Time and memory of evaluation.

    python -m experiments.benchmarks.evaluation --json
    python -m experiments.benchmarks.evaluation --only ml-1m "top-20" --record evaluation_speed

Every case runs in a fresh process, so that its peak memory is its own, and is timed after a first run that
compiles. ML-1M and the large Beauty file are read from ``--data`` (`../shared/data`); where they are absent,
random histories of the same sizes stand in and the case says so. The last line of standard output is the
result. ``--record NAME`` writes it to ``experiments/results/NAME.json`` and ``NAME.md``, beside the cases that
the record has already and that were not run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 64
_FILES = {"ml-1m": "ml-1m_sasrec.txt.gz", "beauty-large": "amazon_beauty_sasrec.txt.gz"}
_SIZES = {"ml-1m": (6040, 3416, 165.5), "beauty-large": (52_204, 57_289, 7.6)}


def dataset(name: str, data: Path) -> tuple[Any, str]:
    """The dataset of a case, and where it is from."""
    from jaxrec.data import load_dataset

    if (data / _FILES[name]).exists():
        return load_dataset(data / _FILES[name]), _FILES[name]
    n_users, n_items, mean_length = _SIZES[name]
    rng = np.random.default_rng(0)
    lengths = 3 + rng.geometric(1 / (mean_length - 3), n_users)
    users = np.repeat(np.arange(n_users), lengths)
    items = np.concatenate([np.arange(n_items), rng.integers(0, n_items, len(users) - n_items)])
    return load_dataset(
        {"users": users, "items": rng.permutation(items)}
    ), "random histories of the same size"


def best_of(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of some calls, after one that compiles; and what it returned."""
    result = call()
    fastest = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        result = call()
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest, result


def peak_mib() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class WorkingMemory:
    """Peak memory above what was held at the start (Linux: the kernel's own high-water mark, reset here)."""

    def __init__(self) -> None:
        self.earlier_peak = peak_mib()
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._of("VmRSS")

    def mib(self) -> float:
        """MiB above the start."""
        return self._of("VmHWM") - self.before

    @staticmethod
    def _of(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def full_evaluation(name: str, data: Path, max_length: int) -> dict[str, Any]:
    """A SASRec of two layers, untrained (its speed is that of a trained one): encode, rank, average."""
    import jax

    from jaxrec.data import split_dataset
    from jaxrec.data.batches import BatchConfig
    from jaxrec.data.packing import pad
    from jaxrec.evaluation.config import EvaluationConfig
    from jaxrec.evaluation.encode import Forward
    from jaxrec.evaluation.evaluate import evaluate_cases
    from jaxrec.evaluation.histories import Histories
    from jaxrec.evaluation.ranker import EncoderRanker, RankingData
    from jaxrec.evaluation.ranking import candidate_table, rank_targets
    from jaxrec.evaluation.seen import seen_items
    from jaxrec.models import DataSpec, TransformerConfig

    log, source = dataset(name, data)
    split = split_dataset(log)
    encoder = TransformerConfig(width=WIDTH).build(DataSpec(log.n_items, max_length))
    params = _initial(encoder, max_length, pad)
    batches, config = BatchConfig(max_length=max_length), EvaluationConfig()
    cases, items = split.test, np.asarray(log.items)

    def ranker() -> Any:
        return EncoderRanker.build(Forward(encoder), params, batches, config, RankingData())

    seconds, result = best_of(3, lambda: evaluate_cases(ranker(), cases, items, config))
    hidden = ranker().encode(Histories(items, cases.history_starts, cases.history_stops))
    jax.block_until_ready(hidden)
    table = encoder.item_table(params)

    def score() -> Any:
        return rank_targets(hidden, candidate_table(table), cases.targets, seen_items(cases, items))

    scoring_seconds, _ = best_of(3, score)
    return {
        "data": source,
        "users": len(cases.users),
        "items": log.n_items,
        "max_length": max_length,
        "seconds": seconds,
        "scoring_seconds": scoring_seconds,
        "HR@10": result.metrics["HR@10"],
    }


def _initial(encoder: Any, max_length: int, pad: Callable[..., Any]) -> Any:
    import jax

    from jaxrec.data.batches import gather_batch
    from jaxrec.data.packing import Sequences

    one = Sequences(np.zeros(1, np.int64), np.ones(1, np.int32), np.zeros(1, np.int32))
    batch = gather_batch(pad(one), np.ones(2, np.int32), max_length=max_length)
    return encoder.init({"params": jax.random.key(0)}, batch, False)["params"]


def product_seconds(hidden: Any, vectors: Any, item_chunk: int, row_chunk: int) -> float:
    """The matrix products of scoring alone, in the same tiles: the floor of any exact method."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    @jax.jit
    def products(states: Any, vectors: Any) -> Any:
        def tile(total: Any, start: Any) -> Any:
            block = lax.dynamic_slice_in_dim(vectors, start, item_chunk)
            scores = lax.dot_general(states, block, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
            return jnp.maximum(total, scores[:, 0]), None

        starts = jnp.arange(0, vectors.shape[0] - item_chunk + 1, item_chunk, dtype=jnp.int32)
        return lax.scan(tile, jnp.zeros(states.shape[:1], jnp.float32), starts)[0]

    states = hidden[:row_chunk]
    return best_of(2, lambda: products(states, vectors).block_until_ready())[0] * len(hidden) / row_chunk


def top_20(n_rows: int = 10_000, n_items: int = 1_000_000, seen: int = 50) -> dict[str, Any]:
    """Lists of 20 for many users over a large catalogue."""
    import jax.numpy as jnp

    from jaxrec.evaluation.ranking import ITEM_CHUNK, ROW_CHUNK, candidate_table, top_k
    from jaxrec.nn.item_table import ItemTable

    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.standard_normal((n_items + 1, WIDTH), np.float32))
    hidden = jnp.asarray(rng.standard_normal((n_rows, WIDTH), np.float32))
    history = rng.integers(1, n_items + 1, (n_rows, seen), dtype=np.int32)
    table = candidate_table(ItemTable(vectors))
    top_k(hidden[:ROW_CHUNK], table, 20, history[:ROW_CHUNK])  # compile
    memory = WorkingMemory()
    begin = time.perf_counter()
    top_k(hidden, table, 20, history)
    seconds = time.perf_counter() - begin
    working = memory.mib()
    floor = product_seconds(hidden, vectors, ITEM_CHUNK, ROW_CHUNK)
    return {
        "users": n_rows,
        "items": n_items,
        "seconds": seconds,
        "scoring_seconds": seconds,
        "matrix_product_seconds": floor,
        "fraction_of_matrix_product_floor": floor / seconds,
        "working_mib": working,
        "peak_rss_mib": max(memory.earlier_peak, peak_mib()),
    }


def scaling(n_items: int, n_rows: int = 512) -> dict[str, Any]:
    """Ranks of 512 targets, D = 16, at one catalogue size: memory beside the table does not grow."""
    import jax.numpy as jnp

    from jaxrec.evaluation.ranking import candidate_table, rank_targets
    from jaxrec.nn.item_table import ItemTable

    width = 16
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.standard_normal((n_items + 1, width), np.float32))
    hidden = jnp.asarray(rng.standard_normal((n_rows, width), np.float32))
    targets = rng.integers(1, n_items + 1, n_rows)
    begin = time.perf_counter()
    table = candidate_table(ItemTable(vectors))
    checking = time.perf_counter() - begin
    memory = WorkingMemory()
    seconds, _ = best_of(2, lambda: rank_targets(hidden, table, targets))
    return {
        "users": n_rows,
        "items": n_items,
        "width": width,
        "seconds": seconds,
        "scoring_seconds": seconds,
        "checking_seconds": checking,
        "table_mib": vectors.nbytes / 2**20,
        "working_mib": memory.mib(),
        "peak_rss_mib": max(memory.earlier_peak, peak_mib()),
    }


def cases(data: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every case by name."""
    every: dict[str, Callable[[], dict[str, Any]]] = {
        "ml-1m": lambda: full_evaluation("ml-1m", data, 200),
        "beauty-large": lambda: full_evaluation("beauty-large", data, 50),
        "top-20 of 1,000,000": top_20,
    }
    for power in range(3, 8):
        every[f"10^{power} items"] = lambda power=power: scaling(10**power)  # type: ignore[misc]
    return every


def record(results: list[dict[str, Any]], order: list[str], name: str) -> None:
    """Merge the results into the record ``name``, which may have other cases."""
    from experiments.record import RESULTS, write_record
    from jaxrec.analysis.tables import to_markdown
    from jaxrec.reporting.results import versions

    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text()) if file.exists() else {"cases": []}
    known = {case["name"]: case for case in before["cases"]}
    installed = versions()
    known.update({case["name"]: {**case, "commit": installed.get("commit")} for case in results})
    merged = sorted(known.values(), key=lambda case: order.index(case["name"]))
    columns = {
        "seconds": "seconds",
        "scoring_seconds": "of which scoring",
        "peak_rss_mib": "peak MiB",
        "working_mib": "beside table and states, MiB",
        "fraction_of_matrix_product_floor": "fraction of the floor",
    }
    rows = [
        [
            case["name"],
            f"{case['users']:,}",
            f"{case['items']:,}",
            *(None if case.get(c) is None else f"{case[c]:.3f}" for c in ("seconds", "scoring_seconds")),
            *(None if case.get(c) is None else f"{case[c]:.0f}" for c in ("peak_rss_mib", "working_mib")),
            None if case.get(last := list(columns)[-1]) is None else f"{case[last]:.2f}",
        ]
        for case in merged
    ]
    write_record(
        name,
        {
            "cases": merged,
            "versions": {**installed, "commit": ", ".join(sorted({str(c["commit"]) for c in merged}))},
        },
        title="Time and memory of evaluation",
        command="python -m experiments.benchmarks.evaluation",
        body=[to_markdown(["case", "users", "items", *columns.values()], rows)],
        notes=[
            "ml-1m and beauty-large: SASRec, two layers, D = 64, L = 200 and 50; encoding, ranking and metrics, the "
            "fastest of three after one that compiles. top-20: D = 64, 50 seen items per user; the floor is its matrix "
            "products alone, in the same tiles. 10^n items: ranks of 512 targets, D = 16."
        ],
    )


def measure(name: str, data: Path) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, "-m", "experiments.benchmarks.evaluation", "--case", name, "--data", str(data)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"case {name!r} failed with exit status {finished.returncode}")
    *notes, result = finished.stdout.strip().splitlines()
    print("\n".join(notes), file=sys.stderr)
    return json.loads(result)


def main() -> None:
    """Run the cases and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="directory of the archives")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="names of cases, or the beginning of them")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    parser.add_argument("--record", default="", metavar="NAME", help="record in experiments/results to write")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = cases(options.data)
    if options.case:
        result = {"name": options.case, **known[options.case]()}
        result.setdefault("peak_rss_mib", peak_mib())
        print(json.dumps(result))
        return
    chosen = [name for name in known if not options.only or name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"no case begins with {options.only}: expected some of {', '.join(known)}")
    results = []
    for name in chosen:
        results.append(measure(name, options.data))
        if not options.json:
            row = results[-1]
            times = f"{row['seconds']:8.3f} s  scoring {row['scoring_seconds']:8.3f} s"
            print(f"{name:22s} {times}  {row['peak_rss_mib']:7.0f} MiB")
    if options.record:
        record(results, list(known), options.record)
    print(json.dumps({"cases": results}))


if __name__ == "__main__":
    main()
