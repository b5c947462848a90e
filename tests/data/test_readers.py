"""`load_dataset`: the same log from every kind of source, times in every form, and bad input refused with a clear error."""

import gzip
import json
import re

import numpy as np
import polars as pl
import pytest

from jaxrec.data import load_dataset, prepare_in_blocks
from jaxrec.data.catalogue import id_text
from jaxrec.errors import ConfigError, DataError

# File order, with a tie in time (u1 at 10), ids with leading zeros, and users that are interleaved.
ROWS = [("u2", "007", 30), ("u1", "b", 10), ("u1", "007", 10), ("u2", "b", 20), ("u1", "ç", 5)]
FRAME = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
EXPECTED = {"u2": [("b", 20), ("007", 30)], "u1": [("ç", 5), ("b", 10), ("007", 10)]}


def contents(data):
    """User -> [(item, time), ...], users and items in the order of their numbers."""
    times = [None] * data.n_interactions if data.timestamps is None else data.timestamps.tolist()
    items = [data.item_ids[i - 1] for i in data.items]
    log = list(zip(items, times, strict=True))
    return {u: log[data.offsets[k] : data.offsets[k + 1]] for k, u in enumerate(data.user_ids)}


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def check(data):
    assert contents(data) == EXPECTED
    assert list(data.user_ids) == ["u2", "u1"], "users are numbered by first appearance in the file"
    assert list(data.item_ids) == ["b", "007", "ç"], "items by first appearance in the sequences"


