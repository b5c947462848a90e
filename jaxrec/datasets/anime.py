"""Anime recommendations of MyAnimeList (Kaggle, CooperUnion): ratings without times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import content, headed_table, is_archive

_CORE: dict[str, Any] = {"filter": "k-core", "min_interactions": 5}


@public_dataset(
    "anime",
    title="Anime recommendations of MyAnimeList",
    size="73,515 users, 11,200 anime, 7,813,737 ratings",
    url="https://www.kaggle.com/datasets/CooperUnion/anime-recommendations-database",
    licence="CC0 as stated on Kaggle",
    citation="Anime Recommendations Database, Kaggle, CooperUnion, 2016",
    files=("rating.csv", "anime.csv"),
    rules={"5-core": _CORE, "rated-5-core": {"min_rating": 1.0, **_CORE}, "all": {}},
)
def read_anime(archive: Path, titles: Path | None = None) -> RawDataset:
    """Read ``rating.csv`` and ``anime.csv``, or a zip of both; a rating of -1 means watched but not rated.

    The file has no times: the order of its rows is taken for the order of the interactions.
    """
    packed = is_archive(archive)
    ratings = headed_table(
        content(archive, "rating.csv" if packed else ""),
        {"user": "user_id", "item": "anime_id", "rating": "rating"},
    )
    if packed:
        titles = archive
    note = {
        "warnings": [
            "the source has no times: the order of its rows is taken for the order of the interactions"
        ]
    }
    if titles is None:
        return RawDataset(ratings, {}, meta=note)
    names = headed_table(
        content(titles, "anime.csv" if packed else ""),
        {"item": "anime_id", "title": "name", "genres": "genre"},
    )
    names = names.with_columns(pl.col("genres").str.replace_all(", ", "|", literal=True))
    return RawDataset(ratings, {}, items=names, options={"attribute_columns": ("genres",)}, meta=note)
