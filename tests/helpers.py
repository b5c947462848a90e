"""Small datasets and configurations that many tests share."""

from __future__ import annotations

import signal
from typing import Any

import chex
import numpy as np

from jaxrec.config import RunConfig, TrainingConfig
from jaxrec.data import SequenceDataset
from jaxrec.data.batches import BatchConfig
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.models import TransformerConfig


def small_dataset(n_users: int = 60, n_items: int = 40, seed: int = 0, times: bool = True) -> SequenceDataset:
    """Users who walk through the catalogue in steps of one or two: easy to learn, quick to train on."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 25, n_users)
    items = []
    for length in lengths:
        walk = generator.integers(0, n_items) + np.cumsum(generator.integers(1, 3, length))
        items.append(walk % n_items + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    timestamps = np.concatenate([np.sort(generator.integers(0, 10**6, length)) for length in lengths])
    return SequenceDataset(
        np.concatenate(items).astype(np.int32),
        offsets,
        user_ids=[f"u{i}" for i in range(n_users)],
        item_ids=[f"i{i}" for i in range(n_items)],
        timestamps=timestamps.astype(np.int64) if times else None,
        item_titles=[f"Item {i}" for i in range(n_items)],
        meta={"name": "walks"},
    )


def small_config(**sections: dict[str, Any]) -> RunConfig:
    """A run of a second or two; ``sections`` replace fields, as in ``small_config(training={"epochs": 2})``."""
    config = RunConfig(
        batches=BatchConfig(batch_size=4, max_length=16),
        encoder=TransformerConfig(width=16, layers=1, dropout=0.2),
        training=TrainingConfig(epochs=6, evaluate_every=1, patience=0, checkpoint_seconds=0),
        evaluation=EvaluationConfig(ks=(5, 10), tokens_per_batch=256),
    )
    return replace(config, **sections)


def replace(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """``config`` with fields of its sections replaced; ``attention`` stands for the encoder's."""
    paths = {"attention": "encoder.attention"}
    return config.updated(
        {
            f"{paths.get(name, name)}.{field}": value
            for name, values in sections.items()
            for field, value in values.items()
        }
    )


def assert_same_run(a, b):
    """Parameters and ranks to the bit, and everything but the clock in the host_state."""
    chex.assert_trees_all_equal(a.params, b.params)
    for x, y in zip([*a.valid, *a.test], [*b.valid, *b.test], strict=True):
        np.testing.assert_array_equal(x.ranks, y.ranks)
    assert (a.host_state.best, a.host_state.best_step, a.host_state.positions) == (
        b.host_state.best,
        b.host_state.best_step,
        b.host_state.positions,
    )


class StopAfter:
    """A stop request that triggers after so many looks at it."""

    def __init__(self, looks):
        self.left = looks

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    @property
    def signal_number(self):
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else None
