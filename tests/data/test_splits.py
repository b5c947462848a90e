"""Splits against a slow per-user oracle; the temporal one must not leak the future."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrec.data import SequenceDataset, SplitConfig, split_dataset
from jaxrec.errors import ConfigError, DataError


def as_lists(split, part: str) -> dict[int, tuple[list[int], list[int]]]:
    """User -> (history, targets)."""
    cases = split.cases(part)
    assert (cases.history_stops > cases.history_starts).all()
    assert (np.diff(cases.target_offsets) > 0).all()
    assert cases.users.dtype == cases.targets.dtype == np.int32
    assert cases.history_starts.dtype == cases.target_offsets.dtype == np.int64
    return {
        int(u): (
            split.dataset.items[cases.history_starts[e] : cases.history_stops[e]].tolist(),
            cases.targets[cases.target_offsets[e] : cases.target_offsets[e + 1]].tolist(),
        )
        for e, u in enumerate(cases.users)
    }


def training(split) -> list[list[int]]:
    bounds = zip(split.train_starts, split.train_stops, strict=True)
    return [split.dataset.items[a:b].tolist() for a, b in bounds]


@pytest.mark.parametrize("n", [1, 2])
def test_leave_last_n(n, random_dataset):
    data = random_dataset(n)
    strategy = "leave-one-out" if n == 1 else "leave-last-n"
    split = split_dataset(data, SplitConfig(strategy=strategy, n=n))
    valid, test, train = as_lists(split, "valid"), as_lists(split, "test"), training(split)
    short = 0
    for user in range(data.n_users):
        items = data.history(user).tolist()
        if len(items) < 2 * n + 1:
            short += 1
            assert train[user] == items
            assert user not in valid
            assert user not in test
            continue
        assert train[user] == items[: -2 * n]
        assert valid[user] == (items[: -2 * n], items[-2 * n : -n])
        assert test[user] == (items[:-n], items[-n:])
    assert split.counts["users_too_short"] == short > 0
    assert split.counts["test_cases"] == data.n_users - short == len(split.test)
    assert split.counts["test_targets"] == n * len(split.test)
    assert split.counts["training_interactions"] == sum(map(len, train))
    assert (
        split.item_counts.tolist() == np.bincount(np.concatenate(train), minlength=data.n_items + 1).tolist()
    )
    assert split.strategy == strategy


@pytest.mark.parametrize("target", ["first", "last", "all"])
@pytest.mark.parametrize("seed", range(5))
def test_temporal(seed, target, random_dataset):
    data = random_dataset(seed)
    split = split_dataset(
        data, SplitConfig(strategy="temporal", target=target, valid_quantile=0.6, test_quantile=0.8)
    )
    cuts = split.options["valid_cut"], split.options["test_cut"], 10**9
    assert cuts[0] in data.timestamps
    no_history = {"valid": 0, "test": 0}
    expected: dict[str, dict[int, tuple]] = {"valid": {}, "test": {}}
    for user in range(data.n_users):
        times = data.timestamps[data.offsets[user] : data.offsets[user + 1]].tolist()
        items = data.history(user).tolist()
        train = [i for i, t in zip(items, times, strict=True) if t < cuts[0]]
        assert training(split)[user] == train
        for part, begin, end in (("valid", *cuts[:2]), ("test", *cuts[1:])):
            inside = [k for k, t in enumerate(times) if begin <= t < end]
            if not inside:
                continue
            first, last = inside[0], inside[-1]
            history, targets = {
                "first": (items[:first], [items[first]]),
                "last": (items[:last], [items[last]]),
                "all": (items[:first], [items[k] for k in inside]),
            }[target]
            if history:
                expected[part][user] = (history, targets)
            else:
                no_history[part] += 1
    for part in ("valid", "test"):
        assert as_lists(split, part) == expected[part]
        assert split.counts[f"{part}_without_history"] == no_history[part]


@pytest.mark.parametrize("seed", range(40))
def test_a_temporal_split_never_leaks(seed, random_dataset):
    """Whatever the log, the cuts and the options: training is before the cut, targets and what follows are
    not."""
    rng = np.random.default_rng(1000 + seed)
    data = random_dataset(seed, users=int(rng.integers(3, 20)), items=int(rng.integers(2, 9)))
    low, high = np.sort(rng.uniform(0.3, 0.95, 2))
    holdout = bool(seed % 2)
    config = SplitConfig(
        strategy="temporal",
        valid_quantile=float(low),
        test_quantile=float(high),
        target="last" if holdout else ("first", "last", "all")[seed % 3],
        holdout_users=holdout,
        drop_unseen_targets=bool(seed % 4 > 1),
    )
    try:
        split = split_dataset(data, config)
    except DataError as error:
        assert "leaves no training interaction" in str(error)  # noqa: PT017
        return
    cuts = {"valid": split.options["valid_cut"], "test": split.options["test_cut"]}
    log = np.arange(data.n_interactions)
    trains = np.zeros(data.n_interactions, bool)
    for start, stop in zip(split.train_starts, split.train_stops, strict=True):
        trains[start:stop] = True
    assert (data.timestamps[trains] < cuts["valid"]).all()
    for part, cut in cuts.items():
        cases = split.cases(part)
        for e, user in enumerate(cases.users):
            own = log[data.offsets[user] : data.offsets[user + 1]]
            assert cases.history_starts[e] == own[0]
            # Each target can be found at or after the cut, outside the history and outside training.
            after = own[(own >= cases.history_stops[e]) & (data.timestamps[own] >= cut) & ~trains[own]]
            targets = cases.targets[cases.target_offsets[e] : cases.target_offsets[e + 1]]
            assert set(targets.tolist()) <= set(data.items[after].tolist())
            assert cases.history_stops[e] <= own[-1]
            if part == "valid" and not holdout:
                assert (
                    data.timestamps[cases.history_starts[e] : cases.history_stops[e]] < cuts["test"]
                ).all()
        if config.drop_unseen_targets:
            assert np.isin(cases.targets, data.items[trains]).all()


def test_absolute_cuts(random_dataset):
    data = random_dataset(3)
    split = split_dataset(data, SplitConfig(strategy="temporal", valid_time=20, test_time=30))
    assert (split.options["valid_cut"], split.options["test_cut"]) == (20, 30)


def test_holdout_users(random_dataset):
    data = random_dataset(7)
    config = SplitConfig(
        strategy="temporal", target="last", holdout_users=True, valid_quantile=0.5, test_quantile=0.8
    )
    split = split_dataset(data, config)
    cut = split.options["test_cut"]
    valid, test, train = as_lists(split, "valid"), as_lists(split, "test"), training(split)
    held_out = 0
    for user in range(data.n_users):
        items = data.history(user).tolist()
        after = int((data.timestamps[data.offsets[user] : data.offsets[user + 1]] >= cut).sum())
        if not after:
            assert train[user] == items
            assert user not in test
            assert user not in valid
            continue
        held_out += 1
        assert train[user] == []
        assert (user in test) == (len(items) > 1)
        if len(items) > 1:
            assert test[user] == (items[:-1], items[-1:])
        assert (user in valid) == (after > 1 and len(items) > 2)
        if user in valid:
            assert valid[user] == (items[:-2], items[-2:-1])
    assert 0 < len(valid) < len(test) <= held_out < data.n_users


def test_unseen_targets_are_counted_and_dropped_on_request():
    data = SequenceDataset(
        items=np.array([1, 2, 3, 4, 1, 2, 1, 5, 2, 1, 2, 2], np.int32),
        offsets=np.array([0, 4, 8, 12], np.int64),
        user_ids=["a", "b", "c"],
        item_ids=["1", "2", "3", "4", "5"],
    )
    kept = split_dataset(data)
    assert kept.counts["test_targets_unseen"] == 2  # items 4 and 5
    assert kept.counts["valid_targets_unseen"] == 1  # item 3
    assert kept.counts["items_unseen_in_training"] == 3
    assert kept.counts["test_targets_dropped"] == 0
    assert kept.test.targets.tolist() == [4, 5, 2]
    dropped = split_dataset(data, SplitConfig(drop_unseen_targets=True))
    assert dropped.test.users.tolist() == [2]
    assert dropped.test.targets.tolist() == [2]
    assert dropped.test.target_offsets.tolist() == [0, 1]
    assert dropped.counts["test_targets_dropped"] == 2
    assert dropped.counts["test_cases"] == 1


def test_min_length(random_dataset):
    data = random_dataset(1)
    split = split_dataset(data, SplitConfig(min_length=6))
    assert split.test.users.tolist() == np.flatnonzero(data.lengths >= 6).tolist()
    assert split.counts["users_too_short"] == int((data.lengths < 6).sum())


def test_a_user_with_one_interaction_trains_only():
    data = SequenceDataset(
        np.array([1, 1, 2, 3], np.int32), np.array([0, 1, 4], np.int64), ["lone", "b"], ["x", "y", "z"]
    )
    split = split_dataset(data)
    assert split.test.users.tolist() == [1]
    assert training(split) == [[1], [1]]
    assert split.counts["users_too_short"] == 1
    assert split.counts["training_users"] == 0


def test_errors(random_dataset):
    timeless = dataclasses.replace(random_dataset(0), timestamps=None)
    with pytest.raises(DataError, match="temporal split needs timestamps, but dataset 'random' has none"):
        split_dataset(timeless, SplitConfig(strategy="temporal"))
    with pytest.raises(DataError, match="leaves no training interaction"):
        split_dataset(random_dataset(0), SplitConfig(strategy="temporal", valid_time=-5, test_time=30))
    with pytest.raises(DataError, match=r"validation cut \(90\) is after the test cut"):
        split_dataset(random_dataset(0), SplitConfig(strategy="temporal", valid_time=90))
    with pytest.raises(ConfigError, match="split must be valid or test"):
        split_dataset(random_dataset(0)).cases("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strategy": "random"},
            "strategy must be one of leave-one-out, leave-last-n, temporal; got 'random'",
        ),
        ({"target": "next"}, "target must be one of first, last, all"),
        ({"n": 2}, "split.n must be at least 1, and 1 unless"),
        ({"strategy": "leave-last-n", "n": 0}, "split.n must be at least 1"),
        ({"valid_quantile": 0.99}, "must satisfy 0 < valid <= test < 1, got 0.99 and 0.95"),
        ({"valid_time": 9, "test_time": 3}, "valid_time must not be after"),
        ({"min_length": -1}, "min_length must be at least 0"),
        ({"holdout_users": True}, "holdout_users needs strategy='temporal' and target='last'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**options)


def test_options_are_json(random_dataset):
    split = split_dataset(random_dataset(0), SplitConfig(strategy="temporal"))
    assert json.loads(json.dumps(split.options))["target"] == "first"
    json.dumps(split.counts)
