"""Splits against a slow per-user oracle; the temporal one must not leak the future."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from jaxrec.data import SequenceDataset, SplitConfig, audit, load_dataset, split_dataset, splits, stretches
from jaxrec.data.batches import BatchConfig
from jaxrec.data.usage import data_usage
from jaxrec.errors import ConfigError, DataError
from jaxrec.training.setup import prepare
from tests.helpers import small_config


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
    assert split.counts["training_interactions"] == sum(len(items) for items in train if len(items) > 1)
    assert (
        split.item_counts.tolist() == np.bincount(np.concatenate(train), minlength=data.n_items + 1).tolist()
    )
    assert split.strategy == strategy


TARGETS = ("last", "random", "successive", "first", "all")


def listed(split, part: str) -> list[tuple[int, list[int], list[int]]]:
    """(user, history, targets) of each case, in order."""
    cases = split.cases(part)
    items = split.dataset.items
    return [
        (
            int(user),
            items[cases.history_starts[e] : cases.history_stops[e]].tolist(),
            cases.targets[cases.target_offsets[e] : cases.target_offsets[e + 1]].tolist(),
        )
        for e, user in enumerate(cases.users)
    ]


def expected_cases(items: list[int], places: list[int], target: str) -> list[tuple[list[int], list[int]]]:
    """Cases of one user whose interactions at ``places`` lie in the period; for "random" all that may come."""
    if not places:
        return []
    if target == "all":
        cases = [(items[: places[0]], [items[k] for k in places])]
    else:
        chosen = {"first": places[:1], "last": places[-1:]}.get(target, places)
        cases = [(items[:k], [items[k]]) for k in chosen]
    return [(history, targets) for history, targets in cases if history]


@pytest.mark.parametrize("validation", ["time", "last-item", "users"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(5))
def test_temporal(seed, target, validation, random_dataset):
    data = random_dataset(seed, users=30)
    config = SplitConfig(
        "temporal", target=target, validation=validation, valid_quantile=0.5, test_quantile=0.7,
        end_quantile=0.95, valid_share=0.4, seed=seed,
    )  # fmt: skip
    split = split_dataset(data, config)
    valid_cut, test_cut, end = (split.options[f"{name}_cut"] for name in ("valid", "test", "end"))
    assert (valid_cut < test_cut) == (validation == "time")
    train = training(split)
    held_out = {user for user in range(30) if not train[user]}
    valid, test = listed(split, "valid"), listed(split, "test")
    assert {user for user, _, _ in valid} & {user for user, _, _ in test}, "the test is not vacuous"
    expected_valid, expected_test, training_items = [], [], []
    for user in range(data.n_users):
        times = data.timestamps[data.offsets[user] : data.offsets[user + 1]].tolist()
        items = data.history(user).tolist()
        before = [k for k, t in enumerate(times) if t < test_cut]
        inside = [k for k, t in enumerate(times) if test_cut <= t < end]
        expected_test += [(user, *case) for case in expected_cases(items, inside, target)]
        if validation == "time":
            trains = [k for k, t in enumerate(times) if t < valid_cut]
            period = [k for k, t in enumerate(times) if valid_cut <= t < test_cut]
            expected_valid += [(user, *case) for case in expected_cases(items, period, target)]
        elif validation == "last-item":
            trains = before[:-1] if len(before) > 1 else before
            expected_valid += [(user, items[: before[-1]], [items[before[-1]]])] if len(before) > 1 else []
        else:
            trains = [] if user in held_out else before
            if user in held_out and len(before) > 1:
                expected_valid += [(user, items[: before[-1]], [items[before[-1]]])]
        training_items.append([items[k] for k in trains])
    assert train == training_items
    if validation == "users":
        drawn = np.random.default_rng([seed, 2]).random(30) < 0.4
        assert {user for user in range(30) if drawn[user]} <= held_out
    if target == "random":
        drawn_test = {user: case for user, *case in test}
        assert set(drawn_test) <= {user for user, _, _ in expected_test}
        assert all((user, *case) in expected_test for user, case in drawn_test.items())
        again = split_dataset(data, config)
        assert listed(again, "test") == test
        others = [
            listed(split_dataset(data, dataclasses.replace(config, seed=s)), "test") for s in range(9, 14)
        ]
        assert any(other != test for other in others)
        # Only a first interaction without a history may be missing.
        assert split.counts["test_cases"] + split.counts["test_without_history"] == sum(
            any(test_cut <= t < end for t in data.timestamps[a:b])
            for a, b in zip(data.offsets, data.offsets[1:], strict=False)
        )
    else:
        assert test == expected_test
    if target != "random" or validation != "time":
        assert valid == expected_valid


def test_random_targets_are_uniform(random_dataset):
    """Over many seeds each interaction of the period is drawn about equally often."""
    n = 4
    data = SequenceDataset(
        np.arange(1, 2 + n, dtype=np.int32), np.array([0, 1 + n], np.int64), ["u"], [str(i) for i in range(1 + n)],
        np.arange(1 + n, dtype=np.int64),
    )  # fmt: skip
    config = SplitConfig("temporal", target="random", valid_time=1, test_time=1)
    drawn = [
        int(split_dataset(data, dataclasses.replace(config, seed=seed)).test.targets[0])
        for seed in range(2000)
    ]
    shares = np.bincount(drawn, minlength=2 + n)[2:] / 2000
    assert len(shares) == n
    np.testing.assert_allclose(shares, 1 / n, atol=0.04)


def test_cross_validation_through_time(random_dataset):
    data = random_dataset(3, users=40)
    configs = SplitConfig(valid_quantile=0.8, test_quantile=0.9, target="successive").through_time(
        [0.6, 0.75, 0.9]
    )
    splits = [split_dataset(data, config) for config in configs]
    assert [c.valid_quantile for c in configs] == pytest.approx([0.5, 0.65, 0.8])
    for earlier, later in itertools.pairwise(splits):
        assert earlier.options["end_cut"] == later.options["test_cut"]
    assert splits[-1].options["end_cut"] is None
    # With successive targets every interaction from the first cut on is tested once, or has no history.
    late = int((data.timestamps >= splits[0].options["test_cut"]).sum())
    assert sum(s.counts["test_cases"] + s.counts["test_without_history"] for s in splits) == late
    end = int(np.quantile(data.timestamps, 0.95))
    configs = SplitConfig(strategy="temporal", test_time=1, valid_time=1, end_time=end).through_time(
        [0.6, 0.75]
    )
    splits = [split_dataset(data, config) for config in configs]
    assert [s.options["end_cut"] for s in splits] == [splits[1].options["test_cut"], end]
    for cuts in ([0.6, 0.6], [], [0.5, 1.0]):
        with pytest.raises(ConfigError, match=r"must increase and stay below --split\.end-quantile 1"):
            SplitConfig().through_time(cuts)
    with pytest.raises(ConfigError, match=r"validation period of 0\.05 .*got 0\.04"):
        SplitConfig().through_time([0.04, 0.9])


def test_descriptions_name_the_kind(random_dataset):
    data = random_dataset(0)
    descriptions = [
        split_dataset(data, SplitConfig("temporal", target=target)).description for target in TARGETS
    ]
    descriptions += [
        split_dataset(data, SplitConfig("temporal", validation=validation)).description
        for validation in ("last-item", "users")
    ]
    descriptions += [
        split_dataset(data).description,
        split_dataset(data, SplitConfig("leave-last-n", n=2)).description,
    ]
    assert len(set(descriptions)) == len(descriptions)
    assert "successive target, validation from 1970-01-01" in descriptions[2]
    assert descriptions[-2:] == ["leave-one-out", "leave-last-2"]


@pytest.mark.parametrize(("target", "correlations"), [("first", "0.62 and 0.72"), ("all", "0.43 and 0.53")])
def test_weak_targets_say_how_far_they_agree_with_successive_ones(random_dataset, target, correlations):
    data = random_dataset(0)
    split = split_dataset(data, SplitConfig("temporal", target=target))
    sentence = split.agreement
    assert f"--split.target {target} " in sentence
    assert f"are {correlations}, those of last 0.83 and 0.94, those of random 0.91 and 0.98" in sentence
    assert sentence in audit(data, split).warnings
    assert sentence in data_usage(split, BatchConfig()).warnings


def test_other_targets_need_no_such_word(random_dataset):
    data = random_dataset(0)
    options = [SplitConfig("temporal", target=target) for target in ("last", "random", "successive")]
    assert not any(split_dataset(data, config).agreement for config in (SplitConfig(), *options))


def test_training_mask_and_repeated_targets(random_dataset):
    for seed in range(6):
        data = random_dataset(seed, users=20, items=5)
        split = split_dataset(
            data, SplitConfig("temporal", target=TARGETS[seed % 5], test_quantile=0.6, valid_quantile=0.5)
        )
        mask = np.zeros(data.n_interactions, bool)
        for start, stop in zip(split.train_starts, split.train_stops, strict=True):
            mask[start:stop] = True
        np.testing.assert_array_equal(split.training_mask, mask)
        expected = [t in history for _, history, targets in listed(split, "test") for t in targets]
        assert split.test.repeated(data.items).tolist() == expected
        assert any(expected)


class CountedLog(np.ndarray):
    """A log that notes how many of its interactions are gathered by their places."""

    gathered = 0

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            type(self).gathered += len(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("target", ["successive", "all"])
def test_repeated_targets_of_long_histories_are_found_without_gathering_them(
    target, random_dataset, monkeypatch
):
    """A user's many successive targets repeat its history: together they would be the square of it."""
    monkeypatch.setattr(CountedLog, "gathered", 0)
    data = random_dataset(0, users=20, items=5)
    config = SplitConfig("temporal", target=target, test_quantile=0.6, valid_quantile=0.5)
    cases = split_dataset(data, config).test
    lengths = cases.history_stops - cases.history_starts
    before = cases.repeated(data.items)
    limit = int(np.median(lengths))
    monkeypatch.setattr(stretches, "LONG", limit)
    np.testing.assert_array_equal(cases.repeated(data.items.view(CountedLog)), before)
    assert CountedLog.gathered == lengths[lengths <= limit].sum() < lengths.sum()


