"""Amazon reviews of 2014, 2018 and 2023 (terms unclear, do not redistribute).

2014 (https://snap.stanford.edu/data/amazon/productGraph/): ``ratings_Beauty.csv`` (all ratings) with the one-pass filter is
SASRec's Beauty (57,289 items); ``reviews_Beauty_5.json.gz`` (already a 5-core) is S3-Rec's (22,363 users, 12,101 items,
198,502 interactions), with brand and categories below the root as attributes from ``meta_Beauty.json.gz``. Times are whole
days, so the audit finds many leave-one-out targets that depend on the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import columns_of, content, headed_table, records, table
from jaxrec.errors import DataError

_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_2018 = "https://nijianmo.github.io/amazon/"
_2023 = "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023"
_CITATIONS = {
    2014: "McAuley et al., Image-based Recommendations on Styles and Substitutes, SIGIR 2015",
    2018: "Ni, Li and McAuley, Justifying Recommendations using Distantly-Labeled Reviews, EMNLP 2019",
    2023: "Hou et al., Bridging Language and Items for Retrieval and Recommendation, arXiv 2403.03952",
}
_SASREC: dict[str, Any] = {"filter": "one-pass", "min_interactions": 5}
_CORE: dict[str, Any] = {"filter": "k-core", "min_interactions": 5}
_RULES = {"sasrec": _SASREC, "5-core": _CORE, "all": {}}
_CORE_FIRST = {"5-core": _CORE, "sasrec": _SASREC, "all": {}}

#: Name here -> category of 2014, of 2018 and 2023.
CATEGORIES = {
    "beauty": ("Beauty", "All_Beauty", "All_Beauty"),
    "sports": ("Sports_and_Outdoors", "Sports_and_Outdoors", "Sports_and_Outdoors"),
    "toys": ("Toys_and_Games", "Toys_and_Games", "Toys_and_Games"),
    "games": ("Video_Games", "Video_Games", "Video_Games"),
    "books": ("Books", "Books", "Books"),
}


def _register(
    name: str, year: int, title: str, url: str, files: tuple[str, ...], rules: Any
) -> Callable[..., Any]:
    return public_dataset(
        name,
        title=title,
        url=url,
        licence="terms unclear, no redistribution",
        citation=_CITATIONS[year],
        files=files,
        rules=rules,
    )


def _products(
    metadata: Path | None, categories: Callable[[Mapping[str, Any]], list[Any]]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Titles, and brand with ``categories`` as attributes, of the products in a metadata file."""
    titles: dict[str, str] = {}
    attributes: dict[str, list[str]] = {}
    for product in records(metadata) if metadata is not None else ():
        if "asin" not in product:
            continue
        brand = [str(product["brand"])] if product.get("brand") else []
        attributes[product["asin"]] = brand + [str(category) for category in categories(product)]
        titles[product["asin"]] = str(product.get("title") or "")
    return titles, attributes


def read_ratings_2014(archive: Path) -> RawDataset:
    """Read ``user,item,rating,seconds`` without a header."""
    return RawDataset(table(content(archive), ("user", "item", "rating", "timestamp"), ","), {})


def read_reviews_2014(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read reviews as JSON lines; metadata as JSON or Python literals, with brand and categories below the root."""

    def categories(product: Mapping[str, Any]) -> list[Any]:
        return [category for path in product.get("categories") or [] for category in path[1:]]

    return _reviews(archive, *_products(metadata, categories), with_items=metadata is not None)


def read_ratings_2018(archive: Path) -> RawDataset:
    """Read ``item,user,rating,seconds`` without a header: the item comes first in this edition."""
    return RawDataset(table(content(archive), ("item", "user", "rating", "timestamp"), ","), {})


def read_reviews_2018(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read reviews and metadata as JSON lines; ``category`` is one path from the root."""

    def categories(product: Mapping[str, Any]) -> list[Any]:
        return (product.get("category") or [])[1:]

    return _reviews(archive, *_products(metadata, categories), with_items=metadata is not None)


def _reviews(
    archive: Path, titles: dict[str, str], attributes: dict[str, list[str]], *, with_items: bool
) -> RawDataset:
    fields = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
    reviews = columns_of(archive, fields, required=("user", "item", "timestamp"))
    if not with_items:
        return RawDataset(reviews, {})
    items = pl.DataFrame(
        {"item": list(titles), "title": list(titles.values())}, schema={"item": pl.String, "title": pl.String}
    )
    return RawDataset(reviews, {}, items=items, attributes=attributes)


def read_2023(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read a rating table (``user_id,parent_asin,rating,timestamp``, milliseconds) or reviews as JSON lines."""
    fields = {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"}
    if ".jsonl" in archive.suffixes:
        ratings = columns_of(archive, fields, required=("user", "item", "timestamp"))
    elif ".csv" in archive.suffixes:
        ratings = headed_table(content(archive), fields)
    else:
        raise DataError(f"archive {archive.name!r} must end in .csv, .csv.gz, .jsonl or .jsonl.gz")
    options = {"time_unit": "ms"}
    if metadata is None:
        return RawDataset(ratings, {}, options=options)
    products = [product for product in records(metadata) if "parent_asin" in product]
    items = pl.DataFrame(
        {
            "item": [str(product["parent_asin"]) for product in products],
            "title": [str(product.get("title") or "") for product in products],
        },
        schema={"item": pl.String, "title": pl.String},
    )
    attributes = {
        str(product["parent_asin"]): [str(product[key]) for key in ("store",) if product.get(key)]
        + [str(name) for name in (product.get("categories") or [])[1:]]
        for product in products
    }
    return RawDataset(ratings, {}, items=items, attributes=attributes, options=options)


def _register_all() -> None:
    for name, (first, second, third) in CATEGORIES.items():
        _register(
            f"amazon-{name}", 2014, f"Amazon 2014, {first}, all ratings", f"{_2014}ratings_{first}.csv",
            (f"ratings_{first}.csv",), _RULES,
        )(read_ratings_2014)  # fmt: skip
        _register(
            f"amazon-{name}-5core", 2014, f"Amazon 2014, {first}, 5-core with metadata",
            f"{_2014}reviews_{first}_5.json.gz", (f"reviews_{first}_5.json.gz", f"meta_{first}.json.gz"), _CORE_FIRST,
        )(read_reviews_2014)  # fmt: skip
        _register(
            f"amazon-2018-{name}",
            2018,
            f"Amazon 2018, {second}, all ratings",
            _2018,
            (f"{second}.csv",),
            _RULES,
        )(read_ratings_2018)
        _register(
            f"amazon-2018-{name}-5core", 2018, f"Amazon 2018, {second}, 5-core with metadata", _2018,
            (f"{second}_5.json.gz", f"meta_{second}.json.gz"), _CORE_FIRST,
        )(read_reviews_2018)  # fmt: skip
        _register(
            f"amazon-2023-{name}", 2023, f"Amazon 2023, {third}", _2023, (f"{third}.csv", f"meta_{third}.jsonl.gz"),
            _CORE_FIRST,
        )(read_2023)  # fmt: skip


_register_all()