class TestSources:
    @pytest.mark.parametrize(
        "name", ["log.csv", "log.tsv", "log.csv.gz", "log.parquet", "log.arrow", "log.feather"]
    )
    def test_files(self, tmp_path, name):
        path = tmp_path / name
        if ".parquet" in name:
            FRAME.write_parquet(path)
        elif name.endswith((".arrow", ".feather")):
            FRAME.write_ipc(path)
        else:
            text = FRAME.write_csv(separator="\t" if ".tsv" in name else ",").encode()
            path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        data = load_dataset(path)
        check(data)
        assert data.name == "log"
        assert data.meta["source"]["file"] == name
        assert len(data.meta["source"]["sha256"]) == 64
        assert data.meta["columns"] == {"user": "user_id", "item": "item_id", "time": "timestamp"}
        assert data.meta["time"]["unit"] == "s"
        assert data.meta["order"] == {
            "rule": "stable sort by user and time; ties keep source order",
            "rows_moved": True,
        }

    def test_polars(self):
        check(load_dataset(FRAME))
        check(load_dataset(FRAME.lazy(), name="mine"))
        check(load_dataset(FRAME.cast({"user_id": pl.Categorical, "timestamp": pl.Float32})))

    def test_pandas(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(ROWS, columns=["user_id", "item_id", "timestamp"])
        check(load_dataset(frame))
        check(load_dataset(frame.astype({"user_id": object, "item_id": "category"})))
        check(load_dataset(frame.assign(timestamp=pandas.to_datetime(frame.timestamp, unit="s"))))

    def test_pyarrow(self):
        pyarrow = pytest.importorskip("pyarrow")
        users, items, times = zip(*ROWS, strict=True)
        check(load_dataset(pyarrow.table({"user_id": users, "item_id": items, "timestamp": times})))

    def test_numpy(self):
        check(load_dataset(np.array(ROWS, [("user", "U4"), ("item", "U4"), ("time", "i8")])))
        users, items, times = (np.array(column) for column in zip(*ROWS, strict=True))
        check(load_dataset((users, items, times)))
        check(load_dataset({"uid": users, "item": items, "time": times}))
        assert contents(load_dataset(np.array([[5, 70, 2], [5, 60, 1]]))) == {"5": [("60", 1), ("70", 2)]}
        assert contents(load_dataset(np.array([[5, 70], [5, 60]]))) == {"5": [("70", None), ("60", None)]}
        with pytest.raises(DataError, match=r"must be \[N, 2\].*got shape \(3,\)"):
            load_dataset(np.arange(3))

    def test_saved_directory_and_dataset(self, tmp_path):
        data = load_dataset(FRAME)
        data.save(tmp_path / "d")
        again = load_dataset(tmp_path / "d")
        check(again)
        assert again.fingerprint == data.fingerprint
        assert load_dataset(data) is data
        assert load_dataset(str(tmp_path / "d"), filter="k-core", min_interactions=2).n_interactions == 4
        with pytest.raises(DataError, match="is a finished dataset"):
            load_dataset(tmp_path / "d", user_column="user_id")

    def test_columns_by_choice_and_without_header(self, tmp_path):
        path = written(tmp_path / "ratings.csv", "9,a,5,100\n9,b,4,50\n")
        data = load_dataset(
            path, has_header=False, user_column="column_1", item_column="column_2", time_column="column_4"
        )
        assert contents(data) == {"9": [("b", 50), ("a", 100)]}
        piped = written(tmp_path / "log.data", "User ID|MovieID|extra\n1|x|?\n")
        assert contents(load_dataset(piped, separator="|")) == {"1": [("x", None)]}

    def test_without_times_the_order_of_the_file_is_kept(self):
        data = load_dataset(FRAME.drop("timestamp"))
        assert contents(data) == {
            "u2": [("007", None), ("b", None)],
            "u1": [("b", None), ("007", None), ("ç", None)],
        }
        assert data.timestamps is None
        assert "order of the rows" in data.meta["time"]["assumed"]
        assert load_dataset(([1, 1, 2], [5, 4, 5])).meta["order"]["rows_moved"] is False

    @pytest.mark.parametrize("timed", [True, False])
    def test_ties_keep_the_order_of_the_file(self, timed):
        """Long enough that an unstable sort would show."""
        rng = np.random.default_rng(0)
        users, items, times = (rng.integers(0, high, 3000) for high in (4, 900, 5))
        data = load_dataset((users, items, times) if timed else (users, items))
        expected: dict[str, list[tuple]] = {}
        for user, item, time in zip(users.tolist(), items.tolist(), times.tolist(), strict=True):
            expected.setdefault(str(user), []).append((str(item), time if timed else None))
        if timed:
            expected = {user: sorted(log, key=lambda event: event[1]) for user, log in expected.items()}
        assert contents(data) == expected
        assert list(data.user_ids) == list(expected)

    def test_large_times_sort_by_two_keys(self):
        big = 2**62
        frame = pl.DataFrame({"user": [1, 2, 1], "item": ["a", "b", "c"], "time": [big, -big, -big]})
        assert contents(load_dataset(frame, time_unit="s")) == {
            "1": [("c", -big), ("a", big)],
            "2": [("b", -big)],
        }


class TestTextForms:
    PAIRS = "1 10\n1 30\n2 10\n"
    SEQUENCES = "1 10 30\n2 10\n"

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize(("text", "layout"), [(PAIRS, "pairs"), (SEQUENCES, "sequences")])
    def test_both_forms(self, tmp_path, text, layout, packed):
        path = tmp_path / ("ml-1m.txt.gz" if packed else "ml-1m.txt")
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        for given in ("auto", layout):
            data = load_dataset(path, layout=given)
            assert contents(data) == {"1": [("10", None), ("30", None)], "2": [("10", None)]}
            assert data.meta["source"]["layout"] == layout
            assert data.name == "ml-1m"

    @pytest.mark.parametrize("text", [PAIRS, SEQUENCES])
    def test_a_byte_order_mark_is_no_part_of_the_first_user(self, tmp_path, text):
        (tmp_path / "log.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert list(load_dataset(tmp_path / "log.txt").user_ids) == ["1", "2"]

    @pytest.mark.parametrize(
        "text", ["1  10\n1  30\n2  10\n", "1 10 \n1 30 \n2 10\n", "1 10\n\n 1\t30\n2 10\n"]
    )
    def test_any_blanks_between_pairs(self, tmp_path, text):
        data = load_dataset(written(tmp_path / "log.txt", text))
        assert contents(data) == {"1": [("10", None), ("30", None)], "2": [("10", None)]}

    def test_tabs(self, tmp_path):
        assert load_dataset(written(tmp_path / "a.txt", self.PAIRS.replace(" ", "\t"))).n_interactions == 3

    @pytest.mark.parametrize(
        ("text", "layout", "message"),
        [
            ("", "auto", "is empty: expected 'user item' or 'user item item"),
            ("", "pairs", "is empty"),
            ("\n", "sequences", "is empty"),
            ("1 2 3\n4 5 6\n", "auto", "every line of .* has 3 words.*--data.layout sequences"),
            (
                "1 2 3\n4 5 6\n",
                "pairs",
                "is not 'user item' per line: line 1 has 3 words.*--data.layout sequences",
            ),
            ("1 2 3\n4\n", "auto", r"line 2 of .* has a user \('4'\) but no item"),
            ("1 2\n1 3\n", "sequences", "line 2 .* repeats user '1'.*--data.layout pairs"),
            ("1 2\n1 3 4\n", "pairs", "is not 'user item' per line: line 2 has 3 words"),
        ],
    )
    def test_errors(self, tmp_path, text, layout, message):
        with pytest.raises(DataError, match=message):
            load_dataset(written(tmp_path / "log.txt", text), layout=layout)

    def test_wrong_layout(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--data\.layout must be one of auto, pairs, sequences"):
            load_dataset(written(tmp_path / "log.txt", self.PAIRS), layout="triples")


class TestTimes:
    @staticmethod
    def load(times, **options):
        frame = pl.DataFrame(
            {"user": ["u"] * len(times), "item": list("abcdefgh"[: len(times)]), "time": times}
        )
        return load_dataset(frame, **options)

    SECONDS = (1_365_029_107, 1_365_029_108)

    @pytest.mark.parametrize(
        ("times", "unit"),
        [
            (list(SECONDS), "s"),
            ([1_365_029_107_000, 1_365_029_108_000], "ms"),
            ([1_365_029_107_000_000, 1_365_029_108_000_000], "us"),
            ([1_365_029_107_000_000_000, 1_365_029_108_000_000_000], "ns"),
            (["1365029107", " 1365029108 "], "s"),
            (["1365029107.0", "1365029108.0"], "s"),
            ([1365029107.25, 1365029108.5], "s"),
            ([1365029107250.5, 1365029108000.5], "ms"),
            (["2013-04-03T22:45:07Z", "2013-04-03T22:45:08Z"], "datetime"),
            (["2013-04-03 22:45:07", "2013-04-03 22:45:08.75"], "datetime"),
            (["2013-04-04T00:45:07+02:00", "2013-04-03T22:45:08Z"], "datetime"),
        ],
    )
    def test_units(self, times, unit):
        data = self.load(times)
        assert data.timestamps.tolist() == list(self.SECONDS)
        assert data.meta["time"]["unit"] == unit

    def test_days(self):
        assert self.load(["2013-04-04", "2013-04-05"]).timestamps.tolist() == [1365033600, 1365120000]
        typed = pl.Series(["2013-04-04", "2013-04-05"]).str.to_date()
        assert self.load(typed).timestamps.tolist() == [1365033600, 1365120000]
        assert self.load(typed.cast(pl.Datetime("ns", "Asia/Tokyo"))).timestamps.tolist() == [
            1365033600,
            1365120000,
        ]

    def test_given_unit(self):
        data = self.load([5000, 7000], time_unit="ms")
        assert data.timestamps.tolist() == [5, 7]
        assert data.meta["time"] == {"unit": "ms", "assumed": "given"}
        with pytest.raises(
            ConfigError, match=r"--data\.time-unit must be one of auto, s, ms, us, ns; got 'minutes'"
        ):
            self.load([1], time_unit="minutes")

    def test_order_inside_a_second_is_kept(self):
        data = self.load([1_365_029_107_900, 1_365_029_107_100])
        assert list(data.item_ids) == ["b", "a"]
        assert data.timestamps.tolist() == [1_365_029_107] * 2

    @pytest.mark.parametrize(
        ("times", "message"),
        [
            (
                ["12", "soon", "later"],
                r"'time': 2 of 3 times are not numbers, the first in data row 2 \('soon'\)",
            ),
            (
                ["2013-04-03", "2013-13-01"],
                r"1 of 2 times are not ISO 8601 dates .* in data row 2 \('2013-13-01'\)",
            ),
            ([3, None, 4], "1 of 3 times are missing, the first in data row 2: repair or drop"),
            (["3", None], "1 of 2 times are missing"),
            ([1.5, float("nan")], r"1 of 2 times are not finite, the first in data row 2 \(nan\)"),
            ([True, False], "has type Boolean: expected numbers, dates or ISO 8601 text"),
        ],
    )
    def test_errors(self, times, message):
        with pytest.raises(DataError, match=message):
            self.load(times)


class TestItems:
    def test_titles_and_attributes(self, tmp_path):
        path = written(
            tmp_path / "items.csv", "item_id,title,genres,maker\n007,Seven,x|y,\nb,Bee,,acme\nother,O,z,\n"
        )
        data = load_dataset(FRAME, item_table=path, attribute_columns=("genres", "maker"))
        assert list(data.item_titles) == ["Bee", "Seven", ""]
        assert list(data.attributes.names) == ["acme", "x", "y"]
        assert data.attributes.of_item(2).tolist() == [2, 3]
        named = pl.DataFrame({"id": ["b"], "what": ["B!"]})
        again = load_dataset(FRAME, item_table=named, item_id_column="id", title_column="what")
        assert list(again.item_titles) == ["B!", "", ""]
        assert again.attributes is None

    def test_table_without_titles(self):
        table = pl.DataFrame({"item": ["b"], "brand": ["B|C"]})
        data = load_dataset(FRAME, item_table=table, attribute_columns=["brand"], attribute_separator="")
        assert data.item_titles is None
        assert list(data.attributes.names) == ["B|C"]

    def test_attributes_of_s3rec(self, tmp_path):
        path = written(tmp_path / "a.json", json.dumps({"b": [4, 9, 4], "nowhere": [1]}))
        for source in (path, {"b": [4, 9]}):
            data = load_dataset(FRAME, item_attributes=source)
            assert list(data.attributes.names) == ["4", "9"]
            assert data.attributes.offsets.tolist() == [0, 0, 2, 2, 2]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"title_column": "t"}, "need --data.item-table, which was not given"),
            ({"item_table": "nowhere.csv"}, "--data.item-table 'nowhere.csv' does not exist"),
            ({"item_table": 3}, "--data.item-table must be a path or a table, got int"),
            ({"item_table": pl.DataFrame({"x": ["b"]})}, r"give --data.item-id-column \(columns: 'x'\)"),
            ({"item_table": FRAME, "item_id_column": "x"}, "--data.item-id-column 'x' is not in the table"),
            (
                {"item_table": FRAME, "title_column": "x"},
                "--data.title-column 'x' is not in the item table: its columns are",
            ),
            (
                {"item_table": FRAME, "attribute_columns": ["x"]},
                "--data.attribute-columns 'x' is not in the item table",
            ),
            ({"item_attributes": "nowhere.json"}, "cannot be read: no such file"),
            (
                {"item_table": FRAME, "attribute_columns": ["timestamp"], "item_attributes": {}},
                "--data.attribute-columns or --data.item-attributes, not both",
            ),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(DataError, match=message):
            load_dataset(FRAME, **options)

    @pytest.mark.parametrize(
        ("text", "message"), [("{", "not valid JSON"), ("[]", "must be a JSON object .* got list")]
    )
    def test_bad_json(self, tmp_path, text, message):
        with pytest.raises(DataError, match=message):
            load_dataset(FRAME, item_attributes=written(tmp_path / "a.json", text))


class TestBadInput:
    @pytest.mark.parametrize(
        ("header", "options", "message"),
        [
            (
                "who,item,time",
                {},
                "no user column found: give --data.user-column .columns: 'who', 'item', 'time'",
            ),
            ("user,what,time", {}, "no item column found: give --data.item-column"),
            (
                "user,item,time",
                {"user_column": "usr"},
                "--data.user-column 'usr' is not in the table: its columns are 'user'",
            ),
            ("user,item,time", {"time_column": "when"}, "--data.time-column 'when' is not in the table"),
            (
                "user,movieId,item_id",
                {},
                "item column is ambiguous: 'movieId', 'item_id' all fit; choose with",
            ),
            (
                "user,item,time",
                {"item_column": "user"},
                "must be different columns, got 'user', 'user', 'time'",
            ),
        ],
    )
    def test_columns(self, tmp_path, header, options, message):
        with pytest.raises(DataError, match=message):
            load_dataset(written(tmp_path / "log.csv", header + "\n1,2,3\n"), **options)

    def test_empty(self, tmp_path):
        with pytest.raises(DataError, match="is empty: expected a table of interactions"):
            load_dataset(written(tmp_path / "log.csv", ""))
        with pytest.raises(DataError, match=r"log\.csv is empty: it has columns 'user', 'item' but no rows"):
            load_dataset(written(tmp_path / "log.csv", "user,item\n"))
        with pytest.raises(DataError, match="the table is empty"):
            load_dataset(FRAME.clear())

    def test_missing_ids(self, tmp_path):
        path = written(tmp_path / "log.csv", "user,item\n1,a\n,b\n2,\n,c\n")
        with pytest.raises(
            DataError, match="user column 'user': 2 of 4 ids are missing, the first in data row 2"
        ):
            load_dataset(path)
        with pytest.raises(
            DataError, match="item column 'item': 1 of 2 ids are missing, the first in data row 2"
        ):
            load_dataset(pl.DataFrame({"user": [1, 2], "item": [7.0, float("nan")]}))

    def test_float_ids(self):
        whole = load_dataset(pl.DataFrame({"user": [1.0, 1.0], "item": [7.0, 8.0]}))
        assert list(whole.item_ids) == ["7", "8"]
        with pytest.raises(DataError, match="item column 'item' has fractional ids"):
            load_dataset(pl.DataFrame({"user": [1], "item": [7.5]}))

    def test_ragged_rows(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read as a table"):
            load_dataset(written(tmp_path / "log.csv", "user,item\n1,2\n1,2,3,4\n"))

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "arrow"])
    def test_paths_are_no_patterns(self, tmp_path, suffix):
        folder = tmp_path / "runs [1]"
        folder.mkdir()
        for name in ("log[2]", "log*", "log?"):
            path = folder / f"{name}.{suffix}"
            if suffix == "parquet":
                FRAME.write_parquet(path)
            elif suffix == "arrow":
                FRAME.write_ipc(path)
            else:
                path.write_text(FRAME.write_csv(separator="\t" if suffix == "tsv" else ","))
            check(load_dataset(path))
            check(prepare_in_blocks(path, folder / f"{name}-{suffix}"))

    def test_unknown_sources(self, tmp_path):
        with pytest.raises(DataError, match=r"no file 'nowhere\.csv'.*bundled one \(movietweetings\)"):
            load_dataset("nowhere.csv")
        with pytest.raises(DataError, match=r"unknown extension: understood are \.csv"):
            load_dataset(written(tmp_path / "log.xlsx", "x"))
        with pytest.raises(DataError, match="cannot read interactions from int"):
            load_dataset(3)
        with pytest.raises(DataError, match=r"no meta\.json"):
            load_dataset(tmp_path)


