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
    url="https://files.grouplens.org/datasets/movielens/ml-10m.zip",
    licence=_LICENCE,
    citation=_CITATION,
    files=("ml-10m.zip",),
    downloads=("https://files.grouplens.org/datasets/movielens/ml-10m.zip",),
    rules=_RULES,
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
    for name, title in (
        ("ml-latest-small", "MovieLens latest-small"),
        ("ml-20m", "MovieLens 20M"),
        ("ml-25m", "MovieLens 25M"),
        ("ml-32m", "MovieLens 32M"),
    ):
        public_dataset(
            name,
            title=title,
            url=f"https://files.grouplens.org/datasets/movielens/{name}.zip",
            licence=_LICENCE,
            citation=_CITATION,
            files=(f"{name}.zip",),
            downloads=(f"https://files.grouplens.org/datasets/movielens/{name}.zip",),
            rules=_RULES,
        )(_read_csv)


_register_csv_editions()
