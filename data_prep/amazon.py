"""Amazon reviews of 2014 (https://snap.stanford.edu/data/amazon/productGraph/; terms unclear, do not
redistribute).

Two files, two lines of work. ``ratings_Beauty.csv`` (all ratings) with the one-pass filter is SASRec's Beauty
(57,289 items). ``reviews_Beauty_5.json.gz`` (already a 5-core) is S3-Rec's (22,363 users, 12,101 items,
198,502 interactions), with brand and categories below the root as attributes from ``meta_Beauty.json.gz``.
Times are whole days, so the audit finds that many leave-one-out targets hang on the order of the file.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from typing import Any, Literal

import polars as pl

from data_prep.archives import PathLike, checked, table, unpacked
from jaxrec.data import SequenceDataset, load_dataset
from jaxrec.errors import DataError


def load_amazon_ratings(
    path: PathLike,
    *,
    name: str = "amazon-beauty",
    filter: Literal["none", "k-core", "one-pass"] = "one-pass",
    min_interactions: int = 5,
) -> SequenceDataset:
    """``ratings_*.csv`` (user,item,rating,seconds without a header; also .gz).

    Args:
      name: of the dataset.
      filter, min_interactions: as in `jaxrec.data.load_dataset`; the default is SASRec's.
    """
    source = checked(path)
    ratings = table(unpacked(path), ("user", "item", "rating", "timestamp"), ",")
    dataset = load_dataset(
        ratings.select("user", "item", "timestamp"),
        name=name,
        filter=filter,
        min_interactions=min_interactions,
    )
    return dataclasses.replace(dataset, meta={**dataset.meta, "source": source})


def load_amazon_reviews(
    path: PathLike,
    *,
    metadata: PathLike | None = None,
    name: str = "amazon-beauty-5core",
    min_interactions: int = 5,
) -> SequenceDataset:
    """``reviews_*_5.json.gz`` by S3-Rec's rule: iterative k-core, stable sort by time.

    Args:
      metadata: ``meta_*.json.gz`` for titles, brands and categories below the root; None = without.
      name: of the dataset.
      min_interactions: of the k-core.
    """
    source = checked(path)
    fields = ("reviewerID", "asin", "unixReviewTime")
    rows = [[review.get(field) for field in fields] for review in _records(path)]
    table_of_items, attributes = None, None
    if metadata is not None:
        products = [product for product in _records(metadata) if "asin" in product]
        attributes = {product["asin"]: _attributes(product) for product in products}
        table_of_items = pl.DataFrame(
            {"item": [p["asin"] for p in products], "title": [str(p.get("title", "")) for p in products]}
        )
    dataset = load_dataset(
        pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row", infer_schema_length=None),
        name=name,
        filter="k-core",
        min_interactions=min_interactions,
        item_table=table_of_items,
        item_attributes=attributes,
    )
    return dataclasses.replace(dataset, meta={**dataset.meta, "source": source})


def _records(path: PathLike) -> list[dict[str, Any]]:
    """One object a line: JSON in the review files, Python literals in the metadata."""
    records = []
    for number, line in enumerate(unpacked(path).decode().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            try:
                records.append(ast.literal_eval(line))
            except (ValueError, SyntaxError):
                raise DataError(f"line {number} of {path!s} is neither JSON nor a Python literal") from None
    return records


def _attributes(product: dict[str, Any]) -> list[str]:
    """Brand, then every category below the root of each path."""
    brand = [str(product["brand"])] if product.get("brand") else []
    return brand + [str(category) for path in product.get("categories", []) for category in path[1:]]
