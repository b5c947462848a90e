"""Preparing a log block by block gives the dataset of `load_dataset`, bit for bit."""

import gzip
import json
import os

import numpy as np
import polars as pl
import pytest

from jaxrec.data import DataConfig, SequenceDataset, load_dataset, prepare_in_blocks
from jaxrec.errors import DataError
from jaxrec.files import LOCK, work_folder
from tests.runs import jaxrec


def log(seed=0, rows=400, users=30, items=20):
    """Unsorted, with ties, repeats, rare users and rare items."""
    generator = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": (users * generator.random(rows) ** 2).astype(np.int64) * 7,
            "item_id": (items * generator.random(rows) ** 3).astype(np.int64) + 100,
            "rating": generator.integers(1, 6, rows),
            "timestamp": 1_600_000_000 + generator.integers(0, 50, rows),
        }
    )


@pytest.fixture
def csv(tmp_path):
    log().write_csv(tmp_path / "log.csv")
    return tmp_path / "log.csv"


def assert_same(one, other, *, meta=()):
    assert one.fingerprint == one.compute_fingerprint() == other.fingerprint == other.compute_fingerprint()
    for name in ("items", "offsets", "timestamps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (list(one.user_ids), list(one.item_ids)) == (list(other.user_ids), list(other.item_ids))
    for key in ("name", "source", "columns", "time", "order", "steps", "warnings", *meta):
        assert one.meta.get(key) == other.meta.get(key), key


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filter": "k-core", "min_interactions": 6},
        {"filter": "one-pass", "min_interactions": 9},
        {"filter": "one-pass-then-users", "min_interactions": 9},
        {"filter": "sessions", "min_interactions": 8, "min_user_interactions": 9},
        {"filter": "items-then-users", "min_interactions": 4, "min_user_interactions": 6},
        {"first_of_pair": True},
        {"min_rating": 3.0, "first_of_pair": True, "filter": "k-core", "min_interactions": 4},
    ],
)
@pytest.mark.parametrize("rows", [23, 1000])
def test_filters(csv, tmp_path, options, rows):
    expected = load_dataset(csv, **options)
    data = prepare_in_blocks(csv, tmp_path / "out", rows=rows, **options)
    assert_same(data, expected)
    assert DataConfig.of(data) == DataConfig(source=str(tmp_path / "out"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left behind"


def as_is(frame):
    return frame


@pytest.mark.parametrize(
    "change",
    [
        as_is,
        lambda f: f.sort("user_id", "timestamp"),
        lambda f: f.drop("timestamp"),
        lambda f: f.drop("timestamp").sort("user_id"),
        lambda f: f.with_columns(
            pl.format("u-{}", "user_id").alias("user_id"), pl.col("item_id").cast(pl.String)
        ),
        lambda f: f.with_columns(pl.col("user_id").cast(pl.Float64), pl.col("item_id").cast(pl.UInt16)),
        lambda f: f.with_columns(pl.col("timestamp") * 1000),
        lambda f: f.with_columns(pl.from_epoch("timestamp")),
        # Fractions of seconds only in the second half: the first blocks look like whole seconds.
        lambda f: f.with_columns(pl.col("timestamp") + pl.Series(np.where(np.arange(400) > 200, 0.25, 0.0))),
    ],
)
def test_kinds_of_tables(tmp_path, change):
    frame = change(log())
    frame.write_parquet(tmp_path / "log.parquet")
    expected = load_dataset(tmp_path / "log.parquet")
    assert_same(prepare_in_blocks(tmp_path / "log.parquet", tmp_path / "a", rows=50), expected)
    lazy = prepare_in_blocks(frame.lazy(), tmp_path / "b", rows=33)
    assert lazy.fingerprint == expected.fingerprint


def test_a_public_dataset_with_items(tmp_path):
    lines = [
        f"{u}\t2010-10-19T23:55:{i % 60:02}Z\t1\t2\t{(u * i) % 9}\n" for u in range(5) for i in range(20)
    ]
    archive = tmp_path / "checkins.txt.gz"
    archive.write_bytes(gzip.compress("".join(lines).encode()))
    options = {"archive": str(archive), "rule": "first-of-pair-5-core", "min_interactions": 2}
    assert_same(
        prepare_in_blocks("gowalla", tmp_path / "out", rows=11, **options),
        load_dataset("gowalla", **options),
        meta=("rule", "license"),
    )
    (tmp_path / "items.csv").write_text(
        "item_id,title,genres\n" + "".join(f"{i},T{i},a|b\n" for i in range(100, 120))
    )
    options = {"item_table": str(tmp_path / "items.csv"), "attribute_columns": ("genres",)}
    log().write_parquet(tmp_path / "log.parquet")
    data = prepare_in_blocks(tmp_path / "log.parquet", tmp_path / "titled", rows=64, **options)
    expected = load_dataset(tmp_path / "log.parquet", **options)
    assert list(data.item_titles) == list(expected.item_titles)
    assert data.attributes.fingerprint == expected.attributes.fingerprint


def test_vectors_of_items(csv, tmp_path):
    np.save(tmp_path / "vectors.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    (tmp_path / "ids.txt").write_text("".join(f"{item}\n" for item in range(100, 120)))
    options = {"item_vectors": str(tmp_path / "vectors.npy"), "vector_ids": str(tmp_path / "ids.txt")}
    expected = load_dataset(csv, **options)
    data = prepare_in_blocks(csv, tmp_path / "out", rows=64, **options)
    np.testing.assert_array_equal(data.item_vectors, expected.item_vectors)
    with pytest.raises(DataError, match=r"--data\.vector-ids needs --data\.item-vectors"):
        prepare_in_blocks(csv, tmp_path / "other", vector_ids="ids.txt")
    assert not (tmp_path / "other").exists()


class TestErrors:
    def refused(self, tmp_path, source, message, **options):
        with pytest.raises(DataError, match=message) as caught:
            prepare_in_blocks(source, tmp_path / "out", rows=10, **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_a_bad_row_in_a_later_block(self, tmp_path):
        frame = log().with_columns(
            pl.when(pl.int_range(400) == 35).then(None).otherwise("user_id").alias("user_id")
        )
        message = r"in the rows from 31 on, counted from there: user column 'user_id': 1 of 10 ids are missing, .* row 6"
        self.refused(tmp_path, frame.lazy(), message)

    def test_units_that_change(self, tmp_path):
        times = pl.when(pl.int_range(400) >= 200).then(pl.col("timestamp") * 1000).otherwise("timestamp")
        frame = log().with_columns(times.alias("timestamp"))
        self.refused(
            tmp_path,
            frame.lazy(),
            r"rows from 201 on.*times in another unit \(ms\) than the rows before \(s\)",
        )

    def test_empty_and_nothing_left(self, tmp_path):
        self.refused(
            tmp_path,
            log().head(0).lazy(),
            "is empty: it has columns 'user_id', 'item_id', 'timestamp' but no rows",
        )
        self.refused(
            tmp_path,
            log().lazy(),
            "filter 'k-core' leaves none of 400 interactions",
            filter="k-core",
            min_interactions=99,
        )

    def test_finished_datasets(self, tmp_path, csv):
        self.refused(tmp_path, "movietweetings", "'movietweetings' is a finished dataset")
        self.refused(tmp_path, tmp_path / "absent.csv", "no file")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").write_text("")
        with pytest.raises(DataError, match="is not empty: give a new or empty directory"):
            prepare_in_blocks(csv, tmp_path / "full")


def test_the_command(csv, tmp_path):
    plain = jaxrec("prepare", csv, "--out", tmp_path / "a", "--filter", "k-core", "--json")
    low = jaxrec("prepare", csv, "--out", tmp_path / "b", "--filter", "k-core", "--low-memory", "--json")
    assert low.status == plain.status == 0, low.err
    assert json.loads(low.out)["fingerprint"] == json.loads(plain.out)["fingerprint"]
    assert (
        SequenceDataset.load(tmp_path / "b", verify=True).n_interactions
        == json.loads(plain.out)["interactions"]
    )


def test_what_a_killed_preparation_left_is_removed_by_the_next(csv, tmp_path):
    work = tmp_path / ".out.unfinished"
    (work / "parts").mkdir(parents=True)
    for leftover in (work / LOCK, work / "times", work / "parts" / "000000.parquet"):
        leftover.write_bytes(b"pid 1\n")
    prepare_in_blocks(csv, tmp_path / "other")
    assert (work / "times").exists(), "another result leaves it alone"
    assert_same(prepare_in_blocks(csv, tmp_path / "out"), load_dataset(csv))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "other", "out"]


def test_the_temporary_files_of_a_living_preparation_are_left_alone(csv, tmp_path):
    with work_folder(tmp_path / "out") as work:
        (work / "times").write_bytes(b"mine")
        with pytest.raises(DataError, match=rf"another process \(pid {os.getpid()}\) is writing .*/out"):
            prepare_in_blocks(csv, tmp_path / "out")
        assert (work / "times").read_bytes() == b"mine"
    assert not work.exists()
    prepare_in_blocks(csv, tmp_path / "out")
