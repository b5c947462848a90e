"""The layout for many machines: whoever writes it, the dataset is the same."""

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from jaxrec.data import SequenceDataset, load_dataset, prepare_in_blocks
from jaxrec.errors import ConfigError, DataError
from tests.data.test_blocks import log
from tests.runs import jaxrec

PARTS = 4


def part_of(user):
    return int(hashlib.md5(user.encode()).hexdigest()[:8], 16) % PARTS


def with_pyarrow(frame, out):
    """The layout as its description says, by pyarrow and the standard library."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [(str(u), str(i), int(t)) for u, i, t in frame.select("user_id", "item_id", "timestamp").rows()]
    for part in range(PARTS):
        mine = sorted(
            (row for row in rows if part_of(row[0]) == part), key=lambda row: (row[0], row[2], row[1])
        )
        columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*mine, strict=True), strict=True))
        folder = out / f"part={part:05}"
        folder.mkdir(parents=True)
        parquet.write_table(
            pyarrow.table({name: list(values) for name, values in columns.items()}), folder / "x.parquet"
        )
    return out


def with_duckdb(frame, out):
    pytest.importorskip("duckdb")
    from data_prep.partition import Options, partition

    source = out.with_suffix(".parquet")
    frame.write_parquet(source)
    assert partition(Options(log=str(source), out=out, parts=PARTS)) == len(frame)
    return out


def events(data):
    users = np.repeat(list(data.user_ids), data.lengths)
    return list(zip(users, data.timestamps.tolist(), [data.item_ids[i - 1] for i in data.items], strict=True))


class TestLayout:
    def test_same_fingerprint_whoever_wrote_it(self, tmp_path):
        frame = log(rows=2000, users=150)
        ours, theirs = with_duckdb(frame, tmp_path / "a"), with_pyarrow(frame, tmp_path / "b")
        one, other = load_dataset(ours), load_dataset(theirs)
        assert one.fingerprint == other.fingerprint
        assert one.meta["source"]["files"] == PARTS
        low = prepare_in_blocks(ours, tmp_path / "low", rows=100, filter="k-core", min_interactions=7)
        assert low.fingerprint == load_dataset(theirs, filter="k-core", min_interactions=7).fingerprint
        # Users part by part, and the content of the log itself.
        parts = [part_of(user) for user in one.user_ids]
        assert parts == sorted(parts)
        assert sorted(events(one)) == sorted(events(load_dataset(frame)))

    def test_the_commands(self, tmp_path):
        pytest.importorskip("duckdb")
        log().write_csv(tmp_path / "log.csv")
        command = [sys.executable, "-m", "data_prep.partition", str(tmp_path / "log.csv"), "--parts", "3"]
        finished = subprocess.run(
            [*command, "--out", str(tmp_path / "p")], capture_output=True, text=True, check=True
        )
        assert "400 interactions in 3 parts" in finished.stdout
        outcome = jaxrec("prepare", tmp_path / "p", "--out", tmp_path / "d", "--filter", "k-core", "--json")
        assert outcome.status == 0, outcome.err
        data = SequenceDataset.load(tmp_path / "d", verify=True)
        assert data.fingerprint == load_dataset(tmp_path / "p", filter="k-core").fingerprint
        # Notes of the writer are no data.
        (tmp_path / "p" / "_SUCCESS").write_text("")
        (tmp_path / "p" / "_temporary").mkdir()
        shutil.copy(next((tmp_path / "p").rglob("*.parquet")), tmp_path / "p" / "_temporary" / "x.parquet")
        assert load_dataset(tmp_path / "p", filter="k-core").fingerprint == data.fingerprint

    def test_errors(self, tmp_path):
        pytest.importorskip("duckdb")
        from data_prep.partition import Options, partition

        with pytest.raises(ConfigError, match="--parts must be 1 to 100000, got 0"):
            Options(log="x.parquet", out=tmp_path, parts=0)
        log().write_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match="cannot be partitioned"):
            partition(Options(log=str(tmp_path / "x.parquet"), out=tmp_path / "o", user_column="nobody"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"has no meta\.json"):
            load_dataset(tmp_path / "empty")
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "x.parquet").write_bytes(b"PAR1")
        with pytest.raises(DataError, match=r"cannot be read as a table"):
            load_dataset(tmp_path / "bad")


@pytest.mark.slow
def test_spark_writes_the_same(tmp_path):
    pytest.importorskip("pyspark")
    pytest.importorskip("duckdb")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("Spark needs a Java runtime: neither JAVA_HOME nor java on the PATH")
    frame = log(rows=1000, users=80)
    expected = load_dataset(with_duckdb(frame, tmp_path / "a"))
    command = [sys.executable, "-m", "data_prep.partition_spark", "--log", str(tmp_path / "a.parquet")]
    finished = subprocess.run(
        [*command, "--out", str(tmp_path / "s"), "--parts", str(PARTS)], capture_output=True, text=True,
        env={**os.environ, "PYSPARK_SUBMIT_ARGS": "--master local[1] --conf spark.ui.enabled=false pyspark-shell"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    data = load_dataset(tmp_path / "s")
    assert data.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(data.timestamps, expected.timestamps)
    folders = sorted(path.name for path in (tmp_path / "s").iterdir() if path.is_dir())
    assert folders == [f"part={part:05}" for part in range(PARTS)]
    assert pl.read_parquet(next((tmp_path / "s" / folders[0]).glob("*.parquet"))).columns == [
        "user_id", "item_id", "timestamp",
    ]  # fmt: skip
