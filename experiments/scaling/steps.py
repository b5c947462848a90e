"""Training steps to measure: the compiled chunk of a run, on random histories of chosen lengths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.sampler import Position
from jaxrec.training.feed import device_rows
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk

MIB = 2**20


def random_histories(lengths: np.ndarray, n_items: int) -> SequenceDataset:
    """Users with so many interactions each, with items drawn uniformly."""
    generator = np.random.default_rng(0)
    return SequenceDataset(
        generator.integers(1, n_items + 1, int(lengths.sum())).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids=[str(i) for i in range(len(lengths))],
        item_ids=[str(i) for i in range(n_items)],
        meta={"name": "random histories"},
    )


class Program:
    """The compiled chunk of K steps of a run with one seed, its state, and its first K batches, used again and again."""

    def __init__(self, config: RunConfig, dataset: SequenceDataset, steps: int):
        self.setup = setup = prepare(config, dataset)
        rows, _ = setup.streams[0].take(Position(), steps * config.batches.batch_size)
        self.rows = jax.device_put(device_rows([rows], steps))
        self.targets = int(rows.lengths.sum())
        self.steps = steps
        initial = jax.jit(jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)))
        self.state = initial(jnp.zeros(1, jnp.uint32))
        chunk = make_train_chunk(setup.task, setup.optimizer, config.batches)
        self.compiled = chunk.lower(self.state, self.rows, setup.resources).compile()

    def run(self) -> Any:
        """Run one chunk and advance the state."""
        self.state, metrics = self.compiled(self.state, self.rows, self.setup.resources)
        return metrics

    @property
    def memory(self) -> dict[str, float]:
        """MiB of the state, beside it during a step as the compiler plans, and of the log on the device."""
        analysis = self.compiled.memory_analysis()
        state, log = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (self.state, self.setup.resources)
        )
        return {
            "state_mib": state / MIB,
            "temporary_mib": analysis.temp_size_in_bytes / MIB,
            "resident_mib": log / MIB,
        }


class Timed(Protocol):
    """What `seconds_in_turn` measures: ``run`` does as many ``steps``."""

    steps: int

    def run(self) -> Any:
        """Run once; return the arrays to wait for."""


def seconds_in_turn(programs: Sequence[Timed], rounds: int) -> np.ndarray:
    """float64[rounds, P], seconds of a step of each program; they run in turn, after a round that does not count.

    What changes the machine's speed meets all programs of a round alike, so their ratios are taken by round.
    """
    seconds = np.zeros((rounds + 1, len(programs)))
    for row in seconds:
        for number, program in enumerate(programs):
            started = time.perf_counter()
            jax.block_until_ready(program.run())
            row[number] = (time.perf_counter() - started) / program.steps
    return seconds[1:]