@pytest.mark.parametrize("separator", ["::", ";", "|", "\t"])
def test_a_file_with_another_separator_is_told_which(tmp_path, separator):
    path = tmp_path / "log.csv"
    lines = [separator.join(row) for row in (("user_id", "item_id"), ("u", "i"), ("u", "j"))]
    path.write_text("\n".join(lines))
    message = f"looks separated by {separator!r}: give --data.separator {separator!r}"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset(path)
    assert load_dataset(path, separator=separator).n_items == 2
    assert load_dataset(path, separator=repr(separator).strip("'")).n_items == 2, "as a shell passes it on"


def test_advice_of_a_file_without_a_header_in_another_encoding_or_of_another_library(tmp_path):
    plain = written(tmp_path / "plain.csv", "ann,x,5\nann,y,6\n")
    with pytest.raises(DataError, match=r"looks like an interaction: .*--data\.no-has-header .*column_3"):
        load_dataset(plain)
    with pytest.raises(
        DataError, match=r"columns without a header are numbered: give --data\.user-column, such as"
    ):
        load_dataset(plain, has_header=False)
    with pytest.raises(DataError, match=r"are numbered: give --data\.user-column, such as 0"):
        load_dataset({0: ["ann", "ann"], 1: ["x", "y"]})
    assert load_dataset({0: ["ann", "ann"], 1: ["x", "y"]}, user_column="0", item_column="1").n_items == 2
    with pytest.raises(DataError, match=r"have one column: give --data\.separator"):
        load_dataset(plain, has_header=False, separator=";")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("user_id,item_id\né,x\né,y\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"--data\.encoding latin-1"):
        load_dataset(latin)
    assert load_dataset(latin, encoding="latin-1").n_items == 2
    with pytest.raises(DataError, match=r"read by --data recbole --data\.archive .*log\.inter"):
        load_dataset(written(tmp_path / "log.inter", "user_id:token\titem_id:token\n"))


def test_thresholds_without_a_filter_are_no_secret(tmp_path):
    log = {"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"]}
    idle = load_dataset(log, min_interactions=2)
    (warning,) = idle.meta["warnings"]
    assert (
        warning
        == "nothing was filtered: --data.min-interactions 2 needs --data.filter, such as k-core or one-pass"
    )
    assert idle.n_users == 2
    assert "warnings" not in load_dataset(log, min_interactions=1, filter="k-core").meta
    assert load_dataset("movietweetings", min_user_interactions=9).meta["warnings"]
    written(tmp_path / "log.csv", "user_id,item_id\na,x\na,y\n")
    blocks = prepare_in_blocks(tmp_path / "log.csv", tmp_path / "out", min_interactions=2)
    assert blocks.meta["warnings"] == [warning]


