"""Batches from shares of the log: whose rows lie where, and what a process reads of the log."""

import numpy as np
import pytest

from jaxrec.data.batches import BatchConfig
from jaxrec.data.sampler import Position, RowStream
from jaxrec.errors import ConfigError, DataError
from jaxrec.training.feed import HostLog, fill
from tests.helpers import small_dataset

DATASET = small_dataset(n_users=200)
STARTS, STOPS = DATASET.offsets[:-1], DATASET.offsets[1:]


def stream(shares=4, mode="packed", **options):
    config = BatchConfig(mode=mode, batch_size=8, max_length=16, shares=shares, **options)
    return RowStream(STARTS, STOPS, config, seed=5)


def sequences_of(rows):
    used = rows.lengths > 0
    return list(
        zip(rows.users[used].tolist(), rows.starts[used].tolist(), rows.lengths[used].tolist(), strict=True)
    )


@pytest.mark.parametrize("mode", ["packed", "padded", "prefix"])
def test_every_batch_has_as_many_rows_of_every_share(mode):
    rows = stream(mode=mode).epoch_rows(2)
    assert len(rows.lengths) % 8 == 0, "an epoch is whole batches"
    total = DATASET.n_interactions
    for row in range(len(rows.lengths)):
        share = row % 8 // 2
        for user in rows.users[row][rows.lengths[row] > 0]:
            assert share * total <= DATASET.offsets[user] * 4 < (share + 1) * total


@pytest.mark.parametrize(
    "options", [{}, {"mode": "padded"}, {"mode": "prefix"}, {"long_histories": "windows"}]
)
def test_an_epoch_has_every_sequence_and_repeats_few(options):
    single = sequences_of(stream(shares=1, **options).epoch_rows(1))
    shared = sequences_of(stream(**options).epoch_rows(1))
    assert set(shared) == set(single)
    rows = len(stream(shares=1, **options).epoch_rows(1).lengths)
    more = len(stream(**options).epoch_rows(1).lengths)
    assert rows <= more <= 1.5 * rows


def test_rows_continue_where_they_were():
    whole, _ = stream().take(Position(), 3 * stream().rows_per_epoch)
    first, middle = stream().take(Position(), 80)
    second, _ = stream().take(middle, 3 * stream().rows_per_epoch - 80)
    for field in range(3):
        np.testing.assert_array_equal(np.concatenate([first[field], second[field]]), whole[field])
    assert not np.array_equal(stream().epoch_rows(0).starts, stream().epoch_rows(1).starts)


class Watched:
    """A log that notes which interactions are read."""

    def __init__(self, items):
        self.items, self.read = items, []

    def __getitem__(self, index):
        self.read.append(np.unique(index))
        return self.items[index]

    def __len__(self):
        return len(self.items)

    dtype = np.dtype(np.int32)
    shape = DATASET.items.shape


@pytest.mark.parametrize(("process", "rows"), [(0, slice(0, 4)), (1, slice(4, 8))])
def test_a_process_reads_its_shares_only(process, rows):
    plan, _ = stream().take(Position(), 10 * 8)
    log = Watched(DATASET.items)
    fill([plan], 10, HostLog(log), stream().config, rows)
    read = np.unique(np.concatenate(log.read))
    read = read[read > 1]  # padding reads the first two interactions and drops them
    border = DATASET.offsets[np.flatnonzero(STARTS * 4 // DATASET.n_interactions >= 2)[0]]
    assert len(read) > 100
    assert np.all(read < border) if process == 0 else np.all(read >= border)


def test_prefixes_that_are_drawn():
    rows = stream(mode="prefix", prefixes_per_sequence=1).epoch_rows(0)
    users = [user for user, _, _ in set(sequences_of(rows))]
    assert sorted(set(users)) == list(range(DATASET.n_users))
    assert len(users) == DATASET.n_users, "one each"


def test_errors():
    with pytest.raises(
        ConfigError, match=r"--batches\.batch-size must be a multiple of --batches\.shares, got 64 and 5"
    ):
        BatchConfig(shares=5)
    with pytest.raises(DataError, match=r"--batches\.shares 8 leaves share \d without a training sequence"):
        RowStream(np.array([0, 9]), np.array([9, 12]), BatchConfig(shares=8), seed=0)
