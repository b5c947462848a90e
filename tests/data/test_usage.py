"""What training and evaluation use of a log, against the rows that a stream really gives."""

import json

import numpy as np
import polars as pl
import pytest

from jaxrec.data import SequenceDataset, SplitConfig, audit, data_usage, load_dataset, split_dataset
from jaxrec.data.batches import BatchConfig
from jaxrec.data.sampler import RowStream


def streamed_targets(split, batches, epochs=1):
    """Places of the log that are a target in some epoch, from the rows themselves."""
    stream = RowStream(split.train_starts, split.train_stops, batches, seed=0)
    places, count = set(), 0
    for epoch in range(epochs):
        rows = stream.epoch_rows(epoch)
        for start, length in zip(rows.starts[rows.lengths > 0], rows.lengths[rows.lengths > 0], strict=True):
            own = range(start + 1, start + length + 1)
            chosen = [own[-1]] if batches.last_only else list(own)
            places.update(chosen)
            count += len(chosen)
    return places, count // epochs


@pytest.mark.parametrize("options", [
    {}, {"long_histories": "windows"}, {"mode": "padded"}, {"targets": "last"}, {"mode": "prefix", "position_origin": "end"},
    {"mode": "prefix", "position_origin": "end", "prefixes_per_sequence": 2},
    {"mode": "prefix", "position_origin": "end", "prefix_targets": "all"},
])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_stream(options, seed, random_dataset):
    data = random_dataset(seed, users=30, longest=14)
    split = split_dataset(data, SplitConfig(min_length=4))
    batches = BatchConfig(max_length=4, **options)
    usage = data_usage(split, batches)
    places, per_epoch = streamed_targets(
        split, batches, epochs=40 if "prefixes_per_sequence" in options else 1
    )
    available = {
        place
        for start, stop in zip(split.train_starts, split.train_stops, strict=True)
        for place in range(start + 1, stop)
    }
    assert usage.targets == len(available)
    assert usage.targets_per_epoch == per_epoch
    if batches.targets == "all":
        assert usage.targets_beyond_length == len(available - places)
    assert (usage.targets_beyond_length > 0) == (options in ({}, {"mode": "padded"}, {"targets": "last"}))
    assert any("--batches.long-histories windows" in line for line in usage.lines()) == (
        usage.targets_beyond_length > 0
    )
    assert usage.test_cases == len(split.test)
    assert usage.training_interactions == split.counts["training_interactions"]
    assert (
        usage.single_interactions + usage.training_interactions + usage.held_out_interactions
        == usage.interactions
    )
    json.dumps(usage.to_dict())


@pytest.mark.parametrize(
    "options", [{}, {"long_histories": "windows"}, {"mode": "prefix", "position_origin": "end"}]
)
def test_a_task_of_whole_sequences_has_an_input_at_every_interaction(options, random_dataset):
    data = random_dataset(4, users=30, longest=9)
    split = split_dataset(data)
    batches = BatchConfig(max_length=4, **options)
    usage = data_usage(split, batches, whole_sequences=True)
    rows = RowStream(split.train_starts, split.train_stops + 1, batches, seed=0).epoch_rows(0)
    used = rows.lengths > 0
    read = {
        place
        for start, length in zip(rows.starts[used], rows.lengths[used], strict=True)
        for place in range(start, start + length)
    }
    lengths = split.train_stops - split.train_starts
    assert (lengths == 1).any()
    assert usage.targets == usage.training_interactions == lengths.sum()
    assert usage.single_interactions == 0
    assert usage.targets_beyond_length == lengths.sum() - len(read)
    assert "positions per epoch" in usage.lines()[0]
    assert not any("single training interaction" in line for line in usage.lines())


def repeating(share: float) -> SequenceDataset:
    """Users whose last item is a repeat, for a share of them."""
    rows = []
    for user in range(100):
        last = 1 if user < 100 * share else 99
        rows += [1, user % 50 + 2, user % 40 + 52, last]
    return SequenceDataset(
        np.array(rows, np.int32), np.arange(0, 401, 4).astype(np.int64), [str(u) for u in range(100)],
        [str(i) for i in range(1, 101)],
    )  # fmt: skip


def test_repeat_consumption_is_measured_and_named():
    usual, often = (split_dataset(repeating(share)) for share in (0.01, 0.83))
    assert data_usage(often, BatchConfig()).test_repeats == pytest.approx(0.83)
    warning = "83.0% of the test targets are in their own history (repeat consumption)"
    assert any(
        warning in line and "--evaluation.no-remove-seen" in line
        for line in data_usage(often, BatchConfig()).lines()
    )
    assert not data_usage(often, BatchConfig(), remove_seen=False).warnings
    assert not data_usage(usual, BatchConfig()).warnings
    findings = audit(often.dataset)
    assert (findings.test_targets, findings.test_targets_repeated) == (100, 83)
    assert warning in str(findings)
    assert not audit(usual.dataset).warnings


def test_tiny_logs_are_named():
    """Two users and a handful of items: an HR of 1 that says nothing."""
    data = load_dataset({"user": [1] * 5 + [2] * 5, "item": [1, 2, 3, 4, 5, 2, 3, 4, 5, 6]})
    text = "\n".join(data_usage(split_dataset(data), BatchConfig()).lines())
    assert "the test has only 2 cases" in text
    assert "HR@10 is 1.00 even for random scores" in text


def test_prefix_mode_with_positions_from_the_start_is_named():
    split = split_dataset(repeating(0))
    (warning,) = data_usage(split, BatchConfig(mode="prefix")).warnings
    assert "--batches.position-origin end" in warning
    assert not data_usage(split, BatchConfig(mode="prefix", position_origin="end")).warnings


def test_notes_of_the_reader_arrive():
    frame = pl.DataFrame({"user": [1] * 9, "item": list(range(9)), "my_date": list(range(9))})
    data = load_dataset(frame)
    usage = data_usage(split_dataset(data), BatchConfig())
    assert any("'my_date' may be one" in line for line in usage.lines())
    assert "'my_date' may be one" in str(audit(data))


def test_options_of_a_temporal_split_are_idle_in_another(random_dataset):
    data = random_dataset(0, users=30, longest=14)
    idle = SplitConfig(target="successive", test_quantile=0.97)
    expected = [
        f"--split.{option} is not read with --split.strategy leave-one-out: choose --split.strategy temporal, or leave "
        "it out"
        for option in ("test-quantile 0.97", "target successive")
    ]
    split = split_dataset(data, idle)
    assert split.warnings == expected
    assert set(expected) <= set(data_usage(split, BatchConfig()).warnings)
    assert set(expected) <= set(audit(data, split).warnings)
    for config in (
        SplitConfig(),
        SplitConfig(strategy="temporal", target="successive"),
        SplitConfig(min_length=4),
    ):
        assert not split_dataset(data, config).warnings