def test_an_item_table_with_other_ids_is_warned_of(tmp_path):
    log = {"user_id": ["a", "a", "b"], "item_id": ["i7", "i8", "i7"]}
    numbers = pl.DataFrame({"item_id": [7, 8], "title": ["Seven", "Eight"], "genres": ["x", "y"]})
    strange = load_dataset(log, item_table=numbers, attribute_columns=["genres"])
    assert strange.meta["warnings"] == [
        "no item has a title or an attribute: write ids as the log does, such as 'i7'"
    ]
    numbers.write_csv(tmp_path / "items.csv")
    options = {"item_table": str(tmp_path / "items.csv")}
    assert "no item has a title:" in prepare_in_blocks(log, tmp_path / "out", **options).meta["warnings"][0]
    same = numbers.with_columns(pl.Series("item_id", ["i7", "i9"]))
    assert "warnings" not in load_dataset(log, item_table=same, attribute_columns=["genres"]).meta


def test_whole_numbers_that_come_as_floats_are_integers_in_every_table(tmp_path):
    """pandas has integers beside a missing value as floats: 101 and 101.0 in one column were two items."""
    users = [1, 1, 2, 2]
    pd = pytest.importorskip("pandas")
    mixed = pd.DataFrame({"user": users, "item": pd.Series([101.0, 102, "x", 101], dtype=object)})
    assert list(load_dataset(mixed).item_ids) == ["101", "102", "x"]
    items = {"item": [102.0, None, 101.0], "title": ["b", "none", "a"], "brand": [1.5, 2.0, 3.0]}
    pl.DataFrame({**items, "vector": [[2.0], [0.0], [1.0]]}).write_parquet(tmp_path / "items.parquet")
    data = load_dataset(
        {"user": users, "item": [101, 102, 103, 101]},
        item_table=tmp_path / "items.parquet",
        attribute_columns=["brand"],
        item_vectors=str(tmp_path / "items.parquet"),
        missing_vectors="zero",
    )
    assert list(data.item_ids) == ["101", "102", "103"]
    assert list(data.item_titles) == ["a", "b", ""]
    assert list(data.attributes.names) == ["3.0", "1.5"]
    assert data.item_vectors.tolist() == [[1.0], [2.0], [0.0]]
    assert id_text(np.float32(7)) == "7"


