"""Filters against slow definitions, and the provenance that they leave."""

import collections

import numpy as np
import pytest

from jaxrec.data import (
    AttributeTable,
    FirstOfPair,
    ItemsThenUsers,
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


@pytest.mark.parametrize("seed", range(6))
def test_other_thresholds_of_users(seed):
    def stays(rows, items, users):
        user_counts, item_counts = (collections.Counter(row[k] for row in rows) for k in (0, 1))
        return [row for row in rows if user_counts[row[0]] >= users and item_counts[row[1]] >= items]

    rows = log(seed)
    once = load(rows, filter="one-pass", min_interactions=2, min_user_interactions=6)
    assert sequences(once) == by_user(stays(rows, 2, 6))
    expected = rows
    while (again := stays(expected, 2, 5)) != expected:
        expected = again
    core = load(rows, filter="k-core", min_interactions=2, min_user_interactions=5)
    assert sequences(core) == by_user(expected)
    assert core.meta["steps"][0]["users"] == 5
    two = load(rows, filter="one-pass-then-users", min_interactions=4)
    expected = one_pass(rows, 4)
    lengths = collections.Counter(user for user, _ in expected)
    assert sequences(two) == by_user([row for row in expected if lengths[row[0]] >= 4])
    assert [step["filter"] for step in two.meta["steps"]] == ["one-pass", "users"]


@pytest.mark.parametrize("seed", range(6))
def test_sessions_as_sr_gnn_filters_them(seed):
    rows = [row for row in log(seed) if row[0] % 3 or row[1] < 4]
    sessions = {user: items for user, items in by_user(rows).items() if len(items) >= 5}
    counts = collections.Counter(item for items in sessions.values() for item in items)
    sessions = {user: [item for item in items if counts[item] >= 4] for user, items in sessions.items()}
    expected = {user: items for user, items in sessions.items() if len(items) >= 5}
    data = load(rows, filter="sessions", min_interactions=4, min_user_interactions=5)
    assert sequences(data) == expected
    assert [step["filter"] for step in data.meta["steps"]] == ["users", "items", "users"]


@pytest.mark.parametrize("seed", range(6))
def test_items_then_users_counts_each_pair_once(seed):
    rows = log(seed)
    users_of, items_of = collections.defaultdict(set), collections.defaultdict(set)
    for user, item in rows:
        users_of[item].add(user)
    expected = [row for row in rows if len(users_of[row[1]]) >= 3]
    for user, item in expected:
        items_of[user].add(item)
    expected = [row for row in expected if len(items_of[row[0]]) >= 4]
    data = load(rows, filter="items-then-users", min_interactions=3, min_user_interactions=4)
    assert sequences(data) == by_user(expected)
    assert 0 < data.n_interactions < 60
    assert sequences(filter_dataset(load(rows), [ItemsThenUsers(3, 4)])) == by_user(expected)


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


def test_a_filtered_dataset_keeps_its_warnings(tmp_path):
    log = {"user_id": ["a", "a", "b", "b"], "item_id": ["x", "y", "x", "y"], "when": [1, 2, 1, 2]}
    (order,) = load_dataset(log).meta["warnings"]
    assert "no time column was recognised" in order
    load_dataset(log, min_interactions=2).save(tmp_path / "data")
    core = load_dataset(tmp_path / "data", filter="k-core", min_interactions=2)
    assert core.meta["warnings"] == [order]
    pairs = load_dataset(tmp_path / "data", first_of_pair=True)
    assert pairs.meta["warnings"][0] == order
    idle = load_dataset(load_dataset(log), first_of_pair=True, min_interactions=2)
    assert pairs.meta["warnings"] == idle.meta["warnings"]
    assert "nothing was filtered: --data.min-interactions 2" in idle.meta["warnings"][1]


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
        ConfigError, match=r"--data\.filter must be one of none, k-core, one-pass, .*; got 'core'"
    ):
        load(log(0), filter="core")
    assert FirstOfPair() == FirstOfPair()
