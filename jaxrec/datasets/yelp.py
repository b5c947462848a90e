"""Yelp Open Dataset: reviews and businesses as JSON lines."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import columns_of, is_archive, records

_REVIEWS = "yelp_academic_dataset_review.json"
_BUSINESSES = "yelp_academic_dataset_business.json"


@public_dataset(
    "yelp",
    title="Yelp Open Dataset, reviews",
    size="1.99 million users, 150,346 businesses, 6,990,280 reviews (2022)",
    url="https://www.yelp.com/dataset",
    licence="Yelp Dataset Terms of Use: academic, no redistribution",
    citation="Yelp Open Dataset, https://www.yelp.com/dataset",
    files=(_REVIEWS, _BUSINESSES),
    rules={
        "5-core": {"filter": "k-core", "min_interactions": 5},
        "positive-5-core": {"min_rating": 4.0, "filter": "k-core", "min_interactions": 5},
        "scalable-sasrec": {"filter": "items-then-users", "min_interactions": 5, "min_user_interactions": 20},
        "all": {},
    },
)
def read_yelp(archive: Path, businesses: Path | None = None) -> RawDataset:
    """Read the reviews file and, where given, the businesses file; or the official tar archive, which holds both."""
    fields = {"user": "user_id", "item": "business_id", "rating": "stars", "timestamp": "date"}
    packed = is_archive(archive)
    reviews = columns_of(archive, fields, _REVIEWS if packed else "", required=("user", "item", "timestamp"))
    if packed:
        businesses = archive
    if businesses is None:
        return RawDataset(reviews, {})
    ids, names, attributes = [], [], {}
    for business in records(businesses, _BUSINESSES if packed else ""):
        place = str(business.get("business_id"))
        ids.append(place)
        names.append(str(business.get("name") or ""))
        # One text, "Sushi Bars, Restaurants", or null.
        attributes[place] = [
            part.strip() for part in str(business.get("categories") or "").split(",") if part.strip()
        ]
    items = pl.DataFrame({"item": ids, "title": names}, schema={"item": pl.String, "title": pl.String})
    return RawDataset(reviews, {}, items=items, attributes=attributes)
