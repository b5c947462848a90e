"""Sessions of shops: Retailrocket, Diginetica (CIKM Cup 2016) and Yoochoose (RecSys Challenge 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.data.readers.tables import reading
from jaxrec.datasets.archives import content, has_member, headed_table, is_archive
from jaxrec.errors import DataError

_CORE: dict[str, Any] = {"filter": "k-core", "min_interactions": 5}
_SRGNN: dict[str, Any] = {"filter": "sessions", "min_interactions": 5, "min_user_interactions": 2}
_EVENTS = ("view", "addtocart", "transaction")
_PROPERTIES = ("item_properties_part1.csv", "item_properties_part2.csv")
_TREE = "category_tree.csv"


@public_dataset(
    "retailrocket",
    title="Retailrocket events",
    size="1,407,580 visitors, 235,061 items, 2,756,101 events",
    url="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
    licence="CC BY-NC-SA 4.0",
    citation="Retailrocket recommender system dataset, Kaggle, 2016",
    files=("events.csv", "item_properties_part1.csv", "item_properties_part2.csv", "category_tree.csv"),
    rules={
        "5-core": _CORE,
        "all": {},
        "carts": {"rating_column": "event", "min_rating": 2.0},
        "purchases": {"rating_column": "event", "min_rating": 3.0},
    },
)
def read_retailrocket(archive: Path, *others: Path) -> RawDataset:
    """Read ``events.csv``, or a zip that holds it; events become 1 (view), 2 (addtocart) and 3 (transaction).

    Attributes of an item are its newest category and those above it, from the files of properties and the tree of
    categories, where they are in the zip or given.
    """
    events = headed_table(
        content(archive, "events.csv" if is_archive(archive) else ""),
        {"timestamp": "timestamp", "user": "visitorid", "event": "event", "item": "itemid"},
    )
    unknown = events.filter(~pl.col("event").is_in(_EVENTS))["event"].unique().to_list()
    if unknown:
        raise DataError(f"events must be {', '.join(_EVENTS)}; got {', '.join(map(repr, unknown[:5]))}")
    levels = {name: str(level) for level, name in enumerate(_EVENTS, start=1)}
    return RawDataset(
        events.with_columns(pl.col("event").replace(levels)), {},
        attributes=_categories(archive, others), options={"time_unit": "ms"},
    )  # fmt: skip


def _categories(archive: Path, others: Sequence[Path]) -> dict[str, list[str]] | None:
    """Newest category of each item, and those above it; None without files of properties."""
    packed = is_archive(archive)
    texts = [content(archive, name) for name in _PROPERTIES if packed and has_member(archive, name)] + [
        content(path) for path in others if "tree" not in path.name
    ]
    if not texts:
        return None
    columns = {"time": "timestamp", "item": "itemid", "property": "property", "value": "value"}
    frames = [headed_table(text, columns).filter(pl.col("property") == "categoryid") for text in texts]
    with reading(f"archive {archive.name!r}"):
        newest = (
            pl.concat(frames).sort(pl.col("time").cast(pl.Int64), maintain_order=True).group_by("item").last()
        )
    trees = [path for path in others if "tree" in path.name]
    above: dict[str, str] = {}
    if trees or (packed and has_member(archive, _TREE)):
        text = content(trees[0]) if trees else content(archive, _TREE)
        rows = headed_table(text, {"category": "categoryid", "parent": "parentid"}).drop_nulls().rows()
        above = dict(rows)
    return {item: _path(category, above) for item, category in newest.select("item", "value").iter_rows()}


def _path(category: str, above: Mapping[str, str]) -> list[str]:
    """A category and those above it, each once, so that a tree with a cycle ends too."""
    path = [category]
    while (parent := above.get(path[-1])) is not None and parent not in path:
        path.append(parent)
    return path


@public_dataset(
    "diginetica",
    title="Diginetica item views, one sequence per session",
    size="310,324 sessions, 122,993 items, 1,235,380 views",
    url="https://competitions.codalab.org/competitions/11161",
    licence="CIKM Cup 2016: research",
    citation="CIKM Cup 2016 Track 2: Personalized E-Commerce Search Challenge",
    files=("dataset-train-diginetica.zip", "product-categories.csv"),
    rules={"5-core": _CORE, "srgnn": _SRGNN, "all": {}},
)
def read_diginetica(archive: Path, categories: Path | None = None) -> RawDataset:
    """Read ``train-item-views.csv``, or a zip that holds it; the time is the date plus milliseconds in the session.

    The category of an item is its attribute where ``product-categories.csv`` is in the zip or given.
    """
    packed = is_archive(archive)
    views = headed_table(
        content(archive, "train-item-views.csv" if packed else ""),
        {"user": "sessionId", "item": "itemId", "offset": "timeframe", "date": "eventdate"},
        ";",
    )
    with reading(f"archive {archive.name!r}"):
        days = views["date"].str.to_date("%Y-%m-%d").cast(pl.Int64) * 86_400_000
        times = days + views["offset"].cast(pl.Int64)
    attributes = None
    if categories is not None or (packed and has_member(archive, "product-categories.csv")):
        text = content(categories) if categories is not None else content(archive, "product-categories.csv")
        rows = headed_table(text, {"item": "itemId", "category": "categoryId"}, ";").drop_nulls().rows()
        attributes = {item: [category] for item, category in rows}
    return RawDataset(
        views.select("user", "item").with_columns(times.alias("timestamp")), {},
        attributes=attributes, options={"time_unit": "ms"},
    )  # fmt: skip


@public_dataset(
    "yoochoose",
    title="Yoochoose clicks, one sequence per session",
    size="9,249,729 sessions, 52,739 items, 33,003,944 clicks",
    url="https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015",
    licence="CC BY-NC-ND 4.0",
    citation="Ben-Shimon et al., RecSys Challenge 2015 and the YOOCHOOSE Dataset, RecSys 2015",
    files=("yoochoose-clicks.dat",),
    rules={"5-core": _CORE, "srgnn": _SRGNN, "all": {}},
)
def read_yoochoose(archive: Path) -> RawDataset:
    """Read ``yoochoose-clicks.dat`` (session, time, item, category; unpack the official 7z first), as a stream.

    Attributes of an item are the categories and brands of its clicks; 0 means none, and S a special offer at that time.
    """
    options: dict[str, Any] = {"has_header": False, "infer_schema": False, "quote_char": None}
    with reading(f"archive {archive.name!r}"):
        if is_archive(archive):
            frame = pl.read_csv(content(archive, "yoochoose-clicks.dat"), **options).lazy()
        else:
            frame = pl.scan_csv(archive, glob=False, **options)
        names = frame.collect_schema().names()
    if len(names) != 4:
        raise DataError(
            f"the lines of {archive.name!r} have {len(names)} fields, expected session, time, item, category"
        )
    clicks = frame.rename(dict(zip(names, ("user", "timestamp", "item", "category"), strict=True)))
    of_items = clicks.select("item", "category").filter(~pl.col("category").is_in(["0", "S"])).unique()
    with reading(f"archive {archive.name!r}"):
        rows = of_items.sort("item", "category").collect(engine="streaming").rows()
    attributes: dict[str, list[str]] = {}
    for item, category in rows:
        attributes.setdefault(item, []).append(category)
    return RawDataset(clicks.select("user", "item", "timestamp"), {}, attributes=attributes or None)
