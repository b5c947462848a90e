"""MovieTweetings: ratings that people tweeted (https://github.com/sidooms/MovieTweetings, MIT licence).

Every rating counts as an interaction. The 5-core of the 100K snapshot has 4,333 users, 2,414 items and 68,055 interactions;
it is bundled as "movietweetings".
"""

from __future__ import annotations

from pathlib import Path

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import has_member, member, table


@public_dataset(
    "movietweetings-100k",
    title="MovieTweetings, 100K snapshot",
    size="16,554 users, 10,506 items, 100,000 ratings",
    url="https://github.com/sidooms/MovieTweetings",
    licence="MIT, Copyright 2013 Simon Dooms",
    citation="Dooms, De Pessemier and Martens, MovieTweetings, CrowdRec at RecSys 2013",
    files=("movietweetings-100K_raw.zip",),
    rules={"5-core": {"filter": "k-core", "min_interactions": 5}, "all": {}},
    sha256=("ce8255b178be608ad46b71b66af31e908a5f289bdc0b0095d46179dfaee3c910",),
)
def read_movietweetings(archive: Path) -> RawDataset:
    """Read ratings and movies; ids become "tt0111161", titles are "Name (Year)", genres are attributes."""
    # The zip of the whole repository has other snapshots too.
    folder = "100K/" if has_member(archive, "100K/ratings.dat") else ""
    columns = ("user", "item", "rating", "timestamp")
    ratings = table(member(archive, f"{folder}ratings.dat"), columns, "::")
    movies = table(member(archive, f"{folder}movies.dat"), ("item", "title", "genres"), "::")
    ratings, movies = (
        frame.with_columns(("tt" + frame["item"].str.zfill(7)).alias("item")) for frame in (ratings, movies)
    )
    return RawDataset(
        ratings, {"edition": "snapshots/100K"}, items=movies, options={"attribute_columns": ("genres",)}
    )
