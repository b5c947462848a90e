"""Steam reviews, as SASRec used them: Python literals, one per line, that are never evaluated."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import columns_of, records


@public_dataset(
    "steam",
    title="Steam reviews",
    size="2,567,538 users, 15,474 games, 7,793,069 reviews",
    url="https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz",
    licence="terms unclear, no redistribution",
    citation="Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018",
    files=("steam_reviews.json.gz", "steam_games.json.gz"),
    rules={
        "sasrec": {"filter": "one-pass", "min_interactions": 5},
        "bert4rec": {"filter": "one-pass-then-users", "min_interactions": 5},
        "5-core": {"filter": "k-core", "min_interactions": 5},
        "all": {},
    },
)
def read_steam(archive: Path, games: Path | None = None) -> RawDataset:
    """Read reviews and, where given, names, genres and tags of games. Times are whole days."""
    fields = {"user": "username", "item": "product_id", "timestamp": "date"}
    reviews = columns_of(archive, fields, required=("user", "item", "timestamp"))
    if games is None:
        return RawDataset(reviews, {})
    ids, names, attributes = [], [], {}
    for game in records(games):
        if game.get("id") is None:
            continue
        number = str(game["id"])
        ids.append(number)
        names.append(str(game.get("app_name") or game.get("title") or ""))
        attributes[number] = [str(name) for key in ("genres", "tags") for name in game.get(key) or []]
    items = pl.DataFrame({"item": ids, "title": names}, schema={"item": pl.String, "title": pl.String})
    return RawDataset(reviews, {}, items=items, attributes=attributes)
