"""Last.fm of HetRec 2011 (https://grouplens.org/datasets/hetrec-2011/; non-commercial use).

S3-Rec's ``LastFM.txt`` follows from ``user_taggedartists-timestamps.dat``, position for position: keep the first row of each
(user, artist) in file order with that row's time, iterative 5-core, stable sort by time within a user, ids by first
appearance. The interactions are therefore taggings, not plays.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import member, table


@public_dataset(
    "lastfm",
    title="Last.fm of HetRec 2011",
    size="1,892 users, 12,523 artists, 186,479 taggings",
    url="https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
    licence="non-commercial use",
    citation="Cantador, Brusilovsky and Kuflik, HetRec 2011, RecSys 2011",
    files=("hetrec2011-lastfm-2k.zip",),
    downloads=("https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",),
    rules={
        "s3rec": {"first_of_pair": True, "filter": "k-core", "min_interactions": 5},
        "first-of-pair": {"first_of_pair": True},
        "all": {},
    },
    md5=("296d61afe4e8632b173fc2dd3be20ce2",),
    sha256=("6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",),
)
def read_lastfm(archive: Path) -> RawDataset:
    """Read taggings with artists' names as titles and tags as attributes."""

    def rows(name: str, columns: tuple[str, ...], encoding: str = "utf-8") -> pl.DataFrame:
        # The first row names the columns.
        return table(member(archive, name), columns, "\t", encoding=encoding).slice(1)

    taggings = rows("user_taggedartists-timestamps.dat", ("user", "item", "tag", "timestamp"))
    artists = rows("artists.dat", ("item", "title", "url", "picture"))
    tags = rows("tags.dat", ("tag", "name"), "latin-1")
    tag_names = dict(tags.iter_rows())
    attributes: dict[str, list[str]] = {}
    for artist, tag in taggings.select("item", "tag").iter_rows():
        attributes.setdefault(artist, []).append(tag_names.get(tag, tag))
    return RawDataset(
        taggings.select("user", "item", "timestamp"),
        {},
        items=artists.select("item", "title"),
        attributes=attributes,
        options={"time_unit": "ms"},
    )
