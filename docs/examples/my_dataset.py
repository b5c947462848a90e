"""A dataset by name: random walks over a ring of items."""

from __future__ import annotations

import numpy as np
import polars as pl

from jaxrec.data import DATASETS, DataConfig


@DATASETS.register("ring-walks")
def ring_walks(config: DataConfig) -> pl.DataFrame:
    """Return interactions as a table; anything that `load_dataset` takes will do."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 20, 200)
    users = np.repeat(np.arange(200), lengths)
    steps = np.concatenate([generator.integers(50) + np.cumsum(generator.integers(1, 3, n)) for n in lengths])
    return pl.DataFrame({"user_id": users, "item_id": steps % 50, "timestamp": np.arange(len(users))})
