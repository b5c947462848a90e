"""Filters against slow definitions, and the provenance that they leave."""

import collections

import numpy as np
import pytest

from jaxrec.data import (
    AttributeTable,
    FirstOfPair,
    KCore,
    OnePass,
    SequenceDataset,
    filter_dataset,
    load_dataset,
)
from jaxrec.errors import ConfigError, DataError


def log(seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return list(zip(rng.integers(0, 10, 60).tolist(), rng.geometric(0.25, 60).tolist(), strict=True))


def load(rows, **options) -> SequenceDataset:
    return load_dataset(([u for u, _ in rows], [i for _, i in rows]), **options)


def sequences(data: SequenceDataset) -> dict[str, list[str]]:
    return {u: [data.item_ids[i - 1] for i in data.history(k)] for k, u in enumerate(data.user_ids)}


def by_user(rows) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for user, item in rows:
        out.setdefault(str(user), []).append(str(item))
    return out


def one_pass(rows, minimum):
    users, items = (collections.Counter(row[k] for row in rows) for k in (0, 1))
    return [row for row in rows if users[row[0]] >= minimum and items[row[1]] >= minimum]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_core(seed, k):
    rows = log(seed)
    expected = rows
    while (again := one_pass(expected, k)) != expected:
        expected = again
    assert expected
    data = load(rows, filter="k-core", min_interactions=k)
    assert sequences(data) == by_user(expected)
    (step,) = data.meta["steps"]
    assert step["filter"] == "k-core"
    assert step["k"] == k
    assert step["before"]["interactions"] == 60
    assert step["after"] == data.counts


@pytest.mark.parametrize("seed", range(6))
def test_one_pass(seed):
    rows = log(seed)
    data = load(rows, filter="one-pass", min_interactions=4)
    expected = one_pass(rows, 4)
    assert sequences(data) == by_user(expected)
    assert data.meta["steps"][0]["minimum"] == 4


def test_one_pass_against_k_core():
    """Item 9 has two interactions in the raw log and loses one with user 3: one pass keeps it, the core does
    not."""
    rows = [(1, 7), (1, 8), (1, 9), (2, 7), (2, 8), (3, 9)]
    assert sequences(load(rows, filter="one-pass", min_interactions=2)) == {
        "1": ["7", "8", "9"],
        "2": ["7", "8"],
    }
    assert sequences(load(rows, filter="k-core", min_interactions=2)) == {"1": ["7", "8"], "2": ["7", "8"]}


def test_first_of_pair_comes_before_the_counts():
    rows = [(1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 2)]
    data = load(rows, first_of_pair=True, filter="k-core", min_interactions=2)
    assert sequences(data) == {"1": ["1", "2"], "2": ["1", "2"]}
    assert [step["filter"] for step in data.meta["steps"]] == ["first-of-pair", "k-core"]


def test_filter_dataset_keeps_times_titles_and_attributes():
    data = SequenceDataset(
        items=np.array([3, 1, 2, 1, 2, 1, 2], np.int32),
        offsets=np.array([0, 3, 5, 7], np.int64),
        user_ids=["a", "b", "c"],
        item_ids=["x", "y", "rare"],
        timestamps=np.arange(7, dtype=np.int64),
        item_titles=["X", "Y", "Rare"],
        attributes=AttributeTable.from_lists([["p", "q"], ["q"], ["r"]]),
        meta={"name": "n", "steps": [{"filter": "earlier"}], "fingerprint": "stale"},
    )
    core = filter_dataset(data, [KCore(2)])
    assert core.items.tolist() == [1, 2, 1, 2, 1, 2]
    assert core.timestamps.tolist() == [1, 2, 3, 4, 5, 6]
    assert list(core.item_titles) == ["X", "Y"]
    assert list(core.attributes.names) == ["p", "q"]
    assert core.attributes.of_item(2).tolist() == [2]
    assert [step["filter"] for step in core.meta["steps"]] == ["earlier", "k-core"]
    assert core.fingerprint == core.compute_fingerprint()
    bare = filter_dataset(
        SequenceDataset(data.items, data.offsets, data.user_ids, data.item_ids), [OnePass(2)]
    )
    assert bare.item_titles is None
    assert bare.attributes is None
    assert bare.timestamps is None


def test_nothing_left():
    with pytest.raises(
        DataError, match="filter 'k-core' leaves none of 60 interactions: lower its thresholds"
    ):
        load(log(0), filter="k-core", min_interactions=50)


def test_wrong_options():
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        KCore(0)
    with pytest.raises(ConfigError, match="minimum must be at least 1"):
        OnePass(0)
    with pytest.raises(
        ConfigError, match=r"--data\.filter must be one of none, k-core, one-pass .*; got 'core'"
    ):
        load(log(0), filter="core")
    assert FirstOfPair() == FirstOfPair()
