"""Loaders of public datasets on small files in the official formats, oddities included."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.data import DATASETS, DataConfig, PublicDataset, load_dataset
from jaxrec.datasets import describe_datasets
from jaxrec.datasets.pickled import plain_pickle
from jaxrec.errors import ConfigError, DataError, UnknownNameError
from tests.data.test_preparation import archive, histories, names_of
from tests.runs import jaxrec


def load(name, *paths, rule="all", **options):
    return load_dataset(name, archive=paths, rule=rule, **options)


def titles_of(data):
    return dict(zip(data.item_ids, data.item_titles, strict=True))


def zipped(path, **members):
    return archive(path, **members)


class TestMovieLens:
    def test_100k(self, tmp_path):
        flags = "|".join("1" if i in (5, 8) else "0" for i in range(19))
        raw = zipped(
            tmp_path / "ml-100k.zip",
            **{
                "ml-100k/u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t1\t881250948\n",
                "ml-100k/u.item": (
                    f"242|Kolya (1996)|24-Jan-1997||http://x|{flags}\n302|L.A. Confidéntial (1997)||||"
                    + "|".join(["0"] * 19)
                    + "\n"
                ).encode("latin-1"),
            },
        )
        data = load("ml-100k", raw, other_edition=True)
        assert histories(data) == {"196": ["302", "242"], "186": ["302"]}
        assert titles_of(data)["302"] == "L.A. Confidéntial (1997)"
        assert names_of(data, "242") == ["Comedy", "Drama"]
        assert load("ml-100k", raw, other_edition=True, min_rating=3).n_interactions == 2

    def test_10m(self, tmp_path):
        raw = zipped(
            tmp_path / "ml-10m.zip",
            **{
                "ml-10M100K/ratings.dat": "1::122::5::838985046\n1::185::4.5::838983525\n",
                "ml-10M100K/movies.dat": "122::Boomerang (1992)::Comedy|Romance\n185::Net, The (1995)::Action\n",
            },
        )
        data = load("ml-10m", raw, other_edition=True)
        assert histories(data) == {"1": ["185", "122"]}
        assert names_of(data, "122") == ["Comedy", "Romance"]

    @pytest.mark.parametrize("name", ["ml-20m", "ml-25m", "ml-32m", "ml-latest-small"])
    def test_csv_editions(self, tmp_path, name):
        raw = zipped(
            tmp_path / f"{name}.zip",
            **{
                f"{name}/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n",
                f"{name}/movies.csv": 'movieId,title,genres\n2,"City, The",Adventure|Fantasy\n29,X,(no genres listed)\n',
                f"{name}/genome-scores.csv": "x\n",
            },
        )
        data = load(name, raw, other_edition=True)
        assert histories(data) == {"1": ["29", "2"]}
        assert titles_of(data) == {"2": "City, The", "29": "X"}
        assert (names_of(data, "2"), names_of(data, "29")) == (["Adventure", "Fantasy"], [])


def test_movietweetings_from_the_zip_of_the_repository(tmp_path):
    snapshots = {
        f"MovieTweetings-master/snapshots/{name}/": i for i, name in enumerate(("10K", "100K", "200K"))
    }
    files = {f"{folder}ratings.dat": f"1::{i}::8::1381006850\n" for folder, i in snapshots.items()}
    files |= {f"{folder}movies.dat": f"{i}::Film {i} (2013)::Drama|War\n" for folder, i in snapshots.items()}
    data = load("movietweetings-100k", zipped(tmp_path / "master.zip", **files), other_edition=True)
    assert histories(data) == {"1": ["tt0000001"]}
    assert names_of(data, "tt0000001") == ["Drama", "War"]


class TestAmazon:
    def test_2018_ratings_have_the_item_first(self, tmp_path):
        (tmp_path / "All_Beauty.csv").write_text("B1,A2,5.0,1424304000\nB0,A2,1.0,1418860800\n")
        assert histories(load("amazon-2018-beauty", tmp_path / "All_Beauty.csv")) == {"A2": ["B0", "B1"]}
        product = {"asin": "B1", "title": "X", "brand": "Acme", "category": ["Beauty", "Oil"]}
        (tmp_path / "m.json.gz").write_bytes(gzip.compress(json.dumps(product).encode()))
        data = load("amazon-2018-beauty", tmp_path / "All_Beauty.csv", tmp_path / "m.json.gz")
        assert names_of(data, "B1") == ["Acme", "Oil"]

    def test_2014_ratings_with_metadata_in_python_literals(self, tmp_path):
        (tmp_path / "ratings_Beauty.csv").write_text("A,x,5.0,1369699200\nA,y,3.0,1369612800\n")
        product = "{'asin': 'x', 'title': 'It\\'s', 'brand': 'Acme', 'categories': [['Beauty', 'Hair'], ['Beauty', 'Oil']]}"
        (tmp_path / "m.json.gz").write_bytes(gzip.compress(product.encode()))
        data = load("amazon-beauty", tmp_path / "ratings_Beauty.csv", tmp_path / "m.json.gz")
        assert histories(data) == {"A": ["y", "x"]}
        assert titles_of(data)["x"] == "It's"
        assert names_of(data, "x") == ["Acme", "Hair", "Oil"]
        assert load("amazon-beauty", tmp_path / "ratings_Beauty.csv").attributes is None

    def test_2018_reviews(self, tmp_path):
        review = {
            "reviewerID": "A",
            "asin": "x",
            "overall": 5.0,
            "unixReviewTime": 9,
            "verified": True,
            "vote": "2",
        }
        product = {
            "asin": "x",
            "title": "X",
            "brand": "Acme",
            "category": ["Beauty", "Hair", "Oil"],
            "also_buy": [],
        }
        (tmp_path / "r.json.gz").write_bytes(gzip.compress(json.dumps(review).encode()))
        (tmp_path / "m.json.gz").write_bytes(gzip.compress(json.dumps(product).encode() + b"\n{}\n"))
        data = load("amazon-2018-beauty-5core", tmp_path / "r.json.gz", tmp_path / "m.json.gz")
        assert titles_of(data) == {"x": "X"}
        assert names_of(data, "x") == ["Acme", "Hair", "Oil"]

    def test_2023(self, tmp_path):
        header = "user_id,parent_asin,rating,timestamp\n"
        (tmp_path / "All_Beauty.csv").write_text(f"{header}A,x,5.0,1588687728923\nA,y,4.0,1588615855070\n")
        meta = {
            "parent_asin": "x",
            "title": "X",
            "store": "Acme",
            "categories": ["Beauty", "Oil"],
            "price": None,
        }
        (tmp_path / "meta.jsonl").write_text(json.dumps(meta) + "\n")
        data = load("amazon-2023-beauty", tmp_path / "All_Beauty.csv", tmp_path / "meta.jsonl")
        assert histories(data) == {"A": ["y", "x"]}
        assert data.timestamps.tolist() == [1588615855, 1588687728]
        assert names_of(data, "x") == ["Acme", "Oil"]
        review = {"user_id": "A", "parent_asin": "x", "rating": 5.0, "timestamp": 1588687728923, "images": []}
        (tmp_path / "reviews.jsonl.gz").write_bytes(gzip.compress(json.dumps(review).encode()))
        assert load("amazon-2023-beauty", tmp_path / "reviews.jsonl.gz").n_interactions == 1
        (tmp_path / "reviews.parquet").write_bytes(b"x")
        with pytest.raises(DataError, match=r"must end in \.csv"):
            load("amazon-2023-beauty", tmp_path / "reviews.parquet")


def test_gowalla(tmp_path):
    """Newest first, times in ISO 8601; of a tie the line further down is the older."""
    lines = (
        "0\t2010-10-19T23:55:27Z\t30.23\t-97.79\t22847\n0\t2010-10-18T22:17:43Z\t30.26\t-97.76\t420315\n"
        "0\t2010-10-18T22:17:43Z\t30.26\t-97.76\t316637\n"
    )
    path = tmp_path / "loc-gowalla_totalCheckins.txt.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    data = load("gowalla", path)
    assert histories(data) == {"0": ["316637", "420315", "22847"]}
    assert data.timestamps[-1] == 1287532527
    path.write_bytes(gzip.compress(b"0\t2010-10-19T23:55:27Z\t30.23\n"))
    with pytest.raises(DataError, match="the lines have 3 fields, expected 5"):
        load("gowalla", path)


class TestYelp:
    REVIEWS = (
        {
            "review_id": "r",
            "user_id": "u",
            "business_id": "b",
            "stars": 3.0,
            "date": "2018-07-07 22:09:11",
            "text": "a\n",
        },
        {"review_id": "s", "user_id": "u", "business_id": "c", "stars": 5.0, "date": "2012-01-03 15:28:18"},
    )
    BUSINESSES = (
        {"business_id": "b", "name": "Café", "categories": "Sushi Bars, Restaurants", "attributes": None},
        {"business_id": "c", "name": "C", "categories": None},
    )

    def check(self, data):
        assert histories(data) == {"u": ["c", "b"]}
        assert titles_of(data) == {"b": "Café", "c": "C"}
        assert (names_of(data, "b"), names_of(data, "c")) == (["Sushi Bars", "Restaurants"], [])

    def test_files_and_archives(self, tmp_path):
        files = {
            "yelp_academic_dataset_review.json": "\n".join(map(json.dumps, self.REVIEWS)),
            "yelp_academic_dataset_business.json": "\n".join(map(json.dumps, self.BUSINESSES)),
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        self.check(load("yelp", *(tmp_path / name for name in files)))
        with tarfile.open(tmp_path / "yelp_dataset.tar", "w") as target:
            for name in files:
                target.add(tmp_path / name, name)
        self.check(load("yelp", tmp_path / "yelp_dataset.tar"))
        self.check(load("yelp", zipped(tmp_path / "yelp.zip", **files)))

    def test_a_rule_with_a_rating_threshold(self, tmp_path):
        (tmp_path / "r.json").write_text("\n".join(map(json.dumps, self.REVIEWS)))
        data = load("yelp", tmp_path / "r.json", rule="positive-5-core", min_interactions=1)
        assert histories(data) == {"u": ["c"]}

    def test_members_that_are_links_are_not_followed(self, tmp_path):
        link = tarfile.TarInfo("yelp_academic_dataset_review.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(tmp_path / "yelp.tar", "w") as target:
            target.addfile(link)
        with pytest.raises(DataError, match="has no member named"):
            load("yelp", tmp_path / "yelp.tar")

    @pytest.mark.parametrize("line", ["{", "[1]", '{"user_id": "u"}', "\xff"])
    def test_bad_lines(self, tmp_path, line):
        (tmp_path / "r.json").write_bytes(
            json.dumps(self.REVIEWS[0]).encode() + b"\n" + line.encode("latin-1")
        )
        with pytest.raises(DataError, match=r"(line|object) 2 of"):
            load("yelp", tmp_path / "r.json")


def test_steam(tmp_path):
    """Python literals with u'' strings; nothing is evaluated."""
    lines = [
        "{u'username': u'Chaos', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', u'text': u'\\n'}",
        "{u'username': u'Chaos', u'product_id': u'328100', u'date': u'2016-01-01', u'early_access': False}",
    ]
    games = [
        "{u'id': u'725280', u'app_name': u'Psycho', u'genres': [u'Action'], u'tags': [u'Action', u'Indie']}",
        "{u'title': u'without an id'}",
    ]
    (tmp_path / "r.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "g.json.gz").write_bytes(gzip.compress("\n".join(games).encode()))
    data = load("steam", tmp_path / "r.json.gz", tmp_path / "g.json.gz")
    assert histories(data) == {"Chaos": ["328100", "725280"]}
    assert titles_of(data)["725280"] == "Psycho"
    assert names_of(data, "725280") == ["Action", "Indie"]
    (tmp_path / "r.json.gz").write_bytes(gzip.compress(b"__import__('os').system('touch x')\n"))
    with pytest.raises(DataError, match="neither JSON nor a Python literal"):
        load("steam", tmp_path / "r.json.gz")


@pytest.mark.parametrize("packed", [False, True])
def test_anime(tmp_path, packed):
    """-1 is watched but not rated; there are no times."""
    files = {
        "rating.csv": "user_id,anime_id,rating\n1,20,-1\n1,24,8\n2,20,10\n",
        "anime.csv": "anime_id,name,genre,type,episodes,rating,members\n"
        '20,Naruto,"Action, Comedy",TV,220,7.8,1\n24,N,,TV,1,,2\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = [zipped(tmp_path / "archive.zip", **files)] if packed else [tmp_path / name for name in files]
    data = load("anime", *paths)
    assert histories(data) == {"1": ["20", "24"], "2": ["20"]}
    assert data.timestamps is None
    assert names_of(data, "20") == ["Action", "Comedy"]
    assert "the source has no times" in data.meta["warnings"][0]
    assert load("anime", *paths, rule="rated-5-core", min_interactions=1).n_interactions == 2


class TestSessions:
    def test_retailrocket(self, tmp_path):
        events = (
            "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
            "1433224214164,257597,addtocart,248676,\n1433223236522,257597,transaction,111016,4000\n"
        )
        raw = zipped(tmp_path / "rr.zip", **{"events.csv": events, "category_tree.csv": "a,b\n"})
        data = load("retailrocket", raw)
        assert data.attributes is None
        assert histories(data) == {"257597": ["355908", "111016", "248676"]}
        assert data.timestamps[0] == 1433221332
        assert load("retailrocket", raw, rule="carts").n_interactions == 2
        assert histories(load("retailrocket", raw, rule="purchases")) == {"257597": ["111016"]}
        (tmp_path / "events.csv").write_text(events.replace("view", "look"))
        with pytest.raises(DataError, match="events must be view, addtocart, transaction; got 'look'"):
            load("retailrocket", tmp_path / "events.csv")

    @pytest.mark.parametrize("packed", [True, False])
    def test_categories_of_retailrocket(self, tmp_path, packed):
        """The newest category of an item, and those above it; a tree with a cycle ends too."""
        header = "timestamp,itemid,property,value\n"
        files = {
            "events.csv": "timestamp,visitorid,event,itemid,transactionid\n1,1,view,7,\n2,1,view,8,\n3,1,view,9,\n",
            "item_properties_part1.csv": f"{header}1435460400000,7,categoryid,1338\n1435460400000,7,790,n552.000\n",
            "item_properties_part2.csv": f"{header}1431831600000,7,categoryid,9\n1431831600000,8,categoryid,5\n",
            "category_tree.csv": "categoryid,parentid\n1338,1278\n1278,\n5,6\n6,5\n",
        }
        if packed:
            paths = [zipped(tmp_path / "rr.zip", **files)]
        else:
            paths = [tmp_path / name for name in files]
            for path, text in zip(paths, files.values(), strict=True):
                path.write_text(text)
        data = load("retailrocket", *paths)
        assert names_of(data, "7") == ["1338", "1278"]
        assert names_of(data, "8") == ["5", "6"]
        assert names_of(data, "9") == []

    def test_diginetica(self, tmp_path):
        """The order inside a session is that of the milliseconds, not of the file."""
        views = (
            "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n1;NA;31331;1031018;2016-05-09\n"
            "1;NA;32118;243569;2016-05-09\n"
        )
        raw = zipped(tmp_path / "d.zip", **{"train-item-views.csv": views})
        assert load("diginetica", raw).attributes is None
        categories = "itemId;categoryId\n81766;1096\n5;7\n31331;1096\n"
        raw = zipped(
            tmp_path / "d.zip", **{"train-item-views.csv": views, "product-categories.csv": categories}
        )
        data = load("diginetica", raw)
        assert (names_of(data, "81766"), names_of(data, "32118")) == (["1096"], [])
        assert histories(data) == {"1": ["32118", "81766", "31331"]}
        assert data.timestamps[0] == 1462752000 + 243

    @pytest.mark.parametrize("packed", [False, True])
    def test_yoochoose(self, tmp_path, packed):
        clicks = "1,2014-04-07T10:54:09.868Z,214536500,0\n1,2014-04-07T10:51:09.277Z,214536502,S\n"
        (tmp_path / "yoochoose-clicks.dat").write_text(clicks)
        raw = tmp_path / "yoochoose-clicks.dat"
        if packed:
            raw = zipped(tmp_path / "y.zip", **{"yoochoose-clicks.dat": clicks})
        data = load("yoochoose", raw)
        assert histories(data) == {"1": ["214536502", "214536500"]}
        assert data.timestamps[0] == 1396867869
        assert data.attributes is None, "a special offer is no property of the item, and 0 means none"
        (tmp_path / "more.dat").write_text(
            clicks + "2,2014-04-07T10:51:09.277Z,214536502,10\n2,2014-04-07T10:52:09.277Z,214536502,2\n"
        )
        assert names_of(load("yoochoose", tmp_path / "more.dat"), "214536502") == ["10", "2"]


class TestYambda:
    def test_listens_and_likes(self, tmp_path):
        frame = pl.DataFrame(
            {
                "uid": [7, 7, 7], "timestamp": [20, 5, 10], "item_id": [1, 2, 3], "is_organic": [1, 0, 1],
                "played_ratio_pct": [100, 50, 49], "track_length_seconds": [60, 60, 60],
            },
            schema_overrides={"uid": pl.UInt32, "timestamp": pl.UInt32, "is_organic": pl.UInt8},
        )  # fmt: skip
        frame.write_parquet(tmp_path / "listens.parquet")
        assert histories(load("yambda-listens", tmp_path / "listens.parquet")) == {"7": ["2", "3", "1"]}
        assert histories(load("yambda-listens", tmp_path / "listens.parquet", rule="listened")) == {
            "7": ["2", "1"]
        }
        assert histories(load("yambda-listens", tmp_path / "listens.parquet", rule="organic")) == {
            "7": ["3", "1"]
        }
        assert histories(load("yambda-listens", tmp_path / "listens.parquet", rule="listened-organic")) == {
            "7": ["1"]
        }
        frame.drop("played_ratio_pct", "track_length_seconds").write_parquet(tmp_path / "likes.parquet")
        assert load("yambda-likes", tmp_path / "likes.parquet").timestamps.tolist() == [5, 10, 20]
        for kind, values in (("artist", [5, 4, 9]), ("album", [8, 8, 8])):
            pairs = pl.DataFrame(
                {f"{kind}_id": values, "item_id": [1, 1, 77]}, schema_overrides={"item_id": pl.UInt32}
            )
            pairs.write_parquet(tmp_path / f"{kind}_item_mapping.parquet")
        names = ("likes", "artist_item_mapping", "album_item_mapping")
        data = load("yambda-likes", *(tmp_path / f"{name}.parquet" for name in names))
        assert names_of(data, "1") == ["artist 4", "artist 5", "album 8"]
        assert names_of(data, "2") == []
        with pytest.raises(DataError, match="lacks 'played_ratio_pct'"):
            load("yambda-listens", tmp_path / "likes.parquet")
        (tmp_path / "likes.parquet").write_bytes(b"PAR1")
        with pytest.raises(DataError, match="cannot be read as a table"):
            load("yambda-likes", tmp_path / "likes.parquet")


class TestZvuk:
    PLAYS = pl.DataFrame(
        {
            "user_id": [5, 5, 6], "session_id": [1, 1, 2], "track_id": [30, 10, 30], "play_duration": [61.5, 3.0, 240.0],
            "datetime": ["2023-01-16 00:00:05", "2023-01-16 00:00:01", "2023-01-15 23:59:59"],
        },
        schema_overrides={"track_id": pl.Int32},
    )  # fmt: skip

    @pytest.mark.parametrize("kind", ["text", "datetime"])
    def test_plays(self, tmp_path, kind):
        frame = self.PLAYS
        if kind == "datetime":
            frame = frame.with_columns(pl.col("datetime").str.to_datetime(time_unit="ns"))
        frame.write_parquet(tmp_path / "zvuk-interactions.parquet")
        data = load("zvuk", tmp_path / "zvuk-interactions.parquet")
        assert histories(data) == {"5": ["10", "30"], "6": ["30"]}
        assert data.timestamps.tolist() == [1673827201, 1673827205, 1673827199]
        longer = load("zvuk", tmp_path / "zvuk-interactions.parquet", min_rating=30)
        assert histories(longer) == {"5": ["30"], "6": ["30"]}

    def test_another_file(self, tmp_path):
        self.PLAYS.drop("track_id").write_parquet(tmp_path / "x.parquet")
        with pytest.raises(
            DataError, match=r"'x\.parquet' lacks 'track_id': its columns are 'user_id', 'session_id'"
        ):
            load("zvuk", tmp_path / "x.parquet")


class TestRecBole:
    INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t50\t5\t9.0\n1\t60\t4\t8.0\n"
    ITEM = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "50\tStar Wars\t1977\tAction War\n60\tX\t\t\n"
    )

    @pytest.mark.parametrize("packed", [False, True])
    def test_films(self, tmp_path, packed):
        files = {"ml.inter": self.INTER, "ml.item": self.ITEM}
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        users = {"ml.user": "user_id:token\tage:token\n1\t24\n"}
        paths = (
            [zipped(tmp_path / "ml.zip", **files, **users)] if packed else [tmp_path / name for name in files]
        )
        data = load("recbole", *paths)
        assert histories(data) == {"1": ["60", "50"]}
        assert titles_of(data)["50"] == "Star Wars"
        assert names_of(data, "50") == ["Action", "War"]

    def test_sessions_without_items(self, tmp_path):
        (tmp_path / "d.inter").write_text("session_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n")
        assert histories(load("recbole", tmp_path / "d.inter")) == {"1": ["2"]}
        (tmp_path / "d.inter").write_text("user\titem\n1\t2\n")
        with pytest.raises(DataError, match="must have columns such as user_id:token"):
            load("recbole", tmp_path / "d.inter")


class TestPickled:
    VALUE = {  # noqa: RUF012 - not changed
        "train": {1: [1, 2], 2: [3]}, "val": {1: [3], 2: []}, "test": {1: [1], 2: [2]},
        "umap": {"anna": 1, 17: 2}, "smap": {50: 1, 60: 2, "x": 3}, "meta": {1: "Star Wars", 3: "X"},
    }  # fmt: skip

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_original_ids_and_titles(self, tmp_path, protocol):
        (tmp_path / "dataset.pkl").write_bytes(pickle.dumps(self.VALUE, protocol))
        data = load("pickled", tmp_path / "dataset.pkl")
        assert histories(data) == {"anna": ["50", "60", "x", "50"], "17": ["x", "60"]}
        assert titles_of(data) == {"50": "Star Wars", "60": "", "x": "X"}
        assert data.timestamps is None

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_values_are_those_of_pickle(self, protocol):
        shared = [1, "é"]
        value = {
            **{
                "a": shared,
                "b": (shared, (), (1,), (1, 2, 3, 4)),
                "c": {3, 5},
                "d": frozenset([2]),
                2**70: -1.5,
            },
            **{"e": [None, True, False], "f": {i: [i] * (i % 3) for i in range(300)}, "g": [set(), {}, []]},
            **{-300: 70_000, "h": "x" * 300, "i": ""},
        }
        if protocol < 4:  # older protocols write sets as calls
            value = {key: part for key, part in value.items() if key not in ("c", "d", "g")}
        read = plain_pickle(pickle.dumps(value, protocol), "x.pkl")
        assert read == value
        assert read["b"][0] is read["a"], "one list, twice"

    def test_numbers_without_maps(self, tmp_path):
        value = {part: self.VALUE[part] for part in ("train", "val", "test")}
        (tmp_path / "dataset.pkl").write_bytes(pickle.dumps(value))
        assert histories(load("pickled", tmp_path / "dataset.pkl"))["2"] == ["3", "2"]

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_nothing_is_executed(self, tmp_path, protocol):
        class Hostile:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "executed",))

        content = pickle.dumps({**self.VALUE, "more": Hostile()}, protocol)
        (tmp_path / "dataset.pkl").write_bytes(content)
        with pytest.raises(DataError, match=r"uses the pickle instruction (STACK_)?GLOBAL"):
            load("pickled", tmp_path / "dataset.pkl")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not a readable pickle"),
            (b"\x80\x04}q\x00.", "must hold a dictionary with train, val and test"),
            (b"\x80\x02]r\xff\xff\xff\x7f.", "must hold a dictionary"),
            (b"\x80\x02]h\x07.", "is not a readable pickle"),
            (b"\x80\x02}K\x01a.", "is not a readable pickle: APPEND to a dict"),
            (pickle.dumps(VALUE)[:-30], "is not a readable pickle"),
            (pickle.dumps({**VALUE, "umap": [1]}), "umap of file 'dataset.pkl' must be a dictionary"),
            (
                pickle.dumps({**VALUE, "val": {1: 3}}),
                "a list of items, each a number or text, for user 1 in val; got 3",
            ),
            (pickle.dumps({**VALUE, "train": {1: [[1], [2]]}}), "for user 1 in train; got"),
            (pickle.dumps({**VALUE, "more": np.int64(3)}), "could run code; save it again with int"),
            (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0fabc.", "is not a readable pickle"),
        ],
    )
    def test_refusals(self, tmp_path, content, message):
        (tmp_path / "dataset.pkl").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            load("pickled", tmp_path / "dataset.pkl")
        assert "\n" not in str(caught.value)


class TestRegistry:
    def test_every_dataset_is_described(self):
        for about in describe_datasets():
            if about["bundled"]:
                continue
            part = DATASETS[about["name"]]
            assert isinstance(part, PublicDataset)
            assert part.url.startswith("https://")
            assert part.licence
            assert part.size
            assert part.citation
            for options in part.rules.values():
                DataConfig(**options)

    def test_a_dataset_of_one_s_own(self, monkeypatch):
        monkeypatch.setattr(DATASETS, "_parts", dict(DATASETS._parts))

        @DATASETS.register("mine")
        def mine(config):
            """My own log."""
            return pl.DataFrame({"user": [1, 1, 2], "item": [3, 4, 3]})

        assert histories(load_dataset("mine")) == {"1": ["3", "4"], "2": ["3"]}
        assert load_dataset("mine", filter="k-core", min_interactions=1).name == "table"
        assert DataConfig.of(load_dataset("mine")) == DataConfig(source="mine")
        assert describe_datasets("mine") == [
            {"name": "mine", "title": "My own log.", "bundled": False, "rules": []}
        ]

    def test_a_file_goes_before_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "steam").write_text("1 2\n")
        with pytest.raises(DataError, match="unknown extension"):
            load_dataset("steam")

    def test_a_saved_dataset_goes_before_a_name_and_an_unpacked_archive_does_not(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        log = "0\t2010-10-19T23:55:27Z\t1\t2\t3\n0\t2010-10-18T23:55:27Z\t1\t2\t4\n"
        (tmp_path / "log.txt.gz").write_bytes(gzip.compress(log.encode()))
        (tmp_path / "gowalla").mkdir()
        (tmp_path / "gowalla" / "README.txt").write_text("unpacked")
        raw = load_dataset("gowalla", archive="log.txt.gz", rule="all")
        assert raw.n_items == 2
        (tmp_path / "gowalla" / "README.txt").unlink()
        load_dataset("movietweetings").save("gowalla")
        assert load_dataset("gowalla").n_items == 2414

    def test_archives_of_the_data_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("JAXREC_DATA", str(tmp_path))
        with pytest.raises(
            DataError,
            match=r"gowalla needs loc-gowalla_totalCheckins\.txt\.gz: .*; jaxrec prepare gowalla --download --out",
        ):
            load_dataset("gowalla")
        (tmp_path / "loc-gowalla_totalCheckins.txt.gz").write_bytes(
            gzip.compress(b"0\t2010-10-19T23:55:27Z\t1\t2\t3\n")
        )
        data = load_dataset("gowalla", rule="all")
        assert data.meta["source"]["url"].startswith("https://snap")
        assert (data.meta["rule"], data.meta["license"]) == ("all", "research")
        assert DataConfig.of(data) == DataConfig(source="gowalla", rule="all")
        assert describe_datasets("gowalla")[0]["on_disk"] == [
            str(tmp_path / "loc-gowalla_totalCheckins.txt.gz")
        ]

    def test_refusals(self, tmp_path):
        with pytest.raises(
            ConfigError,
            match=r"--data\.rule of gowalla must be one of 5-core, first-of-pair-5-core, scalable-sasrec, all",
        ):
            load_dataset("gowalla", rule="6-core")
        with pytest.raises(
            ConfigError, match=r"--data\.archive of yelp takes at most 2 files \(yelp_.*; got 3"
        ):
            load("yelp", *[tmp_path / "r.json"] * 3)
        with pytest.raises(DataError, match="does not exist: download it"):
            load("gowalla", tmp_path / "none.gz")
        with pytest.raises(UnknownNameError, match="unknown dataset 'gowala'"):
            describe_datasets("gowala")

    def test_prepare_from_an_archive(self, tmp_path):
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as target:
            target.writestr("ml/ratings.csv", "userId,movieId,rating,timestamp\n" + "1,2,3,4\n1,3,4,5\n")
            target.writestr("ml/movies.csv", "movieId,title,genres\n2,Two,A|B\n3,Three,A\n")
        (tmp_path / "ml.zip").write_bytes(raw.getvalue())
        out = jaxrec(
            "prepare", "ml-20m", "--archive", tmp_path / "ml.zip", "--rule", "all", "--out", tmp_path / "d",
            "--other-edition",
        )  # fmt: skip
        assert out.status == 0, out
        assert "with titles, 2 attributes" in out.out
        assert (
            "archive ml.zip: not compared with the published checksum (--other-edition); sha256 " in out.out
        )
        data = load_dataset(tmp_path / "d")
        assert histories(data) == {"1": ["2", "3"]}
        assert data.meta["rule"] == "all"

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", bytes(100)])
    def test_damaged_archives(self, tmp_path, content):
        (tmp_path / "a.zip").write_bytes(content)
        for name in (
            "ml-20m",
            "ml-10m",
            "retailrocket",
            "diginetica",
            "yelp",
            "steam",
            "anime",
            "recbole",
            "gowalla",
        ):
            with pytest.raises(DataError) as caught:
                load(name, tmp_path / "a.zip", other_edition=True)
            assert "\n" not in str(caught.value).strip(), name

    def test_members_outside_the_archive_are_only_read(self, tmp_path):
        """A name that leads out of a directory is a name: nothing is ever unpacked to disk."""
        raw = zipped(
            tmp_path / "ml.zip",
            **{
                "../../ratings.csv": "userId,movieId,rating,timestamp\r\n1,2,3,4\n1,3,4,5\r\n",
                "/movies.csv": "movieId,title,genres\n2,Two,A\n",
            },
        )
        before = sorted(tmp_path.rglob("*"))
        assert histories(load("ml-latest-small", raw)) == {"1": ["2", "3"]}
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_member_that_understates_its_size(self, tmp_path):
        raw = zipped(tmp_path / "ml.zip", **{"ratings.csv": "userId,movieId\n" * 1000, "movies.csv": "x\n"})
        content = bytearray(raw.read_bytes())
        place = content.rfind(b"PK\x01\x02")  # the entry of movies.csv; ratings.csv comes before it
        first = content.rfind(b"PK\x01\x02", 0, place)
        content[first + 24 : first + 28] = (10).to_bytes(4, "little")
        raw.write_bytes(bytes(content))
        with pytest.raises(DataError):
            load("ml-latest-small", raw)
