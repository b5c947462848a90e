"""Bad logs: wrong values are refused in one line, whatever the file, and never read as something else."""

import gzip
import io
import os
import re

import numpy as np
import polars as pl
import pytest

from jaxrec.data import load_dataset
from jaxrec.errors import DataError, JaxrecError
from tests.runs import jaxrec


def refused(source, pattern, **options):
    with pytest.raises(DataError, match=pattern) as caught:
        load_dataset(source, **options)
    assert "\n" not in str(caught.value).strip()
    return True


def timed(times, **options):
    frame = pl.DataFrame({"user": ["u"] * len(times), "item": list("abcdefgh"[: len(times)]), "time": times})
    return load_dataset(frame, **options)


class TestTimes:
    @pytest.mark.parametrize(
        "times",
        [
            ["1600000000", "1600000001", "9223372036854775808"],
            [1.6e9, 1.6e9, 1e300],
            [3e20, 2e20, 1e20],
            [-1e19, 1.6e9, 1.6e9],
            pl.Series([1, 2, 2**63], dtype=pl.UInt64),
            pl.Series([1, 2, 2**70], dtype=pl.Int128),
        ],
    )
    def test_beyond_64_bits(self, times):
        """Such a time once became the oldest of all."""
        with pytest.raises(DataError, match="times are beyond 64 bits, the first in data row"):
            timed(times)

    def test_fractions_that_overflow_in_microseconds(self):
        with pytest.raises(DataError, match="beyond 64 bits in microseconds"):
            timed([99999999999999.5, 1.5], time_unit="s")

    @pytest.mark.parametrize("as_text", [False, True])
    @pytest.mark.parametrize("fraction", [0, 0.5])
    def test_seconds_and_milliseconds_in_one_column(self, as_text, fraction):
        times = [1_600_000_000 + fraction, 1_600_000_001, 1_600_000_002_000]
        if as_text:
            times = [str(time) for time in times]
        with pytest.raises(
            DataError, match=r"1 of 3 times are in another unit \(ms\) than the median \(s\).*row 3"
        ):
            timed(times)
        assert timed(times, time_unit="s").n_interactions == 3

    @pytest.mark.parametrize("seed", range(7))
    def test_mixed_units_wherever_they_are(self, seed):
        rng = np.random.default_rng(seed)
        times = rng.integers(1_400_000_000, 1_700_000_000, 200)
        times[rng.random(200) < rng.uniform(0.02, 0.98)] *= 1000
        assert refused(({"user": [1] * 200, "item": list(range(200)), "time": times}), "in another unit")

    @pytest.mark.parametrize("times", [[5, 1, 100_000_000_00], [0, 1_600_000_000, 1_600_000_001], [0, -5, 3]])
    def test_ordinals_and_zeros_pass(self, times):
        assert timed(times).timestamps.tolist() == sorted(times)

    @pytest.mark.parametrize(
        ("times", "expected"),
        [
            ([20200102, 20191231], ["2019-12-31", "2020-01-02"]),
            (["20200102", "20200229"], ["2020-01-02", "2020-02-29"]),
            ([202001020304, 202001020303], ["2020-01-02T03:03", "2020-01-02T03:04"]),
            ([20200102030405, 20200102030404], ["2020-01-02T03:04:04", "2020-01-02T03:04:05"]),
        ],
    )
    def test_compact_dates(self, times, expected):
        data = timed(times)
        assert data.meta["time"]["unit"] == "date"
        assert data.timestamps.tolist() == np.array(expected, "datetime64[s]").astype(int).tolist()

    @pytest.mark.parametrize(
        "times", [[20200230, 20200102], [20201301, 20200102], [20200131, 19691231], [20200100]]
    )
    def test_other_numbers_are_no_dates(self, times):
        assert timed(times).meta["time"]["unit"] == "s"
        assert timed([20200102], time_unit="s").timestamps.tolist() == [20200102]

    def test_far_dates_do_not_panic(self):
        far = pl.Series([2**31 - 1, 0]).cast(pl.Int32).cast(pl.Date)
        assert timed(far).timestamps.tolist() == [0, (2**31 - 1) * 86_400]
        for unit in ("ms", "us", "ns"):
            days = pl.Series([86_400, 0]).cast(pl.Int64) * {"ms": 1_000, "us": 10**6, "ns": 10**9}[unit]
            assert timed(days.cast(pl.Datetime(unit))).timestamps.tolist() == [0, 86_400]

    def test_numpy_dates(self):
        days = np.array(["2020-01-02", "2020-01-01"], "datetime64[s]")
        data = load_dataset({"user": [1, 1], "item": ["a", "b"], "time": days})
        assert list(data.item_ids) == ["b", "a"]


