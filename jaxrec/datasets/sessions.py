"""Sessions of shops: Retailrocket, Diginetica (CIKM Cup 2016) and Yoochoose (RecSys Challenge 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.data.readers.tables import reading
from jaxrec.datasets.archives import content, headed_table, is_archive
from jaxrec.errors import DataError

_CORE: dict[str, Any] = {"filter": "k-core", "min_interactions": 5}
_EVENTS = ("view", "addtocart", "transaction")


@public_dataset(
    "retailrocket",
    title="Retailrocket events",
    url="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
    licence="CC BY-NC-SA 4.0",
    citation="Retailrocket recommender system dataset, Kaggle, 2016",
    files=("events.csv",),
    rules={
        "5-core": _CORE,
        "all": {},
        "carts": {"rating_column": "event", "min_rating": 2.0},
        "purchases": {"rating_column": "event", "min_rating": 3.0},
    },
)
def read_retailrocket(archive: Path) -> RawDataset:
    """Read ``events.csv``, or a zip that holds it; events become 1 (view), 2 (addtocart) and 3 (transaction)."""
    events = headed_table(
        content(archive, "events.csv" if is_archive(archive) else ""),
        {"timestamp": "timestamp", "user": "visitorid", "event": "event", "item": "itemid"},
    )
    unknown = events.filter(~pl.col("event").is_in(_EVENTS))["event"].unique().to_list()
    if unknown:
        raise DataError(f"events must be {', '.join(_EVENTS)}; got {', '.join(map(repr, unknown[:5]))}")
    levels = {name: str(level) for level, name in enumerate(_EVENTS, start=1)}
    return RawDataset(events.with_columns(pl.col("event").replace(levels)), {}, options={"time_unit": "ms"})


@public_dataset(
    "diginetica",
    title="Diginetica item views, one sequence per session",
    url="https://competitions.codalab.org/competitions/11161",
    licence="CIKM Cup 2016: research",
    citation="CIKM Cup 2016 Track 2: Personalized E-Commerce Search Challenge",
    files=("dataset-train-diginetica.zip",),
    rules={"5-core": _CORE, "all": {}},
)
def read_diginetica(archive: Path) -> RawDataset:
    """Read ``train-item-views.csv``, or a zip that holds it; the time is the date plus milliseconds in the session."""
    views = headed_table(
        content(archive, "train-item-views.csv" if is_archive(archive) else ""),
        {"user": "sessionId", "item": "itemId", "offset": "timeframe", "date": "eventdate"},
        ";",
    )
    with reading(f"archive {archive.name!r}"):
        days = views["date"].str.to_date("%Y-%m-%d").cast(pl.Int64) * 86_400_000
        times = days + views["offset"].cast(pl.Int64)
    return RawDataset(
        views.select("user", "item").with_columns(times.alias("timestamp")), {}, options={"time_unit": "ms"}
    )


@public_dataset(
    "yoochoose",
    title="Yoochoose clicks, one sequence per session",
    url="https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015",
    licence="CC BY-NC-ND 4.0",
    citation="Ben-Shimon et al., RecSys Challenge 2015 and the YOOCHOOSE Dataset, RecSys 2015",
    files=("yoochoose-clicks.dat",),
    rules={"5-core": _CORE, "all": {}},
)
def read_yoochoose(archive: Path) -> RawDataset:
    """Read ``yoochoose-clicks.dat`` (session, time, item, category; unpack the official 7z first), as a stream."""
    options: dict[str, Any] = {"has_header": False, "infer_schema": False, "quote_char": None}
    with reading(f"archive {archive.name!r}"):
        if is_archive(archive):
            frame = pl.read_csv(content(archive, "yoochoose-clicks.dat"), **options).lazy()
        else:
            frame = pl.scan_csv(archive, **options)
        names = frame.collect_schema().names()
    if len(names) != 4:
        raise DataError(
            f"the lines of {archive.name!r} have {len(names)} fields, expected session, time, item, category"
        )
    clicks = frame.rename(dict(zip(names, ("user", "timestamp", "item", "category"), strict=True)))
    return RawDataset(clicks.select("user", "item", "timestamp"), {})
