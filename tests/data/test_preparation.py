"""Loaders of official archives: on tiny imitations of their layout, and on the real files where they are
present."""

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data import load_dataset
from jaxrec.data.named import describe_archive
from jaxrec.datasets.archives import member, table
from jaxrec.datasets.s3rec import sampled_negatives
from jaxrec.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the archives of ../shared/data are not on this machine"
)


def archive(path: Path, **members: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def histories(data):
    return {u: [data.item_ids[i - 1] for i in data.history(k)] for k, u in enumerate(data.user_ids)}


def names_of(data, item_id):
    return [data.attributes.names[a - 1] for a in data.attributes.of_item(data.item_index(item_id))]


class TestMovieLens:
    def test_1m(self, tmp_path):
        raw = archive(
            tmp_path / "ml-1m.zip",
            **{
                "ml-1m/ratings.dat": "1::10::5::300\n1::20::1::100\n2::10::3::5\n2::20::3::5\n3::30::3::1\n",
                "ml-1m/movies.dat": "10::Misérables, Les (1995)::Drama|Musical\n20::B::Comedy\n".encode(
                    "latin-1"
                ),
            },
        )
        data = load_dataset("ml-1m", archive=raw, min_interactions=2, other_edition=True)
        assert histories(data) == {"1": ["20", "10"], "2": ["10", "20"]}
        assert data.item_titles[data.item_index("10") - 1] == "Misérables, Les (1995)"
        assert names_of(data, "10") == ["Drama", "Musical"]
        assert data.meta["source"]["file"] == "ml-1m.zip"
        assert data.meta["steps"][0]["filter"] == "one-pass"
        with pytest.raises(DataError, match=r"expected sha256 a6898adb.*damaged or another edition"):
            load_dataset("ml-1m", archive=raw)

    def test_csv(self, tmp_path):
        raw = archive(
            tmp_path / "ml-latest-small.zip",
            **{
                "ml/ratings.csv": "userId,movieId,rating,timestamp\r\n1,5,4.0,9\r\n1,6,1.0,8\r\n",
                "ml/movies.csv": 'movieId,title,genres\r\n5,"Postino, Il",Drama|Romance\r\n6,Six,Action\r\n',
            },
        )
        data = load_dataset("ml-latest-small", archive=raw)
        assert histories(data) == {"1": ["6", "5"]}
        assert list(data.item_titles) == ["Six", "Postino, Il"]
        assert names_of(data, "5") == ["Drama", "Romance"]

    @needs_shared
    def test_real_layouts(self):
        data = load_dataset("ml-1m", archive=SHARED / "ml-1m-surrogate_layout.zip", other_edition=True)
        assert (data.n_users, data.n_items, data.n_interactions) == (6_040, 3_416, 999_611)
        small = load_dataset("ml-latest-small", archive=SHARED / "ml-latest-small_layout.zip")
        assert (small.n_users, small.n_items, small.n_interactions) == (610, 9_724, 100_836)
        assert "" not in list(small.item_titles)


class TestLastFM:
    def test_rule(self, tmp_path):
        raw = archive(
            tmp_path / "hetrec.zip",
            **{
                # Artist 8 is tagged twice by user 2: the first row of the file counts, with its time.
                "user_taggedartists-timestamps.dat": "userID\tartistID\ttagID\ttimestamp\r\n"
                "2\t8\t1\t9000\r\n2\t8\t2\t1000\r\n2\t7\t1\t5000\r\n3\t7\t2\t1\r\n3\t8\t2\t2\r\n3\t9\t2\t2\r\n",
                "artists.dat": 'id\tname\turl\tpictureURL\n7\t"Sigur" Rós\tu\tp\n8\tEight\tu\tp\n',
                "tags.dat": "tagID\ttagValue\r\n1\tmetal\r\n2\tété\r\n".encode("latin-1"),
            },
        )
        data = load_dataset("lastfm", archive=raw, min_interactions=2, other_edition=True)
        assert histories(data) == {"2": ["7", "8"], "3": ["7", "8"]}
        assert data.timestamps.tolist() == [5, 9, 0, 0]
        assert list(data.item_titles) == ['"Sigur" Rós', "Eight"]
        assert names_of(data, "8") == ["metal", "été"]

    @needs_shared
    def test_it_reproduces_the_file_of_s3rec(self):
        ours = load_dataset("lastfm", archive=SHARED / "hetrec2011-lastfm-2k.zip")
        theirs = load_dataset("s3rec-lastfm", archive=SHARED / "s3rec_data.zip")
        assert ours.n_interactions == 52_551
        np.testing.assert_array_equal(ours.items, theirs.items)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        assert list(theirs.item_ids) == [str(i) for i in range(1, 3_647)], (
            "ids by first appearance are the file's own"
        )
        negatives = sampled_negatives(SHARED / "s3rec_data.zip", "LastFM", theirs)
        assert negatives.shape == (1_090, 99)
        artists = json.loads(member(SHARED / "s3rec_data.zip", "LastFM_id_maps.json"))["item_s3_to_artistID"]
        assert [artists[number] for number in theirs.item_ids] == list(ours.item_ids)


class TestS3Rec:
    def test_layout(self, tmp_path):
        raw = archive(
            tmp_path / "s3.zip",
            **{
                "data/Yelp.txt": "1 4 2\n2 2 2 9\n",
                "data/Yelp_item2attributes.json": json.dumps({"9": [5, 1, 5], "77": [3]}),
                "data/Yelp_sample.txt": "2 4 2\n1 9 9\n",
            },
        )
        data = load_dataset("s3rec-yelp", archive=raw)
        assert histories(data) == {"1": ["4", "2"], "2": ["2", "2", "9"]}
        assert names_of(data, "9") == ["5", "1"]
        assert data.name == "s3rec-yelp"
        assert data.meta["source"]["member"] == "Yelp.txt"
        assert sampled_negatives(raw, "Yelp", data).tolist() == [[3, 3], [1, 2]]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("1 4\n", "1 users have no negatives in Yelp_sample.txt, the first is '2'"),
            ("1 4\n2 4 2\n", "have different numbers of negatives"),
            ("1 4\n2 8\n", r"has items that Yelp\.txt lacks"),
        ],
    )
    def test_bad_negatives(self, tmp_path, lines, message):
        raw = archive(tmp_path / "s3.zip", **{"Yelp_sample.txt": lines})
        data = load_dataset((["1", "2"], ["4", "2"]))
        with pytest.raises(DataError, match=message):
            sampled_negatives(raw, "Yelp", data)

    @needs_shared
    def test_beauty_is_the_five_core_with_times(self):
        order_only = load_dataset("s3rec-beauty", archive=SHARED / "s3rec_data.zip")
        timed = load_dataset(SHARED / "amazon_beauty_5core.csv.gz")
        np.testing.assert_array_equal(order_only.items, timed.items)
        assert (timed.n_users, timed.n_items, timed.n_interactions) == (22_363, 12_101, 198_502)