def test_a_repeated_column_is_a_warning(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,item,time\n1,a,b,5\n")
    data = load_dataset(tmp_path / "log.csv")
    assert list(data.item_ids) == ["a"]
    assert data.meta["warnings"] == ["the header repeats 'item': the first column of that name is used"]


class TestFiles:
    TEXT = "user,item,time\n1,a,5\n1,b,6\n"

    @pytest.fixture
    def parquet(self, tmp_path):
        path = tmp_path / "log.parquet"
        pl.read_csv(io.StringIO(self.TEXT)).write_parquet(path)
        return path

    def test_truncated_and_mislabelled(self, tmp_path, parquet):
        content = parquet.read_bytes()
        packed = gzip.compress((self.TEXT * 500).encode())
        files = {
            "cut.parquet": content[: len(content) // 2],
            "csv.parquet": self.TEXT.encode(),
            "csv.arrow": self.TEXT.encode(),
            "line.csv": b"\n",
            "cut.csv.gz": packed[: len(packed) // 2],
            "plain.csv.gz": self.TEXT.encode()[:3] + b"\x1f\x8b",
            "cut.txt.gz": gzip.compress(b"1 2\n" * 9000)[:40],
            "plain.txt.gz": b"1 2\n",
            "utf16.txt": "1 2\n".encode("utf-16"),
            "latin.txt": "1 é\n".encode("latin-1"),
            "latin.csv": "user,item\n1,é\n".encode("latin-1"),
            "binary.csv": bytes(range(256)),
        }
        for name, raw in files.items():
            (tmp_path / name).write_bytes(raw)
            refused(tmp_path / name, re.escape(name) + "|no user column found")
            outcome = jaxrec("audit", tmp_path / name)
            assert outcome.status == 1, name
            assert outcome.err.count("\n") == 1, outcome.err

    def test_pipes_and_devices_are_no_files(self, tmp_path):
        os.mkfifo(tmp_path / "log.csv")
        refused(tmp_path / "log.csv", "no file")
        refused({"user": [1], "item": [2]}, "does not exist", item_table=tmp_path / "log.csv")
        refused({"user": [1], "item": [2]}, "no such file", item_attributes=tmp_path / "log.csv")

    def test_paths_that_no_file_can_have(self):
        refused("x" * 5000, r"no file 'x+\.\.\.'")
        refused("a\x00b.csv", "no file")

    @pytest.mark.parametrize("content", [b"PAR1", b"item,title\n1,2,3,4\n", b"\xff\xfe"])
    def test_damaged_item_tables(self, tmp_path, content):
        (tmp_path / "items.csv").write_bytes(content)
        refused({"user": [1], "item": [2]}, "item.table", item_table=tmp_path / "items.csv")
        (tmp_path / "items.parquet").write_bytes(content)
        refused({"user": [1], "item": [2]}, "item-table", item_table=tmp_path / "items.parquet")

    def test_item_table_of_lists(self):
        table = pl.DataFrame({"item": ["2"], "title": [["x"]], "genres": [["y"]]})
        refused({"user": [1], "item": [2]}, "has type List", item_table=table)
        refused(
            {"user": [1], "item": [2]}, "has type List", item_table=table.select("item", "genres"),
            attribute_columns=("genres",),
        )  # fmt: skip
        refused({"user": [1], "item": [2]}, "to lists of attributes, got 5", item_attributes={"a": 5})
        refused({"user": [1], "item": [2]}, "must be a mapping or a JSON file, got int", item_attributes=5)


@pytest.mark.parametrize(
    "values",
    [
        [["a"], ["b"]],
        [{"x": 1}, {"x": 2}],
        [b"\xff", b"\xfe"],
        pl.Series([1, 2]).cast(pl.Duration("ms")),
    ],
)
@pytest.mark.parametrize("role", ["user", "item"])
def test_ids_of_odd_types(role, values):
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2]}).with_columns(pl.Series(role, values))
    refused(frame, f"{role} column '{role}' has type .*expected integers or text")


@pytest.mark.parametrize(
    "far",
    [
        pl.Series([0, 2**31 - 1], dtype=pl.Int32).cast(pl.Date),
        pl.Series([0, -(2**31)], dtype=pl.Int32).cast(pl.Date),
        pl.Series([0, 2**62], dtype=pl.Int64).cast(pl.Datetime("us")),
        pl.Series([0, -(2**62)], dtype=pl.Int64).cast(pl.Datetime("ms")),
    ],
)
def test_dates_that_no_text_can_name(far, capfd):
    """Polars panics on them and prints a stack trace of its own, so they must not reach it."""
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "x": far})
    pattern = "1 of 2 dates lie outside the years 1 to 9999, the first in data row 2"
    for role in ("user", "item"):
        refused(frame.with_columns(pl.col("x").alias(role)), f"column '{role}': {pattern}")
    refused(frame, f"column 'x': {pattern}", item_table=frame.select("item", "x"), title_column="x")
    refused(frame, "rating column 'x' has type Date.*expected numbers", rating_column="x", min_rating=1.0)
    near = load_dataset(frame.with_columns(user=pl.Series([0, 19_000], dtype=pl.Int32).cast(pl.Date)))
    assert list(near.user_ids) == ["1970-01-01", "2022-01-08"]
    assert capfd.readouterr().err == ""


