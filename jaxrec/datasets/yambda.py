"""Yambda of Yandex Music: listens and likes as flat Parquet files, seconds in steps of five."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.data.readers.tables import reading
from jaxrec.errors import DataError

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
        "organic": _ORGANIC,
        "all": {},
    },
    **_ABOUT,
)
def read_listens(archive: Path) -> RawDataset:
    """Read listens; a track counts as listened from half of its length on (``played_ratio_pct``)."""
    return _read(archive, ("is_organic", "played_ratio_pct"))


@public_dataset(
    "yambda-likes",
    title="Yambda, likes (flat/50m/likes.parquet)",
    files=("likes.parquet",),
    rules={"5-core": _CORE, "organic": _ORGANIC, "all": {}},
    **_ABOUT,
)
def read_likes(archive: Path) -> RawDataset:
    """Read likes."""
    return _read(archive, ("is_organic",))


def _read(archive: Path, more: tuple[str, ...]) -> RawDataset:
    names = ("uid", "item_id", "timestamp", *more)
    with reading(f"archive {archive.name!r}"):
        frame = pl.scan_parquet(archive)
        present = frame.collect_schema().names()
    absent = [name for name in names if name not in present]
    if absent:
        raise DataError(
            f"{archive.name!r} lacks {', '.join(map(repr, absent))}: its columns are {', '.join(map(repr, present))}"
        )
    events = frame.select(names).rename({"uid": "user", "item_id": "item"})
    return RawDataset(events, {}, options={"time_unit": "s"})
