"""MovieLens (https://grouplens.org/datasets/movielens/): 100K, 1M, 10M, 20M, 25M, 32M and latest-small.

Redistribution is not allowed, so these read the official archive that you download; every rating is an interaction.

A note on ML-1M: the ``ml-1m.txt`` of the SASRec line of work comes from the same ratings, but many ratings of one user
share a second and that file broke these ties in an order that cannot be recovered. Sorting ``ratings.dat`` by time, ties in
file order, gives a different last item for about a quarter of the users: report results on the two files apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import headed_table, member, table

_LICENCE = "research use with citation, no redistribution (GroupLens)"
_CITATION = "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015"
_RULES: dict[str, dict[str, Any]] = {
    "all": {},
    "sasrec": {"filter": "one-pass", "min_interactions": 5},
    "5-core": {"filter": "k-core", "min_interactions": 5},
    "scalable-sasrec": {"filter": "items-then-users", "min_interactions": 5, "min_user_interactions": 20},
}
_SASREC_FIRST = {"sasrec": _RULES["sasrec"], **_RULES}
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
)


@public_dataset(
    "ml-1m",
    title="MovieLens 1M",
    size="6,040 users, 3,706 items, 1,000,209 ratings",
    url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    licence=_LICENCE,
    citation=_CITATION,
    files=("ml-1m.zip",),
    downloads=("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
    rules=_SASREC_FIRST,
    sha256=("a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",),
    md5=("c4d9eecfca2ab87c1945afe126590906",),
)
def read_ml_1m(archive: Path) -> RawDataset:
    """Read ``ratings.dat`` and ``movies.dat``, separated by "::"."""
    return _read_dat(archive, "latin-1")


@public_dataset(
    "ml-10m",
    title="MovieLens 10M",
    size="69,878 users, 10,677 items, 10,000,054 ratings",
    url="https://files.grouplens.org/datasets/movielens/ml-10m.zip",
    licence=_LICENCE,
    citation=_CITATION,
    files=("ml-10m.zip",),
    downloads=("https://files.grouplens.org/datasets/movielens/ml-10m.zip",),
    rules=_RULES,
    md5=("ce571fd55effeba0271552578f2648bd",),
)
def read_ml_10m(archive: Path) -> RawDataset:
    """Read ``ratings.dat`` and ``movies.dat``, separated by "::", in UTF-8."""
    return _read_dat(archive, "utf-8")


def _read_dat(archive: Path, encoding: str) -> RawDataset:
    ratings = table(member(archive, "ratings.dat"), ("user", "item", "rating", "timestamp"), "::")
    movies = table(member(archive, "movies.dat"), ("item", "title", "genres"), "::", encoding=encoding)
    return RawDataset(ratings, {}, items=movies, options={"attribute_columns": ("genres",)})


@public_dataset(
    "ml-100k",
    title="MovieLens 100K",
    size="943 users, 1,682 items, 100,000 ratings",
    url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    licence=_LICENCE,
    citation=_CITATION,
    files=("ml-100k.zip",),
    downloads=("https://files.grouplens.org/datasets/movielens/ml-100k.zip",),
    rules=_RULES,
    md5=("0e33842e24a9c977be4e0107933c0723",),
)
def read_ml_100k(archive: Path) -> RawDataset:
    """Read ``u.data`` (tab-separated) and ``u.item`` (with one column of 0 or 1 per genre)."""
    ratings = table(member(archive, "u.data"), ("user", "item", "rating", "timestamp"), "\t")
    columns = ("item", "title", "released", "video", "url", *_GENRES)
    movies = table(member(archive, "u.item"), columns, "|", encoding="latin-1")
    flags = movies.select(_GENRES).rows()
    genres = ["|".join(name for name, flag in zip(_GENRES, row, strict=True) if flag == "1") for row in flags]
    items = movies.select("item", "title").with_columns(pl.Series("genres", genres))
    return RawDataset(ratings, {}, items=items, options={"attribute_columns": ("genres",)})


def _read_csv(archive: Path) -> RawDataset:
    ratings = headed_table(
        member(archive, "ratings.csv"),
        {"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"},
    )
    movies = headed_table(
        member(archive, "movies.csv"), {"item": "movieId", "title": "title", "genres": "genres"}
    )
    movies = movies.with_columns(pl.col("genres").replace("(no genres listed)", ""))
    return RawDataset(ratings, {}, items=movies, options={"attribute_columns": ("genres",)})


def _register_csv_editions() -> None:
    # The content of latest-small changes over time, so no checksum is compared.
    for name, title, size, md5 in (
        (
            "ml-latest-small",
            "MovieLens latest-small",
            "610 users, 9,724 items, 100,836 ratings (2018-09)",
            (),
        ),
        (
            "ml-20m",
            "MovieLens 20M",
            "138,493 users, 26,744 items, 20,000,263 ratings",
            ("cd245b17a1ae2cc31bb14903e1204af3",),
        ),
        (
            "ml-25m",
            "MovieLens 25M",
            "162,541 users, 59,047 items, 25,000,095 ratings",
            ("6b51fb2759a8657d3bfcbfc42b592ada",),
        ),
        (
            "ml-32m",
            "MovieLens 32M",
            "200,948 users, 84,432 items, 32,000,204 ratings",
            ("d472be332d4daa821edc399621853b57",),
        ),
    ):
        public_dataset(
            name,
            title=title,
            size=size,
            url=f"https://files.grouplens.org/datasets/movielens/{name}.zip",
            licence=_LICENCE,
            citation=_CITATION,
            files=(f"{name}.zip",),
            downloads=(f"https://files.grouplens.org/datasets/movielens/{name}.zip",),
            rules=_RULES,
            md5=md5,
        )(_read_csv)


_register_csv_editions()
