"""Time of generating sequences: kept states against reading the whole history again at every step.

    python -m experiments.benchmarks.generation_speed --record

Shapes of MovieLens 1M: 3,416 items, L = 200, and histories whose lengths are drawn from a log-normal distribution with its
median (96) and mean (165). Parameters are untrained (what is computed does not depend on their values). "recommend again"
calls the ranker once per step, as a caller of `recommend` would: packed rows, so that no work goes into padding.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.record import command_line, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.data.batches import BatchConfig
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import EncoderRanker, RankingData
from jaxrec.evaluation.seen import SeenItems
from jaxrec.models import EncoderConfig, GRU4RecConfig, TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.serving.generation import GenerationConfig, cache_obstacle, generate
from jaxrec.tasks import NextItemConfig
from jaxrec.training.state import initial_params

ITEMS, LENGTH = 3416, 200
#: Encoder and what its positions count from.
MODELS: dict[str, tuple[EncoderConfig, Any]] = {
    "softmax, positions from the start": (TransformerConfig(width=64, layers=2), "start"),
    "softmax, positions from the end": (TransformerConfig(width=64, layers=2), "end"),
    "softmax, rotary": (TransformerConfig(width=64, layers=2, positions="rotary"), "start"),
    "GRU4Rec": (GRU4RecConfig(), "start"),
}
WAYS = {
    "read again": GenerationConfig(cache="off"),
    "kept where exact": GenerationConfig(),
    "kept, planned": GenerationConfig(window="planned"),
    "kept, planned, top-50 draws": GenerationConfig("sample", top_k=50, window="planned"),
    "kept, planned, 5 beams": GenerationConfig("beam", window="planned"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    users: Annotated[int, tyro.conf.arg(help="histories")] = 512
    steps: Annotated[int, tyro.conf.arg(help="items to generate")] = 10
    repeats: Annotated[int, tyro.conf.arg(help="timings of each way; the least counts")] = 3
    record: Annotated[bool, tyro.conf.arg(help="write experiments/results/generation_speed.*")] = False


def synthetic_histories(users: int) -> tuple[Histories, SeenItems]:
    """Histories as long as MovieLens 1M's, and their items as seen."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(np.log(96) + 1.04 * rng.normal(size=users)), 20, 2314).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)
    return Histories(items, offsets[:-1], offsets[1:]), SeenItems(offsets, items)


def untrained(config: EncoderConfig, origin: Any) -> EncoderRanker:
    """A ranker of initial parameters."""
    encoder = config.build(DataSpec(ITEMS, LENGTH, origin))
    task = NextItemConfig().build(encoder, CrossEntropyConfig())
    params = jax.jit(lambda seed: initial_params(task, seed))(jnp.uint32(0))
    batches = BatchConfig(max_length=LENGTH, position_origin=origin)
    return EncoderRanker.build(Forward(encoder), params, batches, EvaluationConfig(), RankingData())


def recommend_again(ranker: EncoderRanker, histories: Histories, seen: SeenItems, steps: int) -> np.ndarray:
    """Ask the ranker for one item, append it, and ask again: int32[E, G]."""
    out = []
    for _ in range(steps):
        best = ranker.top_k(histories, 1, seen).items[:, 0]
        out.append(best)
        stops = np.asarray(histories.stops)
        log = np.insert(np.asarray(histories.items), stops, best)
        moved = np.arange(len(best))
        histories = Histories(log, histories.starts + moved, stops + moved + 1)
        seen = SeenItems(
            seen.offsets + np.arange(len(best) + 1), np.insert(seen.items, seen.offsets[1:], best)
        )
    return np.stack(out, axis=1)


def least_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Least wall time of some calls after one that compiles."""
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def main(options: Options) -> None:
    """Measure every model and way."""
    histories, seen = synthetic_histories(options.users)
    results: dict[str, Any] = {}
    rows = []
    for model, (config, origin) in MODELS.items():
        ranker = untrained(config, origin)

        def again(ranker: EncoderRanker = ranker) -> np.ndarray:
            return recommend_again(ranker, histories, seen, options.steps)

        base = least_seconds(again, options.repeats)
        results[model] = {"recommend again": {"seconds": base, "ratio": 1.0}}
        for way, how in WAYS.items():

            def run(how: GenerationConfig = how, ranker: EncoderRanker = ranker) -> Any:
                return generate(ranker, histories, options.steps, how, exclude=seen)

            seconds = least_seconds(run, options.repeats)
            kept = how.cache == "auto" and cache_obstacle(ranker, how) is None
            results[model][way] = {"seconds": seconds, "ratio": base / seconds, "kept": kept}
            if way == "kept where exact":
                same = float((run().items[:, 0] == again()).mean())
                results[model][way]["equal_to_recommend_again"] = same
        rows += [
            [model, way, f"{cost['seconds']:.2f}", f"{cost['ratio']:.1f}"]
            for way, cost in results[model].items()
        ]
        print(to_markdown(["model", "way", "seconds", "times as fast"], rows[-len(WAYS) - 1 :]), flush=True)
    if options.record:
        write_record(
            "generation_speed",
            {"users": options.users, "steps": options.steps, "models": results},
            title=f"Time of generating {options.steps} items for {options.users} histories of MovieLens 1M's lengths",
            command=command_line("experiments.benchmarks.generation_speed"),
            body=[to_markdown(["model", "way", "seconds", "times as fast as recommend again"], rows)],
            notes=[
                "Least seconds after a call that compiles. Width 64, two layers, one head; L = 200, 3,416 items, seen items "
                "removed. 'Kept where exact' reads histories that outgrow L again at every step, and all of them where "
                "positions count from the end; 'planned' lays history and steps out ahead, so that nothing moves "
                "(`jaxrec.serving.generation`)."
            ],
        )


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
