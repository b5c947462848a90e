"""Small random datasets."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxrec.data import SequenceDataset


def make_dataset(seed: int, *, users: int = 12, items: int = 9, longest: int = 9) -> SequenceDataset:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = [np.sort(rng.integers(0, 40, n)) for n in lengths]
    return SequenceDataset(
        items=rng.integers(1, items + 1, offsets[-1]).astype(np.int32),
        offsets=offsets,
        user_ids=[str(u) for u in range(users)],
        item_ids=[str(i) for i in range(items)],
        timestamps=np.concatenate(times).astype(np.int64),
        meta={"name": "random"},
    )


@pytest.fixture
def random_dataset() -> Callable[..., SequenceDataset]:
    """``random_dataset(seed, users=, items=, longest=)`` with sorted times and users of 1 to 8
    interactions."""
    return make_dataset
