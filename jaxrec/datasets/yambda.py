"""Yambda of Yandex Music: listens and likes as flat Parquet files, in the order of user and time.

Columns as its page documents them: ``uid``, ``item_id`` and ``timestamp`` (uint32; seconds since an unpublished moment, in
steps of five), ``is_organic`` (uint8: 1 where the user found the track, 0 where a recommendation led to it) and, for
listens, ``played_ratio_pct`` (uint16; above 100 where parts were played again) and ``track_length_seconds``.
The 500M and 5B editions have the same columns.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import parquet_columns

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
    files=("listens.parquet",),
    rules={
        "listened-5-core": {"rating_column": "played_ratio_pct", "min_rating": 50.0, **_CORE},
        "listened": {"rating_column": "played_ratio_pct", "min_rating": 50.0},
        "listened-organic": {"rating_column": "organic_ratio_pct", "min_rating": 50.0},
        "organic": _ORGANIC,
        "all": {},
    },
    **_ABOUT,
)
def read_listens(archive: Path) -> RawDataset:
    """Read listens; a track counts as listened from half of its length on (``played_ratio_pct``)."""
    raw = _read(archive, "is_organic", "played_ratio_pct")
    # One threshold for both conditions: the part of an organic listen that was played, and 0 of another.
    both = pl.col("played_ratio_pct") * (pl.col("is_organic") == 1)
    return dataclasses.replace(
        raw, interactions=raw.interactions.with_columns(both.alias("organic_ratio_pct"))
    )


@public_dataset(
    "yambda-likes",
    title="Yambda, likes (flat/50m/likes.parquet)",
    files=("likes.parquet",),
    rules={"5-core": _CORE, "organic": _ORGANIC, "all": {}},
    **_ABOUT,
)
def read_likes(archive: Path) -> RawDataset:
    """Read likes."""
    return _read(archive, "is_organic")


def _read(archive: Path, *extra: str) -> RawDataset:
    columns = {"user": "uid", "item": "item_id", "timestamp": "timestamp", **{name: name for name in extra}}
    return RawDataset(parquet_columns(archive, columns), {}, options={"time_unit": "s"})
