"""Archives that are damaged, lie about themselves or mean harm: read right, or refused in one line."""

import gzip
import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from jaxrec.data import load_dataset
from jaxrec.datasets import archives
from jaxrec.errors import DataError
from tests.data.test_preparation import archive, histories
from tests.runs import jaxrec

RATINGS = "userId,movieId,rating,timestamp\n1,2,3,4\n1,3,4,5\n"
MOVIES = "movieId,title,genres\n2,Two,A\n3,Three,B\n"
CHECKINS = "0\t2010-10-19T23:55:27Z\t1\t2\t7\n0\t2010-10-18T22:17:43Z\t1\t2\t8\n"


def refused(name, path, message):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(name, archive=path, rule="all")
    assert "\n" not in str(caught.value).strip()
    assert len(str(caught.value)) < 500


def movielens(path, ratings=RATINGS, movies=MOVIES):
    return archive(path / "ml.zip", **{"ml/ratings.csv": ratings, "ml/movies.csv": movies})


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(archives, "HARMLESS", 50_000)


class TestBombs:
    def test_zip(self, tmp_path, small_limits):
        raw = tmp_path / "ml.zip"
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as target:
            target.writestr("ml/ratings.csv", RATINGS + "1,2,3,4\n" * 500_000)
            target.writestr("ml/movies.csv", MOVIES)
        refused(
            "ml-latest-small", raw, r"'ml\.zip' unpacks to more than [\d,]+ bytes, 100 times its size or more"
        )

    def test_gzip(self, tmp_path, small_limits):
        (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"0\t" * 4_000_000))
        refused("gowalla", tmp_path / "bomb.txt.gz", "decompression bomb; download it again")

    def test_one_endless_line_of_json(self, tmp_path, small_limits):
        (tmp_path / "steam.json.gz").write_bytes(gzip.compress(b" " * 8_000_000))
        refused("steam", tmp_path / "steam.json.gz", "decompression bomb")

    def test_tar(self, tmp_path, small_limits):
        path = tmp_path / "yelp.tar.gz"
        with tarfile.open(path, "w:gz") as target:
            entry = tarfile.TarInfo("yelp_academic_dataset_review.json")
            entry.size = 8_000_000
            target.addfile(entry, io.BytesIO(b" " * entry.size))
        refused("yelp", path, "decompression bomb")

    def test_ordinary_data_is_not_suspected(self, tmp_path, small_limits):
        """Text of a log packs ten times, not a hundred."""
        generator = np.random.default_rng(0)
        lines = "".join(
            f"{u}\t2010-10-19T23:55:27Z\t1\t2\t{i}\n" for u, i in generator.integers(0, 999, (9000, 2))
        )
        (tmp_path / "log.txt.gz").write_bytes(gzip.compress(lines.encode()))
        assert len(lines) > 4 * archives.HARMLESS
        assert load_dataset("gowalla", archive=tmp_path / "log.txt.gz", rule="all").n_interactions == 9000


