"""The transposed log against slow loops: its order, its cut, its coverage, and that nothing held out enters."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrec.data import (
    SequenceDataset,
    SplitConfig,
    load_dataset,
    reverse_coverage,
    split_dataset,
    transposed,
)
from jaxrec.data.transposed import item_user_rows
from jaxrec.errors import ConfigError, DataError
from tests.helpers import small_dataset
from tests.runs import jaxrec

SPLITS = {
    "leave-one-out": SplitConfig(),
    "leave-last-n": SplitConfig("leave-last-n", n=2),
    "temporal": SplitConfig("temporal", valid_quantile=0.6, test_quantile=0.8),
    "temporal, users": SplitConfig(
        "temporal", test_quantile=0.8, validation="users", valid_quantile=0.8, valid_share=0.3
    ),
    "temporal, held-out users": SplitConfig(
        "temporal", valid_quantile=0.7, test_quantile=0.7, holdout_users=True
    ),
}


def oracle(split):
    """{item: [(time, user), ...]} of the training part, oldest first, ties in an order of users drawn with seed 0."""
    data = split.dataset
    drawn = np.random.default_rng(0).permutation(data.n_users).tolist()
    events = {}
    for user in range(data.n_users):
        for place in range(int(split.train_starts[user]), int(split.train_stops[user])):
            events.setdefault(int(data.items[place]), []).append(
                (int(data.timestamps[place]), drawn[user], place, user)
            )
    return {item: [(time, user) for time, _, _, user in sorted(own)] for item, own in events.items()}


def held_out(split):
    """Places of the log that are no training interaction."""
    inside = {
        p for a, b in zip(split.train_starts, split.train_stops, strict=True) for p in range(int(a), int(b))
    }
    return sorted(set(range(split.dataset.n_interactions)) - inside)


def poisoned(split):
    """The dataset with another item in every held-out interaction."""
    items = split.dataset.items.copy()
    places = held_out(split)
    items[places] = items[places] % split.dataset.n_items + 1
    assert len(places) > 20
    return dataclasses.replace(split.dataset, items=items)


def test_numbers_of_users_do_not_tell_the_next_one_of_the_same_time(random_dataset):
    dataset = random_dataset(1, users=300, items=15)
    dataset = dataclasses.replace(dataset, timestamps=np.zeros_like(dataset.timestamps))
    reverse = transposed(split_dataset(dataset), 0)
    users, same = np.diff(reverse.items), np.diff(np.repeat(np.arange(15), reverse.lengths)) == 0
    assert np.mean(users[same] > 0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("last", [0, 3])
def test_sequences_are_those_of_the_definition(name, last, random_dataset):
    split = split_dataset(random_dataset(1, users=60, items=15), SPLITS[name])
    reverse, expected = transposed(split, last), oracle(split)
    assert (reverse.n_users, reverse.n_items) == (split.dataset.n_items, split.dataset.n_users)
    assert list(reverse.user_ids) == list(split.dataset.item_ids)
    assert list(reverse.item_ids) == list(split.dataset.user_ids)
    for item in range(1, split.dataset.n_items + 1):
        own = expected.get(item, [])[-last:]
        place = slice(reverse.offsets[item - 1], reverse.offsets[item])
        assert reverse.items[place].tolist() == [user + 1 for _, user in own]
        assert reverse.timestamps[place].tolist() == [time for time, _ in own]


@pytest.mark.parametrize("name", SPLITS)
def test_held_out_interactions_do_not_enter(name, random_dataset):
    """With other held-out items the transposed log is the same; with another training item it is not."""
    split = split_dataset(random_dataset(2, users=80, items=15), SPLITS[name])
    other = split_dataset(poisoned(split), SPLITS[name])
    assert other.dataset.fingerprint != split.dataset.fingerprint
    assert transposed(other).fingerprint == transposed(split).fingerprint
    np.testing.assert_array_equal(item_user_rows(other, 3), item_user_rows(split, 3))
    items = split.dataset.items.copy()
    place = int(np.flatnonzero(split.training_mask)[-1])
    items[place] = items[place] % split.dataset.n_items + 1
    changed = split_dataset(dataclasses.replace(split.dataset, items=items), SPLITS[name])
    assert transposed(changed).fingerprint != transposed(split).fingerprint


@pytest.mark.parametrize("last", [0, 4])
def test_coverage_is_counted(last, random_dataset):
    split = split_dataset(random_dataset(3, users=40, items=30))
    expected = oracle(split)
    coverage = reverse_coverage(split, last, edges=(0, 1, 2, 5))
    assert [tier.name for tier in coverage.tiers] == ["0", "1", "2 to 4", "5 or more"]
    for tier, bounds in zip(coverage.tiers, [(0, 0), (1, 1), (2, 4), (5, 10**9)], strict=True):
        users = [len(expected.get(i, [])) for i in range(1, split.dataset.n_items + 1)]
        inside = [i + 1 for i, n in enumerate(users) if bounds[0] <= n <= bounds[1]]
        own = [len(expected.get(i, [])[-last:]) for i in inside]
        assert tier.items == len(inside) > 0
        assert tier.interactions == sum(users[i - 1] for i in inside)
        assert tier.used == sum(own)
        assert tier.cut == sum(users[i - 1] > n for i, n in zip(inside, own, strict=True))
        assert tier.trainable == sum(n >= 2 for n in own)
        assert tier.median == np.median(own)
        assert tier.test_targets == sum(int(t) in inside for t in split.test.targets)
    text = "\n".join(coverage.lines())
    assert ("--last 0" in text) == (last > 0)
    assert len(coverage.rows()[1]) == 4
    json.dumps(coverage.to_dict())


def test_saved_and_reopened(tmp_path):
    source = small_dataset()
    split = split_dataset(source)
    reverse = transposed(split, 20)
    reverse.save(tmp_path / "reverse")
    again = load_dataset(str(tmp_path / "reverse"))
    assert again.fingerprint == reverse.fingerprint
    assert again.name == "walks-transposed"
    record = again.meta["transposed"]
    assert (record["source"], record["last"]) == (source.fingerprint, 20)
    assert record["split"]["strategy"] == "leave-one-out"
    assert record["training_interactions"] == source.n_interactions - 2 * source.n_users


def test_refusals():
    with pytest.raises(DataError, match=r"'walks' has no times: name the time column"):
        transposed(split_dataset(small_dataset(times=False)))
    split = split_dataset(small_dataset())
    with pytest.raises(ConfigError, match=r"--last must be the newest users .* got -1"):
        transposed(split, -1)
    with pytest.raises(ConfigError, match=r"edges of tiers must start at 0"):
        reverse_coverage(split, edges=(1, 5))


def test_command(tmp_path):
    small_dataset().save(tmp_path / "log")
    outcome = jaxrec("transpose", tmp_path / "log", "--last", 3, "--out", tmp_path / "reverse")
    assert outcome.status == 0, outcome.err
    assert "of whom the newest 3 are kept" in outcome.out
    assert f"next: jaxrec train --data {tmp_path / 'reverse'}" in outcome.out
    expected = transposed(split_dataset(small_dataset()), 3)
    assert SequenceDataset.load(tmp_path / "reverse").fingerprint == expected.fingerprint
    options = ["--split.strategy", "temporal", "--split.valid-quantile", 0.5, "--split.test-quantile", 0.7]
    outcome = jaxrec("transpose", tmp_path / "log", *options, "--out", tmp_path / "other", "--json")
    assert sum(tier["interactions"] for tier in outcome.json["coverage"]["tiers"]) > 0
    assert outcome.json["fingerprint"] != expected.fingerprint
    small_dataset(times=False).save(tmp_path / "untimed")
    refused = jaxrec("transpose", tmp_path / "untimed", "--out", tmp_path / "none")
    assert refused.status == 1
    assert "--data.time-column" in refused.err
    assert not (tmp_path / "none").exists()
