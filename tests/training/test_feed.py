import dataclasses
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import TrainingConfig
from jaxrec.data.batches import BatchConfig, gather_batch
from jaxrec.data.packing import PackedRows
from jaxrec.data.sampler import Position, RowStream
from jaxrec.errors import ConfigError, DataError, Interrupted
from jaxrec.objectives import BinaryCrossEntropyConfig
from jaxrec.training import feed, loop
from jaxrec.training import setup as preparation
from jaxrec.training.feed import ChunkFeed, HostLog, RelativeSeconds, device_rows, fill, is_resident
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare, prepare_model
from tests.helpers import StopAfter, assert_same_run, replace, small_config, small_dataset

DATASET = small_dataset()
BATCHES = BatchConfig(batch_size=4, max_length=16, position_origin="end")


def config(mode, **sections):
    return replace(small_config(**sections), training={"feed": mode, "epochs": 3})


def quiet(given, workdir=None, **options):
    return train(given, DATASET, workdir, progress=False, **options)


@pytest.fixture(scope="module")
def resident():
    return quiet(config("resident"))


@pytest.fixture
def saved(tmp_path):
    """The dataset from memory-mapped files."""
    DATASET.save(tmp_path / "data")
    return type(DATASET).load(tmp_path / "data")


@pytest.mark.slow
def test_streamed_from_files_is_resident_to_the_bit(resident, saved, tmp_path):
    assert isinstance(saved.items, np.memmap)
    assert resident.setup.host_log is None
    streamed = train(config("streamed"), saved, tmp_path / "run", progress=False)
    assert streamed.setup.resources.items is None, "the log is on the device after all"
    assert streamed.setup.resources.timestamps is None
    assert_same_run(resident, streamed)
    lines = [line for line in read_metrics(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert all(0 <= line["waited_seconds"] <= line["seconds"] for line in lines)
    waited = sum(line["waited_seconds"] for line in lines)
    assert streamed.host_state.waited_seconds == pytest.approx(waited, abs=1e-3)


@pytest.mark.slow
def test_streamed_seeds_side_by_side():
    given = {"seeds": (0, 1), "over_seeds": "vmap", "epochs": 1}
    one, other = (quiet(small_config(training={**given, "feed": mode})) for mode in ("resident", "streamed"))
    assert_same_run(one, other)


@pytest.mark.slow
def test_a_resident_run_resumed_streamed_and_back(resident, tmp_path, monkeypatch):
    for mode in ("streamed", "resident"):
        monkeypatch.setattr(loop, "StopRequest", StopAfter(0))
        with pytest.raises(Interrupted):
            quiet(config(mode), tmp_path / "run", resume=mode == "resident")
        monkeypatch.undo()
    assert_same_run(resident, quiet(config("streamed"), tmp_path / "run", resume=True))


def test_auto_follows_the_share_of_device_memory(monkeypatch):
    size = feed.resident_bytes(DATASET, small_config().objective)
    assert size == 8 * len(DATASET.items)
    monkeypatch.setattr(feed, "device_memory", lambda: 10 * size)
    objective = small_config().objective
    assert is_resident(TrainingConfig(resident_share=0.1), objective, DATASET)
    assert not is_resident(TrainingConfig(resident_share=0.09), objective, DATASET)
    assert prepare(small_config(training={"resident_share": 0.09}), DATASET).host_log is not None


class Huge:
    """So long that int32 cannot index it."""

    def __len__(self):
        return 2**31


def test_only_a_resident_log_is_bounded():
    huge = SimpleNamespace(items=Huge(), timestamps=None)
    objective = small_config().objective
    with pytest.raises(
        DataError, match=r"has 2147483648 interactions.*training\.feed resident.*choose streamed"
    ):
        is_resident(TrainingConfig(feed="resident"), objective, huge)
    assert not is_resident(TrainingConfig(feed="streamed"), objective, huge)
    assert not is_resident(TrainingConfig(resident_share=1.0), objective, huge)
    seen = BinaryCrossEntropyConfig(exclude_seen=True)
    with pytest.raises(ConfigError, match=r"but its 2147483648 interactions .*no-exclude-seen$"):
        is_resident(TrainingConfig(resident_share=1.0), seen, huge)


def test_a_saved_run_leaves_a_log_that_int32_cannot_index_on_the_host(monkeypatch):
    """Whatever the memory of the device: places of histories would wrap around."""
    assert prepare_model(small_config(), DATASET).resident
    monkeypatch.setattr(preparation, "MOST_ADDRESSED", len(DATASET.items) - 1)
    model = prepare_model(small_config(), DATASET)
    assert not model.resident
    assert isinstance(model.timestamps, RelativeSeconds)


def test_seen_items_cannot_be_streamed():
    objective = BinaryCrossEntropyConfig(exclude_seen=True)
    with pytest.raises(
        ConfigError, match=r"--objective\.exclude-seen.*cannot be streamed, but --training\.feed is streamed"
    ):
        is_resident(TrainingConfig(feed="streamed"), objective, DATASET)
    with pytest.raises(
        ConfigError, match=r"log takes 0\.0 MiB.*over --training\.resident-share 0 of it.*no-exclude-seen"
    ):
        is_resident(TrainingConfig(resident_share=0.0), objective, DATASET)
    assert is_resident(TrainingConfig(), objective, DATASET)
    with pytest.raises(
        ConfigError, match=r"training\.feed must be one of auto, resident, streamed; got 'file'"
    ):
        TrainingConfig(feed="file")
    with pytest.raises(
        ConfigError, match=r"--training\.resident-share must be a finite number in \[0, 1\]; got 2"
    ):
        TrainingConfig(resident_share=2)


def streams(seeds=(0,), batches=BATCHES):
    return [RowStream(DATASET.offsets[:-1], DATASET.offsets[1:], batches, seed) for seed in seeds]


@pytest.mark.parametrize("mode", ["packed", "padded", "prefix"])
def test_filled_batches_are_those_of_the_device(mode, monkeypatch):
    monkeypatch.setattr(feed, "BLOCK", 3 * 16)  # several blocks, the last one short
    batches = BatchConfig(mode=mode, batch_size=4, max_length=16)
    log = HostLog(DATASET.items, RelativeSeconds(DATASET.timestamps, DATASET.offsets))
    plans = [stream.take(Position(), 5 * 4)[0] for stream in streams((0, 1), batches)]
    whole = fill(plans, 5, log, batches)
    rows = device_rows(plans, 5)
    times = log.timestamps[:]
    for s in range(2):
        for k in range(5):
            plan = PackedRows(*(jnp.asarray(field[s, k]) for field in rows))
            expected = gather_batch(
                plan,
                jnp.asarray(DATASET.items),
                max_length=16,
                last_only=batches.last_only,
                timestamps=jnp.asarray(times),
                xp=jnp,
            )
            for name, values in expected._asdict().items():
                np.testing.assert_array_equal(getattr(whole, name)[s, k], values, err_msg=name)
                assert getattr(whole, name).dtype == values.dtype
    halves = [fill(plans, 5, log, batches, part) for part in (slice(0, 2), slice(2, 4))]
    jax.tree.map(
        lambda all_rows, a, b: np.testing.assert_array_equal(all_rows, np.concatenate([a, b], 2)),
        whole,
        *halves,
    )


def test_chunks_are_made_one_ahead_and_none_in_vain():
    made, put_threads = [], []

    def put(inputs):
        made.append(inputs)
        put_threads.append(threading.current_thread())
        return inputs

    def settled(count):
        deadline = time.monotonic() + 5
        while len(made) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        return len(made)

    expected, position = [], Position()
    for _ in range(3):
        rows, position = streams()[0].take(position, 8)
        expected.append((rows, position))
    with ChunkFeed(streams(), [Position()], BATCHES, 2, 3, put=put) as chunks:
        for number, (rows, after) in enumerate(expected, start=1):
            chunk = chunks.take()
            np.testing.assert_array_equal(chunk.inputs.starts.reshape(8, -1), rows.starts)
            assert chunk.positions == [after]
            assert settled(min(number + 1, 3)) == min(number + 1, 3)
        with pytest.raises(ValueError, match="more chunks than it was made for"):
            chunks.take()
    assert threading.main_thread() not in put_threads
    assert not [t for t in threading.enumerate() if t.name.startswith(("jaxrec-feed", "jaxrec-plan"))]


def test_waiting_is_counted_and_errors_come_through():
    finished = []

    def slow(inputs):
        time.sleep(0.3)
        finished.append(inputs)
        return inputs

    with ChunkFeed(streams(), [Position()], BATCHES, 2, 2, put=slow) as chunks:
        assert 0.2 < chunks.take().waited_seconds < 20
        while len(finished) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        assert chunks.take().waited_seconds < 0.2, "it was ready"

    def broken(inputs):
        raise MemoryError("no room")

    with ChunkFeed(streams(), [Position()], BATCHES, 2, 2, put=broken) as chunks, pytest.raises(MemoryError):
        chunks.take()


def test_times_are_clipped_and_read_where_asked():
    times = np.array([7, 50, 2**40, 9, 12, 2**40 + 60], np.int64)
    near = RelativeSeconds(times[[0, 1, 3, 4]], np.array([0, 2, 4]))
    assert near[np.array([[0], [3]])].tolist() == [[0], [5]], "from the first event of the log"
    assert near[:].dtype == np.int32
    # Of a log of more than 68 years from the first of each user: here of 3, 0, 2 and 1 events.
    far = RelativeSeconds(times, np.array([0, 3, 3, 5, 6]))
    assert far[np.array([[1], [2], [4], [5]])].tolist() == [[43], [2**31 - 1], [3], [0]]
    assert far[:].tolist() == [0, 43, 2**31 - 1, 0, 3, 0]
    assert far[2:5].tolist() == [2**31 - 1, 0, 3]
    assert far[:].dtype == np.int32


def test_one_wrong_date_leaves_the_intervals_of_other_users():
    """Models read intervals, and a date such as 1900-01-01 must not make those of the whole log zero."""
    times = np.array(DATASET.timestamps) + 1_600_000_000
    dated = dataclasses.replace(DATASET, timestamps=times)
    times = times.copy()
    times[0] = -2_208_988_800
    wrong = dataclasses.replace(DATASET, timestamps=times)
    right, found = (np.asarray(prepare_model(small_config(), log).timestamps) for log in (dated, wrong))
    for start, stop in zip(DATASET.offsets[1:-1], DATASET.offsets[2:], strict=True):
        assert np.diff(found[start:stop]).tolist() == np.diff(right[start:stop]).tolist()


def test_seen_items_on_the_device_are_distinct_and_of_training_alone():
    """Samplers skip seen items by rank, which counts each once; targets of evaluation are none of them."""
    dataset = small_dataset(n_items=12)
    config = dataclasses.replace(small_config(), objective=BinaryCrossEntropyConfig(exclude_seen=True))
    resources = prepare(config, dataset).resources
    seen, offsets = np.asarray(resources.seen_items), np.asarray(resources.seen_offsets)
    assert len(seen) < len(dataset.items) - 2 * dataset.n_users, "some user met an item twice"
    for user in range(dataset.n_users):
        history = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]
        assert seen[offsets[user] : offsets[user + 1]].tolist() == sorted(set(history[:-2].tolist()))
    histories = np.split(dataset.items, dataset.offsets[1:-1])
    trained = np.concatenate([history[:-2] for history in histories])
    np.testing.assert_array_equal(resources.item_counts, np.bincount(trained, minlength=dataset.n_items + 1))