class TestLinks:
    def test_zip(self, tmp_path):
        (tmp_path / "secret").write_text(RATINGS)
        link = zipfile.ZipInfo("ml/ratings.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as target:
            target.writestr(link, str(tmp_path / "secret"))
            target.writestr("ml/movies.csv", MOVIES)
        refused(
            "ml-latest-small", tmp_path / "ml.zip", r"member 'ratings\.csv' of 'ml\.zip' is a symbolic link"
        )

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_tar(self, tmp_path, kind):
        with tarfile.open(tmp_path / "yelp.tar", "w") as target:
            entry = tarfile.TarInfo("yelp_academic_dataset_review.json")
            entry.type, entry.linkname = kind, "/etc/passwd"
            target.addfile(entry)
        refused("yelp", tmp_path / "yelp.tar", r"has no member named 'yelp_academic_dataset_review\.json'")


class TestTruncated:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_zip(self, tmp_path, share):
        content = movielens(tmp_path, RATINGS * 50).read_bytes()
        (tmp_path / "cut.zip").write_bytes(content[: int(share * len(content))])
        refused("ml-latest-small", tmp_path / "cut.zip", r"'cut\.zip' is not a readable zip file")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_gzip(self, tmp_path, share):
        content = gzip.compress(CHECKINS.encode() * 50)
        (tmp_path / "cut.txt.gz").write_bytes(content[: int(share * len(content))])
        refused("gowalla", tmp_path / "cut.txt.gz", r"file 'cut\.txt\.gz' is damaged")

    def test_tar(self, tmp_path):
        line = b'{"user_id": "u", "business_id": "b", "stars": 5.0, "date": "2018-07-07 22:09:11"}\n'
        with tarfile.open(tmp_path / "yelp.tar", "w") as target:
            entry = tarfile.TarInfo("yelp_academic_dataset_review.json")
            entry.size = 200 * len(line)
            target.addfile(entry, io.BytesIO(line * 200))
        content = (tmp_path / "yelp.tar").read_bytes()
        (tmp_path / "cut.tar").write_bytes(content[: 512 + 100 * len(line) + 7])
        refused("yelp", tmp_path / "cut.tar", "is damaged|neither JSON|has no member")

    def test_a_flipped_byte(self, tmp_path):
        content = bytearray(movielens(tmp_path, RATINGS * 50).read_bytes())
        content[60] ^= 0xFF
        (tmp_path / "bad.zip").write_bytes(content)
        refused("ml-latest-small", tmp_path / "bad.zip", "is not a readable zip file")


class TestText:
    def test_wrong_encoding(self, tmp_path):
        (tmp_path / "latin.txt.gz").write_bytes(gzip.compress("0\té\t1\t2\t7\n".encode("latin-1")))
        refused("gowalla", tmp_path / "latin.txt.gz", r"expected lines of 5 fields .*utf-8")
        (tmp_path / "utf16.txt.gz").write_bytes(gzip.compress(CHECKINS.encode("utf-16")))
        refused("gowalla", tmp_path / "utf16.txt.gz", r"expected lines of 5 fields .*utf-8")
        raw = movielens(tmp_path, movies=MOVIES.replace("Two", "Zwé").encode("latin-1"))
        refused("ml-latest-small", raw, r"expected a table with the columns movieId, title, genres.*utf-8")
        refused(
            "ml-latest-small",
            movielens(tmp_path, RATINGS.encode("utf-16")),
            r"a table in UTF-8 with the columns userId, movieId, .* its header holds null bytes",
        )

    def test_a_byte_order_mark_is_no_part_of_an_id(self, tmp_path):
        (tmp_path / "bom.txt.gz").write_bytes(gzip.compress(CHECKINS.encode("utf-8-sig")))
        assert histories(load_dataset("gowalla", archive=tmp_path / "bom.txt.gz", rule="all")) == {
            "0": ["8", "7"]
        }
        raw = movielens(tmp_path, RATINGS.encode("utf-8-sig"))
        assert histories(load_dataset("ml-latest-small", archive=raw, rule="all")) == {"1": ["2", "3"]}

    @pytest.mark.parametrize("last", ["\r\n", "\n", ""])
    def test_mixed_line_ends(self, tmp_path, last):
        first, second = CHECKINS.strip().split("\n")
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(f"{first}\r\n{second}{last}".encode()))
        assert histories(load_dataset("gowalla", archive=tmp_path / "a.txt.gz", rule="all")) == {
            "0": ["8", "7"]
        }
        header, one, two = RATINGS.strip().split("\n")
        raw = movielens(tmp_path, f"{header}\r\n{one}\n{two}{last}", MOVIES.replace("\n", "\r\n"))
        data = load_dataset("ml-latest-small", archive=raw, rule="all")
        assert histories(data) == {"1": ["2", "3"]}
        assert list(data.item_titles) == ["Two", "Three"]
        assert list(data.attributes.names) == ["A", "B"]

    @pytest.mark.parametrize("header", ["userId,movieId,rating,rating", "userId,movieId,rating,user_id"])
    def test_a_header_that_repeats_a_column(self, tmp_path, header):
        raw = movielens(tmp_path, f"{header}\n1,2,3,4\n")
        refused(
            "ml-latest-small",
            raw,
            "the header names '(rating|userId)' more than once: its columns are userId, movieId",
        )

    def test_the_command_says_it_in_one_line(self, tmp_path):
        raw = movielens(tmp_path, "userId,movieId,movieId\n1,2,3\n")
        outcome = jaxrec("prepare", "ml-latest-small", "--archive", raw, "--out", tmp_path / "out")
        assert (outcome.status, outcome.err.count("\n")) == (1, 1)
        assert not (tmp_path / "out").exists()
