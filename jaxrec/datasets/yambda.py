"""Yambda of Yandex Music: listens and likes as flat Parquet files, in the order of user and time.

Columns as its page documents them: ``uid``, ``item_id`` and ``timestamp`` (uint32; seconds since an unpublished moment, in
steps of five), ``is_organic`` (uint8: 1 where the user found the track, 0 where a recommendation led to it) and, for
listens, ``played_ratio_pct`` (uint16; above 100 where parts were played again) and ``track_length_seconds``.
The 500M and 5B editions have the same columns. Artists and albums of tracks are files of their own
(``artist_item_mapping.parquet``, ``album_item_mapping.parquet``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.data.readers.tables import reading
from jaxrec.datasets.archives import parquet_columns

_FILES = "https://huggingface.co/datasets/yandex/yambda/resolve/main/"
_MAPPINGS = ("artist_item_mapping.parquet", "album_item_mapping.parquet")
_ABOUT: dict[str, Any] = {
    "url": "https://huggingface.co/datasets/yandex/yambda",
    "licence": "Apache-2.0",
    "citation": "Ploshkin et al., Yambda-5B: A Large-Scale Multi-modal Dataset for Ranking and Retrieval, arXiv 2505.22238",
}
_ORGANIC: dict[str, Any] = {"rating_column": "is_organic", "min_rating": 1.0}
_CORE: dict[str, Any] = {"filter": "k-core", "min_interactions": 5}


@public_dataset(
    "yambda-listens",
    title="Yambda, listens (flat/50m/listens.parquet)",
    size="9,238 users, 877,168 tracks, 46,467,212 listens",
    files=("listens.parquet", *_MAPPINGS),
    downloads=(f"{_FILES}flat/50m/listens.parquet", *(f"{_FILES}{name}" for name in _MAPPINGS)),
    rules={
        "listened-5-core": {"rating_column": "played_ratio_pct", "min_rating": 50.0, **_CORE},
        "listened": {"rating_column": "played_ratio_pct", "min_rating": 50.0},
        "listened-organic": {"rating_column": "organic_ratio_pct", "min_rating": 50.0},
        "organic": _ORGANIC,
        "all": {},
    },
    **_ABOUT,
)
def read_listens(archive: Path, *mappings: Path) -> RawDataset:
    """Read listens; a track counts as listened from half of its length on (``played_ratio_pct``)."""
    raw = _read(archive, mappings, "is_organic", "played_ratio_pct")
    # One threshold for both conditions: the part of an organic listen that was played, and 0 of another.
    both = pl.col("played_ratio_pct") * (pl.col("is_organic") == 1)
    return dataclasses.replace(
        raw, interactions=raw.interactions.with_columns(both.alias("organic_ratio_pct"))
    )


@public_dataset(
    "yambda-likes",
    title="Yambda, likes (flat/50m/likes.parquet)",
    size="8,283 users, 181,304 tracks, 881,456 likes",
    files=("likes.parquet", *_MAPPINGS),
    downloads=(f"{_FILES}flat/50m/likes.parquet", *(f"{_FILES}{name}" for name in _MAPPINGS)),
    rules={"5-core": _CORE, "organic": _ORGANIC, "all": {}},
    **_ABOUT,
)
def read_likes(archive: Path, *mappings: Path) -> RawDataset:
    """Read likes."""
    return _read(archive, mappings, "is_organic")


def _read(archive: Path, mappings: Sequence[Path], *extra: str) -> RawDataset:
    columns = {"user": "uid", "item": "item_id", "timestamp": "timestamp", **{name: name for name in extra}}
    log = parquet_columns(archive, columns)
    attributes = _attributes(log, mappings)
    return RawDataset(log, {}, attributes=attributes, options={"time_unit": "s"})


def _attributes(log: pl.LazyFrame, mappings: Sequence[Path]) -> dict[str, list[str]] | None:
    """``artist 5`` and ``album 7`` of each track of the log, from the files of mappings that are given."""
    attributes: dict[str, list[str]] = {}
    for path in mappings:
        kind = path.name.partition("_")[0]
        pairs = parquet_columns(path, {"item": "item_id", "value": f"{kind}_id"})
        with reading(f"archive {path.name!r}"):
            pairs = pairs.join(log.select("item").unique(), on="item", how="semi").unique()
            rows = pairs.sort("item", "value").collect(engine="streaming").rows()
        for item, value in rows:
            attributes.setdefault(str(item), []).append(f"{kind} {value}")
    return attributes or None
