"""The audit against slow loops over a small random log with many ties."""

import json

import numpy as np
import pytest

from jaxrec.data import SequenceDataset, SplitConfig, audit, load_dataset, split_dataset
from jaxrec.errors import ConfigError


def crowded(seed: int) -> SequenceDataset:
    """Few times and few items, so that ties, duplicates and repeats abound."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, 10)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = np.concatenate([np.sort(rng.integers(0, 4, n)) for n in lengths]).astype(np.int64)
    items = rng.integers(1, 4, offsets[-1]).astype(np.int32)
    return SequenceDataset(items, offsets, [str(u) for u in range(10)], ["a", "b", "c"], times)


@pytest.mark.parametrize("seed", range(8))
def test_counts(seed):
    data = crowded(seed)
    found = audit(data)
    logs = [
        [(int(data.timestamps[k]), int(data.items[k])) for k in range(data.offsets[u], data.offsets[u + 1])]
        for u in range(data.n_users)
    ]
    repeats = duplicates = tied = users_tied = ambiguous_valid = ambiguous_test = leaking = 0
    shares = []
    training = [(t, u) for u, log in enumerate(logs) for t, _ in (log[:-2] if len(log) >= 3 else log)]
    for user, log in enumerate(logs):
        repeats += sum(item in [i for _, i in log[:k]] for k, (_, item) in enumerate(log))
        duplicates += sum(event in log[:k] for k, event in enumerate(log))
        times = [t for t, _ in log]
        ties = sum(times.count(t) > 1 for t in times)
        tied += ties
        users_tied += ties > 0
        if len(log) < 3:
            continue
        # A target hangs on the ties if its time has other items too.
        ambiguous_valid += len({i for t, i in log if t == log[-2][0]}) > 1
        ambiguous_test += len({i for t, i in log if t == log[-1][0]}) > 1
        others = [t for t, u in training if u != user]
        leaking += any(t > log[-1][0] for t in others)
        shares.append(sum(t > log[-1][0] for t in others) / len(others))
    assert found.repeats == repeats
    assert found.duplicate_events == duplicates
    assert found.tied_interactions == tied
    assert found.users_with_ties == users_tied
    assert found.ambiguous_valid_targets == ambiguous_valid
    assert found.ambiguous_test_targets == ambiguous_test
    assert found.leaking_targets == leaking
    assert found.later_training_share == pytest.approx(np.mean(shares))
    assert found.users_too_short == sum(len(log) < 3 for log in logs)
    assert found.leave_one_out_users == len(shares)
    assert (found.first_time, found.last_time) == (data.timestamps.min(), data.timestamps.max())
    assert found.length_quantiles[0] == data.lengths.min()
    assert found.length_quantiles[-1] == data.lengths.max()
    assert found.mean_length == pytest.approx(data.n_interactions / 10)
    json.dumps(found.to_dict())


def test_reordering_a_tie_changes_exactly_the_ambiguous_targets():
    data = crowded(2)
    lengths = np.flatnonzero(data.lengths >= 3)
    possible: list[set[int]] = [set() for _ in lengths]
    for trial in range(60):
        rng = np.random.default_rng(trial)
        order = np.lexsort(
            (rng.random(data.n_interactions), data.timestamps, np.repeat(np.arange(10), data.lengths))
        )
        for place, user in enumerate(lengths):
            possible[place].add(int(data.items[order][data.offsets[user + 1] - 1]))
    assert audit(data).ambiguous_test_targets == sum(len(seen) > 1 for seen in possible)


def test_without_times(random_dataset):
    data = random_dataset(4)
    timeless = SequenceDataset(data.items, data.offsets, data.user_ids, data.item_ids)
    found = audit(timeless)
    assert found.duplicate_events is None
    assert found.leaking_targets is None
    assert found.repeats == audit(data).repeats
    assert "cannot be counted" in str(found)


def test_text_and_split(random_dataset):
    data = random_dataset(4)
    split = split_dataset(data, SplitConfig(strategy="temporal", valid_quantile=0.3))
    found = audit(data, split)
    assert found.strategy == "temporal"
    assert found.items_unseen_in_training == split.counts["items_unseen_in_training"]
    assert found.test_targets_unseen == split.counts["test_targets_unseen"]
    text = str(found)
    assert "Audit of random" in text
    assert "items unseen in training (temporal)" in text
    assert "leave-one-out test targets that depend on tie-breaking" in text


def test_all_users_are_too_short():
    found = audit(
        SequenceDataset(np.array([1], np.int32), np.array([0, 1], np.int64), ["u"], ["i"], np.array([5]))
    )
    assert (found.leaking_targets, found.later_training_share, found.leave_one_out_users) == (0, 0.0, 0)
    str(found)


def test_split_of_another_dataset(random_dataset):
    with pytest.raises(ConfigError, match="split is of dataset 'random'"):
        audit(random_dataset(1), split_dataset(random_dataset(2)))


@pytest.mark.parametrize(
    ("times", "options", "reading"),
    [
        (
            [126230400000, 126230500000, 126230600000],
            {},
            " (from the size of the numbers: ms; --data.time-unit",
        ),
        ([126230400000, 126230500000, 126230600000], {"time_unit": "ms"}, ""),
        (
            [197401010000, 197401010001, 197401010002],
            {},
            " (numbers such as 20200102 are dates, in UTC: date; --",
        ),
        (["1974-01-01", "1974-01-01", "1974-01-01"], {}, ""),
    ],
)
def test_a_unit_of_times_that_was_concluded_is_announced(times, options, reading):
    found = audit(load_dataset({"user": [1, 1, 1], "item": [1, 2, 3], "time": times}, **options))
    line = next(line for line in str(found).splitlines() if line.startswith("  times "))
    assert f"1974-01-01 to 1974-01-01{reading}" in line
    assert ("(" in line) == bool(reading)
