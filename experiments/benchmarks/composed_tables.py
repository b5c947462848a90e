"""Memory and time of items composed of codes against a vector per item, for catalogues of 1,000 to 1,000,000 items.

    python -m experiments.benchmarks.composed_tables --record

Lists of ten items from vectors (`jaxrec.evaluation.ranking.top_k`) and from codes alone (`jaxrec.evaluation.composed`):
summing the partial scores of every item, and looking only at items that can enter the list. Tables and codes are random,
and states are random or near an item's vector (cosine 0.7), as those of a trained model may be; pruning depends on them, the
other two do not. All ways are timed in one process, one after the other in each round, and ratios are of the least times.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.record import command_line, number, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.evaluation.composed import ComposedTable
from jaxrec.evaluation.ranking import candidate_table, top_k
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.spec import DataSpec
from jaxrec.presets import sasrec
from jaxrec.training.setup import build_optimizer, build_task
from jaxrec.training.state import initial_state

WIDTH, K = 64, 10
WAYS = ("vectors", "sums of codes", "pruned codes")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    items: Annotated[tuple[int, ...], tyro.conf.arg(help="catalogues")] = (1000, 10_000, 100_000, 1_000_000)
    histories: Annotated[tuple[int, ...], tyro.conf.arg(help="histories of one call")] = (1, 64)
    method: Annotated[Literal["product", "residual"], tyro.conf.arg(help="composition")] = "product"
    codes: Annotated[int, tyro.conf.arg(help="C, codes of an item")] = 4
    size: Annotated[int, tyro.conf.arg(help="K, values of a code")] = 256
    repeats: Annotated[int, tyro.conf.arg(help="rounds; the least time counts")] = 5
    record: Annotated[bool, tyro.conf.arg(help="write experiments/results/composed_tables.*")] = False


def synthetic_table(options: Options, n_items: int) -> tuple[ComposedTable, np.ndarray]:
    """Random codes and tables, and the vectors float32[V+1, D] that they compose."""
    rng = np.random.default_rng(0)
    config = ItemCodesConfig(options.method, options.codes, options.size)
    tables = rng.normal(size=(options.codes, options.size, config.row_width(WIDTH))).astype(np.float32)
    kind = np.uint8 if options.size <= 256 else np.uint16
    table = ComposedTable(
        rng.integers(0, options.size, (n_items, options.codes)).astype(kind),
        tables,
        options.method == "product",
    )
    rows = [tables[column][table.codes[:, column]] for column in range(options.codes)]
    vectors = np.concatenate(rows, axis=1) if table.side_by_side else sum(rows[1:], rows[0])
    return table, np.concatenate([np.zeros((1, WIDTH), np.float32), vectors])


def states(vectors: np.ndarray, count: int, near: bool) -> np.ndarray:
    """Random states float32[E, D], or states at a cosine of 0.7 to an item's vector."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(count, WIDTH)).astype(np.float32)
    if not near:
        return noise
    items = vectors[rng.integers(1, len(vectors), count)]
    length = np.linalg.norm(items, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return (items + noise * length).astype(np.float32)


def least_seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least wall time of each call, over rounds after one that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: min(values[1:]) for name, values in seconds.items()}


def state_bytes(n_items: int, codes: ItemCodesConfig) -> int:
    """Bytes of what a run of the preset holds: parameters, the optimiser's moments, and the best parameters."""
    config = sasrec().updated({"encoder.item_codes": codes})
    task = build_task(config, DataSpec(n_items, config.batches.max_length, "end"))
    optimizer = build_optimizer(config, task, 100)
    state = jax.eval_shape(lambda: initial_state(task, optimizer, jnp.uint32(0)))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, state.params)))


def measure(options: Options, n_items: int) -> dict[str, Any]:
    """Bytes and seconds for one catalogue."""
    table, vectors = synthetic_table(options, n_items)
    dense = candidate_table(ItemTable(jnp.asarray(vectors)))
    codes = ItemCodesConfig(options.method, options.codes, options.size)
    out: dict[str, Any] = {
        "vector_bytes": vectors.nbytes,
        "code_bytes": table.nbytes,
        "pruning_bytes": table.nbytes + 4 * n_items * options.codes,
        "training_bytes": {
            "full": state_bytes(n_items, ItemCodesConfig()),
            "codes": state_bytes(n_items, codes),
        },
        "seconds": {},
    }
    for count in options.histories:
        for near in (True, False):
            of = states(vectors, count, near)

            def from_vectors(of: np.ndarray = of) -> Any:
                return top_k(of, dense, K)

            def from_sums(of: np.ndarray = of) -> Any:
                return table.top_k(of, K)

            def from_few(of: np.ndarray = of) -> Any:
                return table.top_k(of, K, None, "prune")

            calls = dict(zip(WAYS, (from_vectors, from_sums, from_few), strict=True))
            if (from_sums().items != from_few().items).any():
                raise SystemExit(f"lists of {n_items:,} items differ between sums and pruning")
            kind = f"{count} {'near an item' if near else 'random'}"
            out["seconds"][kind] = least_seconds(calls, options.repeats)
            out["seconds"][kind]["equal to vectors"] = float(
                (from_sums().items == from_vectors().items).mean()
            )
    return out


def main(options: Options) -> None:
    """Measure every catalogue."""
    results: dict[int, dict[str, Any]] = {}
    sizes, times = [], []
    for n_items in options.items:
        result = results[n_items] = measure(options, n_items)
        training = result["training_bytes"]
        sizes.append(
            [
                f"{n_items:,}",
                number(result["vector_bytes"] / 2**20),
                number(result["code_bytes"] / 2**20),
                f"{result['vector_bytes'] / result['code_bytes']:.1f}",
                f"{training['full'] / training['codes']:.1f}",
            ]
        )
        for kind, seconds in result["seconds"].items():
            base = seconds["vectors"]
            ratios = [f"{base / seconds[way]:.2f}" for way in WAYS[1:]]
            times.append([f"{n_items:,}", kind, number(1000 * base), *ratios])
        print(to_markdown(HEADER_TIMES, times[-len(result["seconds"]) :]), flush=True)
    tables = [to_markdown(HEADER_SIZES, sizes), to_markdown(HEADER_TIMES, times)]
    if not options.record:
        print("\n".join(tables))
        return
    write_record(
        "composed_tables",
        {**dataclasses.asdict(options), "width": WIDTH, "catalogues": results},
        title="Items composed of codes against a vector per item",
        command=command_line("experiments.benchmarks.composed_tables"),
        body=tables,
        notes=[
            f"Width {WIDTH}, {options.codes} codes of {options.size} values ({options.method}); lists of {K}. Times are "
            "ratios of the least wall times of one process: 2.00 is twice as fast as from vectors. Random tables and "
            "codes; a trained model's partial scores are distributed otherwise, on which pruning depends. Lists of sums "
            "and of pruning were the same in every case. Pruning also holds the items of each code (4 C bytes an item). "
            "Training holds parameters, two moments and the best parameters of the preset `sasrec`."
        ],
    )


HEADER_SIZES = ["items", "vectors, MiB", "codes, MiB", "vectors / codes", "training state, full / codes"]
HEADER_TIMES = [
    "items",
    "histories and states",
    "from vectors, ms",
    "sums, times as fast",
    "pruned, times as fast",
]


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