@needs_shared
def test_the_file_of_sasrec():
    data = load_dataset(SHARED / "ml-1m_sasrec.txt.gz")
    assert (data.n_users, data.n_items, data.n_interactions) == (6_040, 3_416, 999_611)
    np.testing.assert_array_equal(np.array([int(i) for i in data.item_ids]), np.arange(1, 3_417))
    beauty = load_dataset(SHARED / "amazon_beauty_sasrec.txt.gz")
    assert (beauty.n_users, beauty.n_items, beauty.n_interactions) == (52_204, 57_289, 394_908)


class TestAmazon:
    def test_ratings(self, tmp_path):
        rows = "A,x,5.0,200\nA,y,1.0,100\nB,x,3.0,50\nB,y,3.0,50\nC,z,1.0,1\n"
        (tmp_path / "ratings.csv").write_text(rows)
        (tmp_path / "ratings.csv.gz").write_bytes(gzip.compress(rows.encode()))
        for path in (tmp_path / "ratings.csv", tmp_path / "ratings.csv.gz"):
            data = load_dataset("amazon-beauty", archive=path, min_interactions=2)
            assert histories(data) == {"A": ["y", "x"], "B": ["x", "y"]}

    def test_reviews_and_metadata(self, tmp_path):
        reviews = [
            {"reviewerID": u, "asin": i, "unixReviewTime": t, "reviewText": "…"}
            for u, i, t in [("A", "x", 200), ("A", "y", 100), ("B", "x", 5), ("B", "y", 6), ("C", "x", 1)]
        ]
        path, metadata = tmp_path / "reviews_5.json.gz", tmp_path / "meta.json.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, reviews)).encode()))
        # Python literals, as in the official metadata.
        products = [
            {
                "asin": "x",
                "title": "It's",
                "brand": "Acme",
                "categories": [["Beauty", "Hair", "Oil"], ["Beauty", "Oil"]],
            },
            {"asin": "y"},
        ]
        metadata.write_bytes(gzip.compress("\n".join(map(repr, products)).encode()))
        data = load_dataset("amazon-beauty-5core", archive=(path, metadata), min_interactions=2)
        assert histories(data) == {"A": ["y", "x"], "B": ["x", "y"]}
        assert names_of(data, "x") == ["Acme", "Hair", "Oil"]
        assert names_of(data, "y") == []
        assert list(data.item_titles) == ["", "It's"]
        assert load_dataset("amazon-beauty-5core", archive=path, min_interactions=2).attributes is None
        path.write_bytes(gzip.compress(b"not a record\n"))
        with pytest.raises(DataError, match=r"line 1 of .* is neither JSON nor a Python literal"):
            load_dataset("amazon-beauty-5core", archive=path)


class TestArchives:
    def test_describe_archive(self, tmp_path):
        path = tmp_path / "a.bin"
        path.write_bytes(b"abc")
        md5 = "900150983cd24fb0d6963f7d28e17f72"
        assert describe_archive(path, md5=(md5,))["bytes"] == 3
        with pytest.raises(
            DataError, match=rf"archive 'a\.bin' has sha256 ba7816bf.* and md5 {md5}, expected md5 0"
        ):
            describe_archive(path, md5=("0",))
        assert describe_archive(path, md5=("0",), verify=False)["file"] == "a.bin"
        with pytest.raises(DataError, match="does not exist: download it from its official source"):
            describe_archive(tmp_path / "b.bin")

    def test_member(self, tmp_path):
        path = archive(tmp_path / "a.zip", **{"x/one.txt": "1", "y/one.txt": "2", "two.txt": "3"})
        assert member(path, "two.txt") == b"3"
        with pytest.raises(
            DataError, match=r"has 2 members named 'one\.txt', expected one; it holds x/one\.txt"
        ):
            member(path, "one.txt")
        path.write_bytes(b"not a zip")
        with pytest.raises(DataError, match="is not a readable zip file"):
            member(path, "two.txt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"1::2\n", "the lines have 2 fields, expected 3: a, b, c"),
            (b"1::2::3\n1::2::3::4\n", "expected lines of 3 fields"),
        ],
    )
    def test_table(self, content, message):
        with pytest.raises(DataError, match=message):
            table(content, ("a", "b", "c"), "::")
