"""One `DataConfig` for `load_dataset` and every command: each option arrives, and a dataset knows its own."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

import jaxrec as package
from jaxrec.data import DataConfig, SequenceDataset, load_dataset
from jaxrec.data.readers.config import IN_MEMORY
from jaxrec.errors import ConfigError, DataError
from tests.runs import jaxrec


def histories(data):
    return {u: [data.item_ids[i - 1] for i in data.history(k)] for k, u in enumerate(data.user_ids)}


EXPECTED = {"1": ["b", "a"], "2": ["a"]}


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "text", "options"),
        [
            ("ratings.dat", "1::a::5::20\n1::b::3::10\n2::a::1::5\n", {"separator": "::"}),
            ("ratings.csv", "1;a;5;20\n1;b;3;10\n2;a;1;5\n", {"separator": ";"}),
            ("ratings.csv", "1,a,5,20\n1,b,3,10\n2,a,1,5\n", {}),
            (
                "ratings.txt",
                "1é5éaé20\n1é3ébé10\n2é1éaé5\n".replace("é5éa", "éaé5")
                .replace("é3éb", "ébé3")
                .replace("2é1éa", "2éaé1"),
                {"separator": "é"},
            ),
        ],
    )
    def test_without_a_header(self, tmp_path, name, text, options):
        (tmp_path / name).write_text(text)
        columns = {"user_column": "column_1", "item_column": "column_2", "time_column": "column_4"}
        data = load_dataset(tmp_path / name, has_header=False, **columns, **options)
        assert histories(data) == EXPECTED
        assert data.timestamps.tolist() == [10, 20, 5]

    def test_the_separator_and_its_stand_in_in_one_file(self, tmp_path):
        (tmp_path / "log.dat").write_text("user::item::note\n1::a\x1fb::x\n")
        assert histories(load_dataset(tmp_path / "log.dat", separator="::")) == {"1": ["a\x1fb"]}

    def test_encodings(self, tmp_path):
        for encoding in ("latin-1", "utf-16"):
            (tmp_path / "log.csv").write_bytes("user,item\n1,é\n".encode(encoding))
            assert histories(load_dataset(tmp_path / "log.csv", encoding=encoding)) == {"1": ["é"]}
            (tmp_path / "log.txt").write_bytes("1 é\n".encode(encoding))
            assert histories(load_dataset(tmp_path / "log.txt", encoding=encoding)) == {"1": ["é"]}
        for name in ("log.csv", "log.txt"):
            with pytest.raises(DataError, match=r"--data\.encoding 'klingon' is unknown"):
                load_dataset(tmp_path / name, encoding="klingon")

    def test_rating_threshold(self, tmp_path):
        frame = pl.DataFrame({"user": [1, 1, 1, 2], "item": list("abcd"), "stars": ["4", "3.5", "", "5"]})
        data = load_dataset(frame, min_rating=4)
        assert histories(data) == {"1": ["a"], "2": ["d"]}
        assert data.meta["steps"] == [
            {
                "filter": "min-rating",
                "minimum": 4.0,
                "before": {"users": 2, "items": 4, "interactions": 4},
                "after": {"users": 2, "items": 2, "interactions": 2},
            }
        ]
        named = frame.rename({"stars": "liked"})
        assert load_dataset(named, min_rating=5, rating_column="liked").n_interactions == 1
        with pytest.raises(DataError, match=r"no rating column found: give --data\.rating-column"):
            load_dataset(named, min_rating=5)
        with pytest.raises(
            DataError, match=r"1 of 2 ratings are not numbers, the first in data row 2 \('good'\)"
        ):
            load_dataset({"user": [1, 2], "item": [1, 2], "rating": ["3", "good"]}, min_rating=3)
        with pytest.raises(DataError, match="filter 'min-rating' leaves none of 4 interactions"):
            load_dataset(frame, min_rating=9)
        with pytest.raises(DataError, match=r"--data\.rating-column has no use without --data.min-rating"):
            load_dataset(named, rating_column="liked")

    def test_an_unrecognised_time_column_is_a_warning(self):
        frame = pl.DataFrame({"user": [1, 1], "item": ["a", "b"], "watched_when": [2, 1]})
        data = load_dataset(frame)
        assert histories(data) == {"1": ["a", "b"]}
        (warning,) = data.meta["warnings"]
        assert "no time column was recognised" in warning
        assert "'watched_when' may be one" in warning
        assert "--data.time-column" in warning
        assert "warnings" not in load_dataset(frame, time_column="watched_when").meta
        assert "warnings" not in load_dataset(frame.drop("watched_when")).meta


class TestOptions:
    def test_falsy_values_arrive(self):
        """A threshold of 0 was once replaced by the default of 5."""
        with pytest.raises(
            ConfigError, match=r"--data\.min-interactions must be an integer at least 1; got 0"
        ):
            DataConfig(filter="k-core", min_interactions=0)
        with pytest.raises(ConfigError, match=r"--data\.min-interactions"):
            load_dataset({"user": [1], "item": [1]}, min_interactions=0)
        frame = pl.DataFrame({"user": [1], "item": ["a"], "rating": [-1]})
        table = pl.DataFrame({"item": ["a"], "genre": ["x|y"]})
        options = {"item_table": table, "attribute_columns": ("genre",), "attribute_separator": ""}
        assert list(load_dataset(frame, min_rating=-1.0, **options).attributes.names) == ["x|y"]
        with pytest.raises(DataError, match="leaves none"):
            load_dataset(frame, min_rating=0.0)

    def test_unknown_and_wrong_options(self):
        with pytest.raises(
            ConfigError, match="unknown option 'user_col' of load_dataset: expected some of source"
        ):
            load_dataset("movietweetings", user_col="x")
        with pytest.raises(ConfigError, match=r"--data\.min-interactions must be an integer"):
            load_dataset("movietweetings", min_interactions="5")
        with pytest.raises(ConfigError, match=r"--data\.min-rating must be .*finite number"):
            DataConfig(min_rating=float("nan"))

    def test_options_replace_those_of_the_configuration(self, tmp_path):
        (tmp_path / "log.csv").write_text("who;item\nx;1\ny;1\ny;2\n")
        config = DataConfig(separator=";", user_column="who")
        assert load_dataset(tmp_path / "log.csv", config).n_interactions == 3
        assert load_dataset(tmp_path / "log.csv", config, filter="k-core", min_interactions=1).n_users == 2
        assert config.replace(user_column=None) == DataConfig(separator=";")

    def test_options_of_raw_logs_are_refused_for_finished_datasets(self, tmp_path):
        load_dataset({"user": [1], "item": [1]}).save(tmp_path / "d")
        with pytest.raises(
            DataError, match=r"is a finished dataset, .*: leave out --data\.user-column, --data\.min-rating,"
        ):
            load_dataset(tmp_path / "d", user_column="x", min_rating=3)
        with pytest.raises(DataError, match=r"is no public dataset .*: leave out --data\.archive"):
            load_dataset({"user": [1], "item": [1]}, archive="x.zip")

    def test_verify_reads_it_all(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jaxrec.data.storage.SMALL", 0)
        monkeypatch.setattr("jaxrec.data.storage.BLOCK", 1)
        items = np.arange(1, 1001, dtype=np.int32)
        data = SequenceDataset(items, np.array([0, 1000], np.int64), ["u"], [str(i) for i in items])
        data.save(tmp_path / "d")
        changed = np.load(tmp_path / "d" / "items.npy")
        changed[5] = 7
        np.save(tmp_path / "d" / "items.npy", changed)
        assert load_dataset(tmp_path / "d").n_interactions == 1000
        with pytest.raises(DataError, match="has changed since it was saved"):
            load_dataset(tmp_path / "d", verify=True)


class TestTrueSource:
    """A run must record what it was trained on, so that it can be opened again."""

    def test_of_a_file_with_options(self, tmp_path):
        (tmp_path / "own.csv").write_text("who;thing;t\nx;1;2000000000000\nx;2;1000000000000\n")
        (tmp_path / "items.csv").write_text("item,title\n1,One\n")
        options = {"separator": ";", "user_column": "who", "item_column": "thing", "time_column": "t"}
        data = load_dataset(
            tmp_path / "own.csv", item_table=tmp_path / "items.csv", time_unit="ms", **options
        )
        config = DataConfig.of(data)
        assert config.source == str(tmp_path / "own.csv")
        assert config.item_table == str(tmp_path / "items.csv")
        again = load_dataset(config)
        assert again.fingerprint == data.fingerprint
        assert list(again.item_titles) == ["", "One"]
        assert DataConfig(**json.loads(json.dumps(config.changed()))) == config
        with pytest.raises(ConfigError, match="takes one DataConfig"):
            load_dataset(config, config)

    def test_of_bundled_and_saved_datasets(self, tmp_path):
        assert DataConfig.of(load_dataset("movietweetings")) == DataConfig()
        small = load_dataset("movietweetings", filter="k-core", min_interactions=20)
        assert DataConfig.of(small) == DataConfig(filter="k-core", min_interactions=20)
        small.save(tmp_path / "d")
        for again in (load_dataset(tmp_path / "d"), SequenceDataset.load(tmp_path / "d")):
            assert DataConfig.of(again) == DataConfig(source=str(tmp_path / "d"))
        load_dataset(tmp_path / "d").save(tmp_path / "e")
        assert DataConfig.of(SequenceDataset.load(tmp_path / "e")).source == str(tmp_path / "e")

    def test_of_a_dataset_in_memory(self, tmp_path):
        table = pl.DataFrame({"user": [1, 1], "item": [5, 6]})
        config = DataConfig.of(load_dataset(table, name="mine"))
        assert config == DataConfig(source=IN_MEMORY, name="mine")
        with pytest.raises(DataError, match="trained on the dataset 'mine' that a script held in memory"):
            load_dataset(config)

    def test_the_same_data_at_another_place(self, tmp_path):
        """A run on a raw file is evaluated with its prepared form, whose columns need no names."""
        (tmp_path / "own.csv").write_text("who;item\nx;1\nx;2\n")
        config = DataConfig.of(load_dataset(tmp_path / "own.csv", separator=";", user_column="who"))
        load_dataset(config).save(tmp_path / "d")
        assert load_dataset(config.moved(str(tmp_path / "d"))).fingerprint == load_dataset(config).fingerprint
        (tmp_path / "own.csv").rename(tmp_path / "elsewhere.csv")
        assert load_dataset(config.moved(str(tmp_path / "elsewhere.csv"))).n_interactions == 2

    def test_a_changed_dataset_forgets_its_source(self):
        data = load_dataset("movietweetings")
        shorter = dataclasses.replace(
            data, items=data.items[:5], offsets=np.array([0, 5], np.int64), user_ids=("a",), timestamps=None
        )
        assert DataConfig.of(shorter).source == IN_MEMORY


class TestCommands:
    @pytest.fixture
    def log(self, tmp_path):
        rows = [
            f"{user}::{item}::{item % 5 + 1}::{1000 + item}"
            for user in range(4)
            for item in range(user, user + 4)
        ]
        (tmp_path / "ratings.dat").write_text("\n".join(rows) + "\n")
        (tmp_path / "movies.dat").write_text("".join(f"{i}::Film {i}::Drama|War\n" for i in range(8)))
        return tmp_path / "ratings.dat"

    COLUMNS = ("--user-column", "column_1", "--item-column", "column_2", "--data.time-column", "column_4")

    def test_prepare_reads_odd_files_and_keeps_titles_and_attributes(self, log, tmp_path):
        items = ("--item-table", tmp_path / "movies.dat", "--item-separator", "::", "--no-item-has-header")
        named = (
            "--item-id-column",
            "column_1",
            "--title-column",
            "column_2",
            "--attribute-columns",
            "column_3",
        )
        options = ("--separator", "::", "--no-has-header", *self.COLUMNS, *items, *named)
        out = jaxrec("prepare", log, *options, "--out", tmp_path / "d", "--json")
        assert out.status == 0, out
        data = load_dataset(tmp_path / "d")
        assert (data.n_users, data.n_interactions) == (4, 16)
        assert data.item_titles[0] == "Film 0"
        assert list(data.attributes.names) == ["Drama", "War"]
        assert json.loads(out.out)["attributes"] == 2

    def test_short_and_long_names_are_one(self, log):
        base = ("audit", log, "--separator=::", "--data.no-has-header", *self.COLUMNS, "--json")
        short = jaxrec(*base, "--filter", "k-core", "--min-interactions", "2")
        long = jaxrec(*base, "--data.filter", "k-core", "--data.min-interactions", "2")
        assert short.status == long.status == 0, (short, long)
        assert short.out == long.out
        assert json.loads(short.out)["interactions"] < 16
        rated = jaxrec(*base, "--min-rating", "4", "--rating-column", "column_3")
        assert json.loads(rated.out)["interactions"] < 16

    def test_zero_is_refused(self, log):
        outcome = jaxrec("audit", log, "--filter", "k-core", "--min-interactions", "0")
        assert outcome.status != 0
        assert "min-interactions" in outcome.err
        assert "Traceback" not in outcome.err

    def test_the_list_of_public_datasets(self):
        out = jaxrec("datasets")
        assert out.status == 0
        assert all(name in out.out for name in ("movietweetings", "ml-1m", "lastfm", "sasrec", "JAXREC_DATA"))
        one = json.loads(jaxrec("datasets", "ml-1m", "--json").out)["datasets"][0]
        assert one["rules"][0] == "sasrec"
        assert "Harper" in one["citation"]
        assert "unknown dataset 'ml-1n'" in jaxrec("datasets", "ml-1n").err

    def test_the_audit_takes_a_split_and_counts_rules(self, tmp_path):
        rows = [
            f"u{user},i{(user + step) % 9},{100 * step + user}" for user in range(12) for step in range(6)
        ]
        (tmp_path / "log.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
        split = (
            "--split.strategy",
            "temporal",
            "--split.test-quantile",
            "0.8",
            "--split.valid-quantile",
            "0.6",
        )
        out = jaxrec("audit", tmp_path / "log.csv", *split, "--sequential", "--min-support", "1", "--json")
        assert out.status == 0, out
        findings = json.loads(out.out)
        assert findings["strategy"] == "temporal"
        assert findings["sequential"]["rules"]["2"] == 9
        text = jaxrec("audit", tmp_path / "log.csv", "--sequential", "--min-support", "1").out
        assert "the order carries much information" in text
        wrong = jaxrec("audit", tmp_path / "log.csv", "--sequential", "--min-support", "0")
        assert (wrong.status, wrong.err.count("\n")) == (1, 1)
        assert "--min-support must be at least 1" in wrong.err
        idle = jaxrec("audit", tmp_path / "log.csv", "--min-support", "9", "--shuffles", "1")
        assert "--min-support, --shuffles: options of the rules that --sequential counts" in idle.err


def test_a_file_in_place_of_a_dataset_is_named():
    """Of every call that takes a dataset, before it does anything."""
    calls = (package.audit, package.split_dataset, package.fit, lambda data: package.Run("nowhere", data))
    for call in calls:
        with pytest.raises(
            DataError, match=r"expected a dataset, got 'log\.csv': give what load_dataset returns"
        ):
            call("log.csv")
        with pytest.raises(DataError, match="expected a dataset, got dict"):
            call({"user": [1]})
