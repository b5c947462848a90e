"""Processor time of generating sequences: kept states against reading the whole history again at every step.

    python -m experiments.benchmarks.generation_speed --data ml-1m_sasrec.txt.gz --record

Histories of the log, cut to L = 200, whose items are excluded. Parameters are untrained (what is computed does not depend on
their values). "recommend again" calls the ranker once per step, as a caller of `recommend` would; "read again" is `generate`
without kept states, one compiled program for all steps. Both read packed rows, so that little work goes into padding. All
ways run in turn, round by round, and ratios are paired by round.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.record import command_line, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.data import DataConfig, load_dataset
from jaxrec.data.batches import BatchConfig
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import EncoderRanker, RankingData
from jaxrec.evaluation.seen import SeenItems
from jaxrec.models import EncoderConfig, GRU4RecConfig, TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.serving.generation import GenerationConfig, generate
from jaxrec.tasks import NextItemConfig
from jaxrec.training.state import initial_params

LENGTH = 200
MODELS: dict[str, EncoderConfig] = {
    "softmax, two layers": TransformerConfig(width=64, layers=2),
    "GRU4Rec": GRU4RecConfig(),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    data: Annotated[str, tyro.conf.arg(help="dataset, as for jaxrec train")] = "movietweetings"
    users: Annotated[int, tyro.conf.arg(help="histories, drawn at random")] = 1024
    steps: Annotated[int, tyro.conf.arg(help="items to generate")] = 10
    repeats: Annotated[int, tyro.conf.arg(help="rounds of timings")] = 5
    record: Annotated[bool, tyro.conf.arg(help="write experiments/results/generation_speed.*")] = False


def drawn_histories(data: str, users: int) -> tuple[Histories, SeenItems, int]:
    """Whole histories of some users, their items as seen, and the number of items."""
    dataset = load_dataset(DataConfig(source=data))
    offsets, items = np.asarray(dataset.offsets), np.asarray(dataset.items)
    chosen = np.sort(np.random.default_rng(0).permutation(len(offsets) - 1)[:users])
    parts = [items[offsets[user] : offsets[user + 1]] for user in chosen]
    stops = np.cumsum([len(part) for part in parts])
    own = [np.unique(part) for part in parts]
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in own])])
    starts = np.concatenate([[0], stops[:-1]])
    histories = Histories(np.concatenate(parts).astype(np.int32), starts, stops)
    return histories, SeenItems(bounds, np.concatenate(own).astype(np.int32)), dataset.n_items


def untrained(config: EncoderConfig, n_items: int) -> EncoderRanker:
    """A ranker of initial parameters."""
    encoder = config.build(DataSpec(n_items, LENGTH, "start"))
    task = NextItemConfig().build(encoder, CrossEntropyConfig())
    params = jax.jit(lambda seed: initial_params(task, seed))(jnp.uint32(0))
    batches = BatchConfig(max_length=LENGTH, position_origin="start")
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


@dataclasses.dataclass(frozen=True)
class Case:
    """Ways of answering one question; the first read everything again.

    Attributes:
      fitting: only histories that have room for all steps.
      one_of: only so many a part of the histories.
      ways: by name; the last keeps states.
    """

    fitting: bool
    one_of: int
    ways: dict[str, GenerationConfig | None]


CASES = {
    "histories with room for all steps": Case(
        True,
        1,
        {
            "recommend again": None,
            "read again": GenerationConfig(cache="off"),
            "kept": GenerationConfig(),
        },
    ),
    "all histories, sliding window": Case(
        False,
        1,
        {
            "recommend again": None,
            "read again": GenerationConfig(cache="off"),
            "kept where exact": GenerationConfig(),
        },
    ),
    "all histories, planned window": Case(
        False,
        1,
        {
            "read again": GenerationConfig(window="planned", cache="off"),
            "kept": GenerationConfig(window="planned"),
        },
    ),
    "an eighth of them, planned window, 5 beams": Case(
        False,
        8,
        {
            "read again": GenerationConfig("beam", window="planned", cache="off"),
            "kept": GenerationConfig("beam", window="planned"),
        },
    ),
}


def processor_seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor time of each way in each round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            begin = time.process_time()
            call()
            seconds[way].append(time.process_time() - begin)
    return seconds


def measure(
    case: Case, ranker: EncoderRanker, steps: int, rounds: int, log: tuple[Histories, SeenItems]
) -> Any:
    """Seconds, paired ratios and equality of the answers of all ways of a case."""
    histories, seen = log
    room = LENGTH - steps + 1 if case.fitting else np.inf
    chosen = np.flatnonzero(histories.lengths <= room)[:: case.one_of]
    histories, seen = histories.select(chosen), seen.select(chosen)

    def way(config: GenerationConfig | None) -> Callable[[], np.ndarray]:
        if config is None:
            return lambda: recommend_again(ranker, histories, seen, steps)
        return lambda: generate(ranker, histories, steps, config, exclude=seen).items[:, 0]

    calls = {name: way(config) for name, config in case.ways.items()}
    answers = {name: call() for name, call in calls.items()}  # compiles
    seconds = processor_seconds(calls, rounds)
    kept = list(calls)[-1]
    ratios = {name: float(np.median(np.divide(seconds[name], seconds[kept]))) for name in calls}
    equal = {name: float((answer == answers[kept]).mean()) for name, answer in answers.items()}
    return {
        name: {
            "milliseconds_per_history": 1e3 * float(np.median(seconds[name])) / len(histories),
            "kept_times_as_fast": ratios[name],
            "equal_items": equal[name],
        }
        for name in calls
    }


def main(options: Options) -> None:
    """Measure every model, case and way."""
    histories, seen, n_items = drawn_histories(options.data, options.users)
    results: dict[str, Any] = {}
    rows = []
    for model, config in MODELS.items():
        ranker = untrained(config, n_items)
        results[model] = {}
        for name, case in CASES.items():
            if isinstance(config, GRU4RecConfig) and name != "all histories, planned window":
                continue
            results[model][name] = measure(case, ranker, options.steps, options.repeats, (histories, seen))
            new = [
                [
                    model,
                    name,
                    way,
                    f"{cost['milliseconds_per_history']:.3f}",
                    f"{cost['kept_times_as_fast']:.1f}",
                    f"{cost['equal_items']:.4f}",
                ]
                for way, cost in results[model][name].items()
            ]
            rows += new
            print(to_markdown(HEADER, new), flush=True)
    if options.record:
        lengths = np.minimum(histories.lengths, LENGTH)
        long = lengths + options.steps - 1 > LENGTH
        write_record(
            "generation_speed",
            {
                "data": Path(options.data).name,
                "users": options.users,
                "steps": options.steps,
                "share_of_long_histories": float(long.mean()),
                "share_of_interactions_in_long_histories": float(lengths[long].sum() / lengths.sum()),
                "models": results,
            },
            title=f"Time of generating {options.steps} items for {options.users} histories of {Path(options.data).name}",
            command=command_line("experiments.benchmarks.generation_speed"),
            body=[to_markdown(HEADER, rows)],
            notes=[
                f"Processor time, medians over {options.repeats} rounds in which the ways of a case ran in turn, after a "
                f"call that compiles; ratios are medians of those of each round. Width 64, one head, positions from the "
                f"start; L = {LENGTH}, {n_items:,} items, items of the history excluded. Equal items: "
                f"share of generated items that are those of the way that keeps states. {long.mean():.0%} of the histories, "
                f"with {lengths[long].sum() / lengths.sum():.0%} of the interactions read, outgrow L; a sliding window "
                "reads them again at every step."
            ],
        )


HEADER = [
    "model",
    "histories",
    "way",
    "milliseconds per history",
    "kept is so many times as fast",
    "equal items",
]

if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
