"""Exact cross-entropy against the plain version that holds all scores: time, memory, share of the possible.

    python -m experiments.benchmarks.cross_entropy --json

Loss and gradients of hidden states and items, D = 64, every position real. All variants of a case take turns,
so that their ratios hold on a machine that is not quiet. Figures of a case:

- ``time_ratio``, ``time_ratio_bf16``: median time over that of the plain version (null where the latter does
  not fit);
- ``temp_mib``: peak temporary memory that the compiler plans, beyond inputs and gradients; ``_plain`` for the
  plain one;
- ``fraction_of_floor``: time of three matrix products, in [256 x 64] by [64 x 2048] tiles as measured here,
  plus one exponential per score, over the time taken, the fastest round of each; ``_bf16`` with products of
  bfloat16 operands on both sides;
- ``loss_error_bf16``, ``gradient_error_bf16``: relative to float32, of the loss, and in norm, of both
  gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.record import command_line, number, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import CrossEntropyConfig, LossInputs
from jaxrec.objectives.fused_cross_entropy import exponential
from jaxrec.reporting.results import hardware, versions

WIDTH = 64
CASES = ((25_600, 3_417), (12_800, 12_102), (3_200, 57_290), (3_200, 1_000_000))
PLAIN_FITS = 8 * 2**30  # bytes of temporaries up to which the plain version is run
MIB = 2**20


def inputs(n: int, v: int) -> tuple[Array, Array, Array, Array]:
    """Hidden states as after a layer norm, item vectors as in a trained model, targets, weights of one."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, WIDTH), np.float32)
    vectors = 0.3 * rng.standard_normal((v + 1, WIDTH), np.float32)
    targets = rng.integers(1, v + 1, n, dtype=np.int32)
    return jnp.asarray(hidden), jnp.asarray(vectors), jnp.asarray(targets), jnp.ones(n, jnp.float32)


def plain(hidden: Array, vectors: Array, targets: Array, weights: Array) -> Array:
    """The textbook version: [N, V] scores, differentiated by JAX."""
    scores = hidden @ vectors[1:].T
    of_target = jnp.take_along_axis(scores, (targets - 1)[:, None], axis=1)[:, 0]
    return jnp.sum(weights * (jax.nn.logsumexp(scores, axis=1) - of_target))


def ours(dtype: Any) -> Callable[..., Array]:
    """Loss of the library with operands of ``dtype``."""

    def loss(hidden: Array, vectors: Array, targets: Array, weights: Array) -> Array:
        key = jax.random.key(0)
        return (
            CrossEntropyConfig(dtype=dtype)
            .loss(LossInputs(hidden, ItemTable(vectors), targets, weights, key))
            .total
        )

    return loss


def compiled(loss: Callable[..., Array], arrays: tuple[Array, ...]) -> Any:
    """Compiled value and gradients of hidden states and items."""
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def floor_of_tiles(dtype: str, rounds: int = 40) -> Callable[[], Array]:
    """Return a call of three products of a [256 x 2048] tile and its exponential, repeated ``rounds`` times in sequence."""
    rng = np.random.default_rng(1)
    operand = jnp.asarray(rng.standard_normal((256, WIDTH), np.float32))
    items = jnp.asarray(rng.standard_normal((WIDTH, 2048), np.float32)).astype(dtype)

    @jax.jit
    def run(h: Array, x: Array) -> tuple[Array, Array]:
        def product(_: int, h: Array) -> Array:
            scores = lax.dot_general(
                h.astype(dtype), items, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
            return h + 1e-9 * scores[:, :WIDTH]

        def power(_: int, x: Array) -> Array:
            return exponential(-x, jnp.zeros((1, 1), bool), "float32")

        return lax.fori_loop(0, 3 * rounds, product, h), lax.fori_loop(0, rounds, power, x)

    scores = jnp.ones((256, 2048), jnp.float32)
    run(operand, scores)
    return lambda: run(operand, scores)


def measure(n: int, v: int, repeats: int) -> dict[str, Any]:
    """Figures of one case: N positions and V items."""
    arrays = inputs(n, v)
    programs = {name: compiled(ours(name), arrays) for name in ("float32", "bfloat16")}
    temporary = {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()}
    # The compiler's plan for the plain version needs no arrays.
    textbook = compiled(plain, arrays)
    temporary["plain"] = textbook.memory_analysis().temp_size_in_bytes
    rounds = 40
    # The plain version goes last: giving back its gigabytes slows what comes right after it.
    runs: dict[str, Callable[[], Any]] = {f"floor {name}": floor_of_tiles(name, rounds) for name in programs}
    runs |= {name: (lambda p=program: p(*arrays)) for name, program in programs.items()}
    if temporary["plain"] <= PLAIN_FITS:
        runs["plain"] = lambda: textbook(*arrays)
    results = {name: jax.block_until_ready(runs[name]()) for name in programs}
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    fastest = {name: min(values) for name, values in times.items()}
    tiles = n * v / (256 * 2048 * rounds)

    def ratio(name: str) -> float | None:
        return round(median[name] / median["plain"], 3) if "plain" in median else None

    (loss, gradients), (loss_half, gradients_half) = results["float32"], results["bfloat16"]
    errors = [
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
        for a, b in zip(gradients, gradients_half, strict=True)
    ]
    return {
        "n": n,
        "v": v,
        "time_ratio": ratio("float32"),
        "time_ratio_bf16": ratio("bfloat16"),
        "temp_mib": round(temporary["float32"] / MIB, 1),
        "temp_mib_bf16": round(temporary["bfloat16"] / MIB, 1),
        "temp_mib_plain": round(temporary["plain"] / MIB, 1),
        "fraction_of_floor": round(fastest["floor float32"] * tiles / fastest["float32"], 3),
        "fraction_of_floor_bf16": round(fastest["floor bfloat16"] * tiles / fastest["bfloat16"], 3),
        "seconds": round(median["float32"], 4),
        "seconds_bf16": round(median["bfloat16"], 4),
        "seconds_plain": round(median["plain"], 4) if "plain" in median else None,
        "loss_error_bf16": float(f"{abs(float(loss_half / loss) - 1):.2g}"),
        "gradient_error_bf16": [float(f"{error:.2g}") for error in errors],
    }


def main() -> None:
    """Measure the cases and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="rounds over the variants of a case")
    parser.add_argument("--cases", type=int, nargs="*", help="which cases, by number from 0 (default: all)")
    parser.add_argument("--record", default="", help="record in experiments/results to write")
    options = parser.parse_args()
    chosen = range(len(CASES)) if options.cases is None else options.cases
    cases = [measure(*CASES[i], repeats=max(1, options.repeats)) for i in chosen]
    result = {"cases": cases, "versions": versions(), "hardware": hardware()}
    if options.record:
        columns = [name for name in cases[0] if name != "gradient_error_bf16"]
        table = [["-" if case[name] is None else number(case[name]) for name in columns] for case in cases]
        write_record(
            options.record,
            result,
            title="Exact cross-entropy against a materialised one",
            command=command_line(__spec__.name),
            body=[to_markdown(columns, table)],
            notes=[
                "Seconds are medians. The floor's products run in tiles of [256 x 64] by [64 x 2048], one at a time; a "
                "share above 1 means that the loss keeps the processor busier than they do."
            ],
        )
    if options.json:
        print(json.dumps(result))
        return
    for case in cases:
        print("  ".join(f"{name} {value}" for name, value in case.items()))


if __name__ == "__main__":
    main()
