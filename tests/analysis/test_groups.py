"""Groupings of cases against plain loops over users, and the breakdown of a metric."""

import json

import numpy as np
import pytest

from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.groups import (
    breakdown,
    breakdown_figure,
    case_groupings,
    gap_groups,
    measure_breakdown,
)
from jaxrec.data import SequenceDataset, split_dataset
from jaxrec.data.splits import SplitConfig
from jaxrec.evaluation.evaluate import evaluation_of, usable_cases


def random_split(strategy="leave-one-out", times=True):
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, 14, 40)
    items = (rng.zipf(1.5, lengths.sum()) % 18 + 1).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    stamps = np.concatenate([np.sort(rng.integers(0, 90 * 86_400, n)) for n in lengths])
    dataset = SequenceDataset(
        items,
        offsets,
        user_ids=[f"u{i}" for i in range(40)],
        item_ids=[f"i{i}" for i in range(18)],
        timestamps=stamps if times else None,
        meta={"name": "random"},
    )
    strategy, _, target = strategy.partition(" ")
    options = {"target": target, "valid_quantile": 0.6, "test_quantile": 0.8} if target else {}
    return split_dataset(dataset, SplitConfig(strategy, **options))


def slow_groups(split, part):
    """The name of every case's group, by loops."""
    cases, dataset = split.cases(part), split.dataset
    follows, count = set(), {}
    for start, stop in zip(split.train_starts, split.train_stops, strict=True):
        own = dataset.items[start:stop].tolist()
        for item in own:
            count[item] = count.get(item, 0) + 1
        follows |= {(own[i], own[i + 1]) for i in range(len(own) - 1)}
    out = {"repetition": [], "transition": [], "training_count": [], "gap": [], "user": []}
    for row in range(len(cases)):
        start, stop = cases.history_starts[row], cases.history_stops[row]
        history, target = dataset.items[start:stop].tolist(), int(cases.targets[cases.target_offsets[row]])
        out["repetition"].append("repeated" if target in history else "new to the user")
        last = history[-1]
        two = any((last, x) in follows and (x, target) in follows for x in range(1, 19))
        name = "transition in training" if (last, target) in follows else "two hops in training"
        out["transition"].append(name if (last, target) in follows or two else "never in training")
        user = cases.users[row]
        out["user"].append("known" if split.train_stops[user] - split.train_starts[user] > 1 else "new")
        n = count.get(target, 0)
        bins = ["cold (never in training)", "1 to 4", "5 to 19", "20 or more"]
        out["training_count"].append(bins[(n >= 1) + (n >= 5) + (n >= 20)])
        gap = dataset.timestamps[stop] - dataset.timestamps[stop - 1]
        names = ["within an hour", "a day", "a week", "30 days", "longer"]
        out["gap"].append(names[sum(gap > edge for edge in (3600, 86400, 604800, 2592000))])
    return out


@pytest.mark.parametrize("strategy", ["leave-one-out", "temporal all", "temporal successive"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_groupings_equal_the_loops(strategy, part):
    split = random_split(strategy)
    groupings = case_groupings(split, part, split.cases(part).users)
    for kind, want in slow_groups(split, part).items():
        grouping = groupings[kind]
        assert [grouping.names[group] for group in grouping.groups] == want, kind
    assert set(groupings) == {
        "history_length",
        "popularity",
        "training_count",
        "repetition",
        "transition",
        "gap",
        "user",
    }
    assert "gap" not in case_groupings(random_split(times=False), "test", split.test.users)
    known = split.cases(part).users[groupings["user"].groups == 0]
    assert "user" not in case_groupings(split, part, known), "all are known"
    users = split.cases(part).users
    assert set((split.train_stops - split.train_starts)[users]) > {1}, (
        "each case has a user with training interactions"
    )
    whole = case_groupings(split, part, users, whole_sequences=True)
    assert "user" not in whole, "one is enough for a task that reads whole sequences"


def test_times_at_the_edges_and_unknown_ones():
    groups, names = gap_groups(np.array([0, 3600, 3601, np.nan, 1e9]))
    assert [names[group] for group in groups] == [
        "within an hour",
        "within an hour",
        "a day",
        "unknown",
        "longer",
    ]


def test_intervals_count_users_and_not_their_successive_cases():
    """Cases of a user are alike: as many of them as one likes say no more than the user."""
    values, groups = np.tile([0.0, 1.0, 1.0, 0.0], 50), np.zeros(200, np.int64)
    (single,) = breakdown(values[:4], groups[:4], ["all"])
    (equal,) = breakdown(np.zeros(4), groups[:4], ["all"])
    assert equal.to_dict() == {"name": "all", "cases": 4, "mean": 0.0, "low": None, "high": None}
    (group,) = breakdown(values, groups, ["all"], users=np.tile(np.arange(4), 50))
    assert group.cases == 200
    assert group[2:] == pytest.approx(single[2:])
    split = random_split("temporal successive")
    cases, counts = usable_cases(split.test)
    ranks = (1 + cases.users % 9).astype(np.int32)
    evaluation = evaluation_of(ranks, cases, counts, ks=(5,), remove_seen=True)
    result = measure_breakdown({"model": [evaluation]}, split, "test", "HR@5")
    grouping = case_groupings(split, "test", evaluation.users)["repetition"]
    assert len(np.unique(evaluation.users)) < len(evaluation.users)
    for number, group in enumerate(result.groups["repetition"]["model"]):
        inside = grouping.groups == number
        naive = breakdown(evaluation.values("HR@5")[inside], groups[: inside.sum()], ["all"])[0]
        assert group.mean == naive.mean
        assert group.high - group.low > 1.2 * (naive.high - naive.low)


def test_groups_divide_the_metric(tmp_path):
    split = random_split()
    cases, counts = usable_cases(split.test)
    rng = np.random.default_rng(0)
    seeds = [
        evaluation_of(
            rng.integers(1, 19, len(cases)).astype(np.int32), cases, counts, ks=(5,), remove_seen=True
        )
        for _ in range(3)
    ]
    result = measure_breakdown({"model": seeds[:2], "other": seeds[2:]}, split, "test", "HR@5")
    mean = np.mean([seed.metrics["HR@5"] for seed in seeds[:2]])
    for by_model in result.groups.values():
        groups = by_model["model"]
        assert sum(group.cases for group in groups) == len(cases)
        total = sum(group.cases * group.mean for group in groups if group.cases)
        assert total / len(cases) == pytest.approx(mean)
    header, rows = result.rows()
    assert header[4:] == ["HR@5: model", "95% interval", "other"]
    assert all(len(row) == len(header) for row in rows)
    plain = result.to_dict()["groups"]
    assert set(plain["gap"]) == {"model", "other"}
    assert plain["gap"]["model"][-1] == {
        "name": "unknown",
        "cases": 0,
        "mean": None,
        "low": None,
        "high": None,
    }
    json.dumps(plain, allow_nan=False)
    save_figure(breakdown_figure(result), tmp_path / "figure.png")
