import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.batches import BatchConfig, gather_batch
from jaxrec.data.packing import PackedRows, Sequences, fill_rate, pack, pad
from jaxrec.data.sampler import Position, RowStream, prefixes, training_sequences
from jaxrec.errors import ConfigError, DataError


def log(lengths, seed=0):
    """Items 1.. in order, so that a target is always its input plus one."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets[:-1], offsets[1:]


@pytest.mark.parametrize("mode", ["packed", "padded"])
@pytest.mark.parametrize("origin", ["start", "end"])
@pytest.mark.parametrize("pad_left", [False, True])
def test_expand_against_loops(mode, origin, pad_left):
    items, starts, stops = log([5, 2, 9, 3, 4])
    length = 7
    sequences = training_sequences(starts, stops, length)
    rows = pack(sequences, length) if mode == "packed" else pad(sequences)
    batch = gather_batch(
        rows, items, max_length=length, position_origin=origin, pad_left=pad_left, timestamps=items * 10
    )
    for r in range(len(rows.starts)):
        expected = {name: [0] * length for name in ("items", "positions", "segments", "targets")}
        column = length - rows.lengths[r].sum() if pad_left else 0
        for s, (start, n) in enumerate(zip(rows.starts[r], rows.lengths[r], strict=True)):
            for i in range(n):
                expected["items"][column] = items[start + i]
                expected["targets"][column] = items[start + i + 1]
                expected["positions"][column] = i if origin == "start" else n - 1 - i
                expected["segments"][column] = s + 1
                column += 1
        for name, values in expected.items():
            np.testing.assert_array_equal(getattr(batch, name)[r], values, err_msg=name)
        np.testing.assert_array_equal(
            batch.weights[r], (np.array(expected["targets"]) > 0).astype(np.float32)
        )
        np.testing.assert_array_equal(batch.timestamps[r], np.array(expected["items"]) * 10)
    assert all(field.dtype == np.int32 for field in batch[:4])


def test_expand_is_the_same_in_jax_and_numpy():
    items, starts, stops = log([5, 2, 9, 3, 4, 12])
    rows = pack(training_sequences(starts, stops, 8), 8)
    host = gather_batch(rows, items, max_length=8, last_only=True)
    traced = jax.jit(lambda r, i: gather_batch(r, i, max_length=8, last_only=True, xp=jnp))(
        PackedRows(rows.starts.astype(np.int32), rows.lengths, rows.users), jnp.asarray(items)
    )
    for a, b in zip(host, traced, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


def test_histories_without_targets():
    items, starts, stops = log([3, 4])
    batch = gather_batch(
        PackedRows(starts[:, None], (stops - starts)[:, None], starts[:, None]),
        items,
        max_length=4,
        with_targets=False,
    )
    assert not batch.targets.any()
    assert not batch.weights.any()
    np.testing.assert_array_equal(batch.items, [[1, 2, 3, 0], [4, 5, 6, 7]])


def test_packing_keeps_every_sequence_whole_and_once():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 51, 500).astype(np.int32)
    sequences = Sequences(np.arange(500, dtype=np.int64) * 100, lengths, np.arange(500, dtype=np.int32))
    rows = pack(sequences, 50, max_segments=6)
    used = rows.lengths > 0
    assert sorted(rows.users[used]) == list(range(500))
    np.testing.assert_array_equal(rows.starts[used], rows.users[used].astype(np.int64) * 100)
    np.testing.assert_array_equal(rows.lengths[used], lengths[rows.users[used]])
    assert rows.lengths.sum(axis=1).max() <= 50
    assert used.sum(axis=1).max() <= 6
    assert (used[:, :-1] >= used[:, 1:]).all(), "unused slots come last"


def test_fill_rate_on_amazon_like_lengths():
    """Mean length 8, L = 50: padding fills about 17 % of the positions, packing more than 90 %."""
    lengths = np.minimum(3 + np.random.default_rng(0).geometric(1 / 6, 4000), 51)
    _, starts, stops = log(lengths)
    sequences = training_sequences(starts, stops, 50)
    assert fill_rate(pad(sequences), 50) < 0.2
    assert fill_rate(pack(sequences, 50), 50) > 0.97


def test_windows_cover_the_whole_history():
    _, starts, stops = log([1, 2, 8, 11])
    windows = training_sequences(starts, stops, 4, "windows")
    inputs = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(windows.starts, windows.lengths, strict=True)]
    )
    expected = np.concatenate([np.arange(a, b - 1) for a, b in zip(starts, stops, strict=True)])
    np.testing.assert_array_equal(np.sort(inputs), expected)
    last = training_sequences(starts, stops, 4)
    assert set(zip(last.starts, last.lengths, strict=True)) <= set(
        zip(windows.starts, windows.lengths, strict=True)
    )


def test_prefixes_have_one_target_each():
    items, starts, stops = log([1, 2, 8])
    every = prefixes(starts, stops, 4)
    targets = items[every.starts + every.lengths]
    np.testing.assert_array_equal(targets, [3, 5, 6, 7, 8, 9, 10, 11])
    assert every.lengths.max() == 4


@pytest.mark.parametrize("mode", ["packed", "padded", "prefix"])
def test_stream_is_a_pure_function_of_seed_and_epoch(mode):
    _, starts, stops = log(np.random.default_rng(1).integers(2, 30, 60))
    config = BatchConfig(mode=mode, batch_size=4, max_length=16)
    stream = RowStream(starts, stops, config, seed=3)
    whole, end = stream.take(Position(), 100)
    first, middle = RowStream(starts, stops, config, seed=3).take(Position(), 37)
    second, end_again = RowStream(starts, stops, config, seed=3).take(middle, 63)
    for a, b, c in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))
    assert end == end_again
    assert not np.array_equal(stream.epoch_rows(0).starts[:5], stream.epoch_rows(1).starts[:5])
    other = RowStream(starts, stops, config, seed=4)
    assert not np.array_equal(stream.epoch_rows(0).users[:5], other.epoch_rows(0).users[:5])


def test_each_epoch_holds_every_target_once():
    _, starts, stops = log(np.random.default_rng(1).integers(1, 16, 60))
    for mode in ("packed", "padded", "prefix"):
        stream = RowStream(starts, stops, BatchConfig(mode=mode, max_length=16), seed=0)
        assert stream.targets_per_epoch == np.maximum(stops - starts - 1, 0).sum()
        for epoch in range(3):
            rows = stream.epoch_rows(epoch)
            used = rows.lengths > 0
            reached = rows.starts[used] + rows.lengths[used]
            if mode == "prefix":
                assert len(np.unique(reached)) == len(reached) == stream.targets_per_epoch
            else:
                assert rows.lengths.sum() == stream.targets_per_epoch


def test_all_targets_of_each_prefix():
    """The first target of a sequence counts once for every prefix, the last one once."""
    items, starts, stops = log([6])
    config = BatchConfig(mode="prefix", batch_size=1, max_length=16, prefix_targets="all")
    stream = RowStream(starts, stops, config, seed=0)
    batch = gather_batch(stream.epoch_rows(0), items, max_length=16, last_only=config.last_only)
    counted = np.bincount(batch.targets[batch.weights > 0], minlength=items.max() + 1)
    assert counted[items[1:]].tolist() == [5, 4, 3, 2, 1]
    assert stream.targets_per_epoch == 15
    with pytest.raises(
        ConfigError, match=r"--batches\.prefix-targets all needs --batches\.mode prefix, got packed"
    ):
        BatchConfig(prefix_targets="all")


def test_drawn_prefixes():
    _, starts, stops = log([1, 2, 9, 30])
    config = BatchConfig(mode="prefix", max_length=16, prefixes_per_sequence=3)
    stream = RowStream(starts, stops, config, seed=0)
    for epoch in range(2):
        rows = stream.epoch_rows(epoch)
        assert np.bincount(rows.users[rows.lengths > 0], minlength=4).tolist() == [0, 1, 3, 3]


def test_refusals():
    with pytest.raises(
        ConfigError, match=r"--batches\.mode must be one of packed, padded, prefix.*; got 'pack'"
    ):
        BatchConfig(mode="pack")
    with pytest.raises(ConfigError, match=r"--batches\.batch-size must be an integer at least 1; got 0"):
        BatchConfig(batch_size=0)
    with pytest.raises(DataError, match="at least one user with two training interactions"):
        RowStream(np.array([0, 1]), np.array([1, 2]), BatchConfig(), seed=0)


@pytest.mark.parametrize("mode", ["packed", "padded", "prefix"])
def test_plans_take_a_few_bytes_a_sequence(mode):
    """Two epochs at most are held, each in 8 bytes a sequence and 8 a row at most, however wide the rows may be."""
    _, starts, stops = log(np.random.default_rng(1).integers(1, 16, 200))
    stream = RowStream(starts, stops, BatchConfig(mode=mode, max_length=16), seed=0)
    for epoch in range(4):
        stream.take(Position(epoch), 3)
    assert set(stream._plans) == {2, 3}
    for plan in stream._plans.values():
        assert sum(part.nbytes for part in plan) <= 8 * len(plan.members) + 8 * len(plan.offsets)
        assert len(np.unique(plan.members)) == len(plan.members)
