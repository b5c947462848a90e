"""Time saved by computing the last layer at the wanted positions alone (`AttentionConfig.selects_positions`).

    python -m experiments.benchmarks.wanted_positions --record wanted_positions

Two uses want few positions of a row: ranking reads the last state of each history, and the pretraining of S3-Rec one state
of each segment. Each mechanism that can select is measured as it is, and with a last layer whose attention computes all
positions, of which the wanted ones are taken. Both programs of a row run in turn, so that a change in the machine's speed
meets them alike. Histories are random, of the lengths of MovieLens 1M (one full row each, for ranking) and LastFM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks.encoder_speed import SHAPES, case_table, configuration, dataset_of
from experiments.benchmarks.encoder_speed import Options as EncoderOptions
from experiments.record import command_line, write_record
from experiments.scaling.steps import Program, seconds_in_turn
from jaxrec.attention import ATTENTION
from jaxrec.attention.base import AttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.models import DataSpec
from jaxrec.models.base import Encoder
from jaxrec.presets import sasrec


@dataclasses.dataclass(frozen=True)
class Options:
    """Time of all positions of the last layer against the wanted ones.

    Attributes:
      mechanisms: names of attention mechanisms.
      pretraining: those that S3-Rec is pretrained with.
      rows: histories encoded at a time.
      steps: steps of pretraining per round.
      rounds: rounds of each program.
      record: name of the record to write in experiments/results; empty = none.
      json: print one JSON object.
    """

    mechanisms: tuple[str, ...] = ("softmax", "uniform", "kernel", "hstu", "miq")
    pretraining: tuple[str, ...] = ("softmax", "miq")
    rows: int = 128
    steps: int = 3
    rounds: int = 5
    record: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@contextlib.contextmanager
def all_positions(attention: type[AttentionConfig]) -> Iterator[None]:
    """Compile programs of a mechanism as if it could not select positions."""
    attention.selects_positions = False
    try:
        yield
    finally:
        attention.selects_positions = True


def both(attention: type[AttentionConfig], compiled: Callable[[], Any]) -> list[Any]:
    """The program with all positions, and with the wanted ones alone."""
    with all_positions(attention):
        before = compiled()
    return [before, compiled()]


class Encoding:
    """The compiled encoder of a batch at ``query_positions``; see `experiments.scaling.steps.Timed`."""

    steps = 1

    def __init__(self, encoder: Encoder, params: Any, batch: Batch, query_positions: jax.Array):
        self.inputs = params, batch

        def states(params: Any, batch: Batch) -> Any:
            return encoder.apply({"params": params}, batch, False, query_positions)

        self.compiled = jax.jit(states).lower(params, batch).compile()

    def run(self) -> Any:
        """Encode the batch."""
        return self.compiled(*self.inputs)


def ranking_case(name: str, options: Options) -> dict[str, Any]:
    """Seconds to encode full histories of MovieLens 1M's length for ranking."""
    attention = ATTENTION[name]
    n_items, length = SHAPES["ml-1m"][3:5]
    encoder = sasrec().updated({"encoder.attention": attention()}).encoder.build(DataSpec(n_items, length))
    size = (options.rows, length)
    items = np.random.default_rng(0).integers(1, n_items + 1, size).astype(np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), size)
    nothing = np.zeros(size, np.int32)
    batch = Batch(items, places, nothing + 1, nothing, nothing.astype(np.float32))
    params = encoder.init(jax.random.key(0), batch)["params"]
    last = jnp.full((options.rows, 1), length - 1, jnp.int32)
    programs = both(attention, lambda: Encoding(encoder, params, batch, last))
    return case("ranking", name, seconds_in_turn(programs, options.rounds))


def pretraining_case(name: str, options: Options) -> dict[str, Any]:
    """Seconds of a step of S3-Rec's pretraining on histories of LastFM's lengths."""
    base = configuration("s3rec-pretrain", "lastfm", EncoderOptions())
    own = base.encoder.attention  # type: ignore[attr-defined]
    attention = ATTENTION[name]
    config = base.updated({"encoder.attention": attention(heads=own.heads, dropout=own.dropout)})
    dataset = dataset_of("lastfm")
    programs = both(attention, lambda: Program(config, dataset, options.steps))
    return case("pretraining", name, seconds_in_turn(programs, options.rounds))


def case(use: str, name: str, times: np.ndarray) -> dict[str, Any]:
    """A row of the table, from seconds [rounds, 2] of all and of the wanted positions."""
    return {
        "use": use,
        "attention": name,
        "all_seconds": float(np.median(times[:, 0])),
        "wanted_seconds": float(np.median(times[:, 1])),
        # Of the same round: paired, so that drift cancels.
        "times_as_fast": float(np.median(times[:, 0] / times[:, 1])),
    }


def main(options: Options) -> dict[str, Any]:
    """Measure every mechanism in both uses."""
    cases = [ranking_case(name, options) for name in options.mechanisms]
    cases += [pretraining_case(name, options) for name in options.pretraining]
    return {"cases": cases, "options": dataclasses.asdict(options)}


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    result = main(arguments)
    if arguments.record:
        write_record(
            arguments.record,
            result,
            title="The last layer at the wanted positions alone",
            command=command_line(__spec__.name),
            body=[case_table(result["cases"])],
            notes=[
                "Medians over rounds in which both programs ran in turn, in seconds, of 128 histories of 200 items and of a "
                "step; ratios are paired by round."
            ],
        )
    print(json.dumps(result) if arguments.json else case_table(result["cases"]))