def test_wide_integers_as_ids():
    frame = pl.DataFrame(
        {"user": pl.Series([2**100, 1], dtype=pl.Int128), "item": pl.Series([2**64 - 1, 0], dtype=pl.UInt64)}
    )
    data = load_dataset(frame)
    assert list(data.user_ids) == [str(2**100), "1"]
    assert list(data.item_ids) == [str(2**64 - 1), "0"]


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ({"user": [1, 2], "item": [1]}, "must have the same length, got 'user' 2, 'item' 1"),
        ({"user": [[1], [2, 3]], "item": [1, 2]}, "cannot be read as a table|must be one-dimensional"),
        ({"user": [[1], [2]], "item": [1, 2]}, "must be one-dimensional, got shape"),
        ({"user": np.array([[1], [2, 3]], object), "item": [1, 2]}, "column 'user' holds a list"),
        ({"user": ["\ud800", "b"], "item": [1, 2]}, "cannot be read as a table"),
        ({"user": [b"\xff", b"a"], "item": [1, 2]}, "cannot be read as a table"),
        ((5, 6), "must be one-dimensional"),
        ({}, "no user column found"),
        (np.zeros((2, 3, 4)), r"got shape \(2, 3, 4\)"),
    ],
)
def test_odd_tables(source, pattern):
    refused(source, pattern)


# ---- generated input: right, or refused in one line

LINES = [
    *("", "user,item", "user;item", "user\titem\ttime", "u,i,1", "u,i,1,2", '"u,i', "\x00"),
    *("é,ü", "u,,3", ",i", "1 2", "1 2 3"),
]
CELLS = [
    *("u", "1", "", "-1", "1e300", "nan", "inf", "1600000000", "9" * 30, "2020-01-02", "20200102"),
    *("é", "☃", '"', "'", "\x00", "\r", "0x1", "1.5"),
]
OPTIONS = [
    {}, {"separator": ";"}, {"separator": "::"}, {"has_header": False}, {"time_unit": "ms"}, {"min_rating": 2.0},
    {"filter": "k-core", "min_interactions": 2}, {"first_of_pair": True}, {"layout": "sequences"}, {"encoding": "utf-16"},
    {"user_column": "item"}, {"time_column": "time"},
]  # fmt: skip


def generated(rng, folder):
    """A file with content and a name that may or may not fit."""
    kind, fitting = rng.integers(4), ".csv"
    if kind == 0:
        text = "\n".join(rng.choice(LINES, rng.integers(0, 6)))
        content = text.encode("utf-16" if rng.random() < 0.1 else "utf-8", "surrogatepass")
    elif kind == 1:
        odd = rng.random() * 0.2
        good = lambda: [str(rng.integers(3)), str(rng.integers(4)), str(1_600_000_000 + rng.integers(9))]  # noqa: E731
        rows = [
            ",".join(str(rng.choice(CELLS)) if rng.random() < odd else cell for cell in good())
            for _ in range(rng.integers(1, 8))
        ]
        content = ("user,item,time\n" + "\n".join(rows) + "\n").encode()
    elif kind == 2:
        content = rng.bytes(int(rng.integers(0, 400)))
    else:
        buffer = io.BytesIO()
        frame = pl.DataFrame(
            {"user": rng.integers(0, 3, 9), "item": rng.integers(0, 3, 9), "time": rng.integers(0, 10**10, 9)}
        )
        fitting = ".parquet" if rng.random() < 0.5 else ".arrow"
        frame.write_parquet(buffer) if fitting == ".parquet" else frame.write_ipc(buffer)
        content = bytearray(buffer.getvalue())
        for _ in range(rng.integers(0, 3)):
            content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        content = bytes(content[: int(rng.integers(1, len(content) + 1))] if rng.random() < 0.3 else content)
    if rng.random() < 0.1:
        content = gzip.compress(content)
    suffixes = [".csv", ".tsv", ".txt", ".parquet", ".arrow", ".csv.gz", ".txt.gz", ".dat"]
    path = folder / ("log" + (fitting if rng.random() < 0.7 else str(rng.choice(suffixes))))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("block", range(8))
def test_generated_files_are_read_or_refused(block, tmp_path):
    """Whatever comes, a `JaxrecError` of one line or a dataset that passes every check of content."""
    outcomes = {"read": 0, "refused": 0}
    for trial in range(60):
        rng = np.random.default_rng([block, trial])
        path = generated(rng, tmp_path)
        options = OPTIONS[int(rng.integers(len(OPTIONS)))] if rng.random() < 0.6 else {}
        try:
            data = load_dataset(path, **options)
        except JaxrecError as error:
            assert "\n" not in str(error).strip(), (block, trial, str(error))  # noqa: PT017
            outcomes["refused"] += 1
            continue
        data._check_content()
        assert data.n_interactions > 0
        if data.timestamps is not None:
            assert data.timestamps.min() > np.iinfo(np.int64).min
        outcomes["read"] += 1
    assert min(outcomes.values()) >= 3, outcomes