@pytest.mark.parametrize("seed", range(60))
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
        target="last" if holdout else TARGETS[seed // 2 % 5],
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
    complete = split_dataset(data)
    assert complete.counts["test_targets_unseen"] == 2  # items 4 and 5
    assert complete.counts["valid_targets_unseen"] == 1  # item 3
    assert complete.counts["items_unseen_in_training"] == 3
    assert complete.counts["test_targets_dropped"] == 0
    assert complete.test.targets.tolist() == [4, 5, 2]
    dropped = split_dataset(data, SplitConfig(drop_unseen_targets=True))
    assert dropped.test.users.tolist() == [2]
    assert dropped.test.targets.tolist() == [2]
    assert dropped.test.target_offsets.tolist() == [0, 1]
    assert dropped.counts["test_targets_dropped"] == 2
    assert dropped.counts["test_cases"] == 1


@pytest.mark.parametrize("rows", [[], [3, 0, 3], [4, 1]])
def test_cases_of_some_rows(rows, random_dataset):
    cases = split_dataset(random_dataset(2), SplitConfig(strategy="leave-last-n", n=2)).test
    some = cases.select(np.asarray(rows, int))
    assert len(some) == len(rows)
    for e, row in enumerate(rows):
        assert some.users[e] == cases.users[row]
        assert (some.history_starts[e], some.history_stops[e]) == (
            cases.history_starts[row], cases.history_stops[row],
        )  # fmt: skip
        of_row = slice(cases.target_offsets[row], cases.target_offsets[row + 1])
        of_case = slice(some.target_offsets[e], some.target_offsets[e + 1])
        assert some.targets[of_case].tolist() == cases.targets[of_row].tolist() != []


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_temporal_splits_read_the_log_in_blocks(block, random_dataset, monkeypatch):
    data = random_dataset(4, users=30)
    config = SplitConfig(strategy="temporal", valid_quantile=0.5, test_quantile=0.7, end_quantile=0.9)
    monkeypatch.setattr(splits, "BLOCK", block)
    split = split_dataset(data, config)
    cuts = [int(np.quantile(data.timestamps, q, method="higher")) for q in (0.5, 0.7, 0.9)]
    assert [split.options[name] for name in ("valid_cut", "test_cut", "end_cut")] == cuts
    for user in range(data.n_users):
        times = data.timestamps[data.offsets[user] : data.offsets[user + 1]]
        assert split.train_stops[user] - split.train_starts[user] == (times < cuts[0]).sum()
    for quantile in np.linspace(0.001, 1, 50):
        expected = np.quantile(data.timestamps, quantile, method="higher")
        assert splits.time_quantile(data.timestamps - 20, quantile) == expected - 20, "negative times too"


def test_items_are_counted_in_blocks(random_dataset, monkeypatch):
    data = random_dataset(3, users=30)
    whole = split_dataset(data).item_counts
    monkeypatch.setattr(splits, "BLOCK", 7)
    split = split_dataset(data)
    assert split.item_counts.tolist() == whole.tolist()
    assert dataclasses.replace(split).item_counts.tolist() == whole.tolist(), "counted again"


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
            "--split.strategy must be one of leave-one-out, leave-last-n, temporal; got 'random'",
        ),
        ({"target": "next"}, "--split.target must be one of last, random, successive, first, all"),
        ({"validation": "user"}, "--split.validation must be one of time, last-item, users"),
        ({"n": 2}, "--split.n above 1 needs --split.strategy leave-last-n"),
        ({"strategy": "leave-last-n", "n": 0}, "--split.n must be an integer at least 1; got 0"),
        ({"valid_quantile": 0.99}, "must satisfy valid <= test < end, got 0.99, 0.95 and 1.0"),
        ({"end_quantile": 0.95}, "must satisfy valid <= test < end, got 0.9, 0.95 and 0.95"),
        (
            {"valid_quantile": 0.9, "test_time": 3, "end_quantile": 0.8},
            "must satisfy valid <= test < end, got 0.9, 0.95 and 0.8",
        ),
        ({"valid_time": 9, "test_time": 3}, "must be in this order, got 9, 3 and None"),
        ({"test_time": 9, "end_time": 3}, "must be in this order, got None, 9 and 3"),
        ({"min_length": -1}, "--split.min-length must be an integer at least 0; got -1"),
        ({"valid_share": 1.0}, r"--split.valid-share must be a finite number in \(0, 1\); got 1.0"),
        ({"holdout_users": True}, "--split.holdout-users needs --split.strategy temporal"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"valid_quantile": 0.99, "validation": "last-item"},
        {"valid_quantile": 0.99, "validation": "users"},
        {"valid_quantile": 0.99, "strategy": "temporal", "holdout_users": True},
        {"valid_quantile": 0.99, "valid_time": 5},
        {"end_quantile": 0.93, "test_time": 5},
        {"test_quantile": 0.5, "test_time": 5},
        {"end_quantile": 0.5, "end_time": 5},
    ],
)
def test_quantiles_that_are_not_read_need_no_order(options):
    SplitConfig(**options)


