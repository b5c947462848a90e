"""Amazon reviews of 2014, 2018 and 2023 (terms unclear, do not redistribute).

2014 (https://snap.stanford.edu/data/amazon/productGraph/): ``ratings_Beauty.csv`` (all ratings) with the one-pass filter is
SASRec's Beauty (57,289 items), and BERT4Rec's after users with fewer than five left are dropped once more (40,226 users,
54,542 items, 353,962 interactions); ``reviews_Beauty_5.json.gz`` (already a 5-core) is S3-Rec's (22,363 users, 12,101 items,
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
_BERT4REC: dict[str, Any] = {"filter": "one-pass-then-users", "min_interactions": 5}
_RULES = {"sasrec": _SASREC, "bert4rec": _BERT4REC, "5-core": _CORE, "all": {}}
_CORE_FIRST = {"5-core": _CORE, "sasrec": _SASREC, "bert4rec": _BERT4REC, "all": {}}

#: Category -> ratings of 2014, 2018 and 2023 in full, reviews of the 5-cores of 2014 and 2018.
SIZES = {
    "beauty": ("2,023,070", "371,345", "701,528", "198,502", "5,269"),
    "sports": ("3,268,695", "12,980,837", "19.6 million", "296,337", "2,839,940"),
    "toys": ("2,252,771", "8,201,231", "16.3 million", "167,597", "1,828,971"),
    "games": ("1,324,753", "2,565,349", "4.6 million", "231,780", "497,577"),
    "books": ("22,507,155", "51,311,621", "29.5 million", "8,898,041", "27,164,983"),
}

#: Name here -> category of 2014, of 2018 and 2023.
CATEGORIES = {
    "beauty": ("Beauty", "All_Beauty", "All_Beauty"),
    "sports": ("Sports_and_Outdoors", "Sports_and_Outdoors", "Sports_and_Outdoors"),
    "toys": ("Toys_and_Games", "Toys_and_Games", "Toys_and_Games"),
    "games": ("Video_Games", "Video_Games", "Video_Games"),
    "books": ("Books", "Books", "Books"),
}


def _register(
    name: str, year: int, title: str, url: str, files: tuple[str, ...], rules: Any, size: str
) -> Callable[..., Any]:
    return public_dataset(
        name,
        title=title,
        size=size,
        url=url,
        licence="terms unclear, no redistribution",
        citation=_CITATIONS[year],
        files=files,
        rules=rules,
    )


def _products(
    metadata: Path, categories: Callable[[Mapping[str, Any]], list[Any]]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Titles, and brand with ``categories`` as attributes, of the products in a metadata file."""
    titles: dict[str, str] = {}
    attributes: dict[str, list[str]] = {}
    for product in records(metadata):
        if "asin" not in product:
            continue
        brand = [str(product["brand"])] if product.get("brand") else []
        attributes[product["asin"]] = brand + [str(category) for category in categories(product)]
        titles[product["asin"]] = str(product.get("title") or "")
    return titles, attributes


def _categories_2014(product: Mapping[str, Any]) -> list[Any]:
    """Categories below the root of every path."""
    return [category for path in product.get("categories") or [] for category in path[1:]]


def _categories_2018(product: Mapping[str, Any]) -> list[Any]:
    """Categories below the root of the one path."""
    return (product.get("category") or [])[1:]


def read_ratings_2014(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read ``user,item,rating,seconds`` without a header; metadata as for the reviews."""
    ratings = table(content(archive), ("user", "item", "rating", "timestamp"), ",")
    return _with_products(ratings, metadata, _categories_2014)


def read_reviews_2014(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read reviews as JSON lines; metadata as JSON or Python literals, with brand and categories below the root."""
    return _with_products(_reviews(archive), metadata, _categories_2014)


def read_ratings_2018(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read ``item,user,rating,seconds`` without a header: the item comes first in this edition."""
    ratings = table(content(archive), ("item", "user", "rating", "timestamp"), ",")
    return _with_products(ratings, metadata, _categories_2018)


def read_reviews_2018(archive: Path, metadata: Path | None = None) -> RawDataset:
    """Read reviews and metadata as JSON lines; ``category`` is one path from the root."""
    return _with_products(_reviews(archive), metadata, _categories_2018)


def _reviews(archive: Path) -> pl.DataFrame:
    fields = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
    return columns_of(archive, fields, required=("user", "item", "timestamp"))


def _with_products(
    interactions: pl.DataFrame, metadata: Path | None, categories: Callable[[Mapping[str, Any]], list[Any]]
) -> RawDataset:
    """Interactions with titles, brands and categories, where there is a metadata file."""
    if metadata is None:
        return RawDataset(interactions, {})
    titles, attributes = _products(metadata, categories)
    items = pl.DataFrame(
        {"item": list(titles), "title": list(titles.values())}, schema={"item": pl.String, "title": pl.String}
    )
    return RawDataset(interactions, {}, items=items, attributes=attributes)


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
        full_2014, full_2018, full_2023, core_2014, core_2018 = SIZES[name]
        _register(
            f"amazon-{name}", 2014, f"Amazon 2014, {first}, all ratings", f"{_2014}ratings_{first}.csv",
            (f"ratings_{first}.csv", f"meta_{first}.json.gz"), _RULES, f"{full_2014} ratings",
        )(read_ratings_2014)  # fmt: skip
        _register(
            f"amazon-{name}-5core", 2014, f"Amazon 2014, {first}, 5-core with metadata",
            f"{_2014}reviews_{first}_5.json.gz", (f"reviews_{first}_5.json.gz", f"meta_{first}.json.gz"), _CORE_FIRST,
            f"{core_2014} reviews",
        )(read_reviews_2014)  # fmt: skip
        _register(
            f"amazon-2018-{name}", 2018, f"Amazon 2018, {second}, all ratings", _2018,
            (f"{second}.csv", f"meta_{second}.json.gz"), _RULES, f"{full_2018} ratings",
        )(read_ratings_2018)  # fmt: skip
        _register(
            f"amazon-2018-{name}-5core", 2018, f"Amazon 2018, {second}, 5-core with metadata", _2018,
            (f"{second}_5.json.gz", f"meta_{second}.json.gz"), _CORE_FIRST, f"{core_2018} reviews",
        )(read_reviews_2018)  # fmt: skip
        _register(
            f"amazon-2023-{name}", 2023, f"Amazon 2023, {third}", _2023, (f"{third}.csv", f"meta_{third}.jsonl.gz"),
            _CORE_FIRST, f"{full_2023} ratings",
        )(read_2023)  # fmt: skip


_register_all()