@pytest.mark.parametrize(
    "date", ["13/09/2020", "2020/09/13 12:49:09", "yesterday", "13-09-20", "13-09-20 12:49"]
)
def test_dates_in_another_form_are_told_the_right_one(date):
    log = {"user_id": ["a", "a"], "item_id": ["x", "y"], "timestamp": [date, date]}
    with pytest.raises(
        DataError, match=r"neither numbers nor ISO 8601 dates .*: convert the column to one of the two"
    ):
        load_dataset(log)


def test_times_of_whole_minutes_with_an_offset():
    log = {
        "user_id": ["a"] * 3,
        "item_id": list("xyz"),
        "timestamp": ["2020-01-01T10:00+02:00", "2020-01-01T07:59Z", "2020-01-01T08:00"],
    }
    assert contents(load_dataset(log))["a"] == [("y", 1577865540), ("x", 1577865600), ("z", 1577865600)]


def test_quotation_marks_in_a_table_with_a_longer_separator(tmp_path):
    titles = ['"Weird Al" Live', '"Heroes', "Low", 'Foo"']
    lines = [f"{number}::{title}\n" for number, title in enumerate(titles)]
    table = written(tmp_path / "movies.dat", "item::title\n" + "".join(lines))
    log = written(tmp_path / "log.dat", "user::item\n" + "".join(f'"a::{n}\n' for n in range(4)))
    data = load_dataset(log, separator="::", item_table=table, item_separator="::")
    assert list(data.item_titles) == titles
    assert list(data.user_ids) == ['"a']


def test_ids_of_vectors_end_at_line_feeds_alone(tmp_path):
    ids = ["a\x85b", "c\u2028d", "e"]
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "ids.txt").write_bytes("\r\n".join(ids).encode())
    options = {"item_vectors": str(tmp_path / "v.npy"), "vector_ids": str(tmp_path / "ids.txt")}
    data = load_dataset({"user_id": ["u"] * 3, "item_id": ids}, **options)
    np.testing.assert_array_equal(data.item_vectors, np.eye(3))