def test_options_are_json(random_dataset):
    split = split_dataset(random_dataset(0), SplitConfig(strategy="temporal"))
    assert json.loads(json.dumps(split.options))["target"] == "last"
    json.dumps(split.counts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"\(leave-one-out\) has no validation case: expected users with at least 3 interactions, got none of 2",
        ),
        (
            {"strategy": "leave-last-n", "n": 2},
            "has no validation case: expected users with at least 5 interactions",
        ),
        (
            {"strategy": "temporal", "valid_time": 5, "test_time": 99},
            "has no test case: expected users with an interaction before",
        ),
        (
            {"strategy": "temporal", "target": "successive", "valid_time": 5, "end_time": 8},
            "has no test case: expected users with an interaction before",
        ),
    ],
)
def test_a_split_without_cases_is_refused_before_training(options, message):
    log = {"user_id": ["a", "a", "b", "b"], "item_id": list("xyxy"), "timestamp": [1, 9, 2, 8]}
    split = split_dataset(load_dataset(log), SplitConfig(**options))
    with pytest.raises(DataError, match=message):
        split.check_cases()
    with pytest.raises(DataError, match=message):
        prepare(small_config(split=options, evaluation={"ks": (1,)}), split.dataset)


def test_a_split_whose_targets_are_all_dropped_says_so():
    data = load_dataset(([0, 0, 0, 1, 1, 1], [1, 2, 3, 1, 2, 4]))
    split = split_dataset(data, SplitConfig(drop_unseen_targets=True))
    with pytest.raises(
        DataError, match=r"no validation case: .*\(all 2 do not\).*--split\.drop-unseen-targets"
    ):
        split.check_cases()
