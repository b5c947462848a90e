"""Last.fm of HetRec 2011 (https://grouplens.org/datasets/hetrec-2011/; non-commercial use).

S3-Rec's ``LastFM.txt`` follows from ``user_taggedartists-timestamps.dat``, position for position: keep the
first row of each (user, artist) in file order with that row's time, iterative 5-core, stable sort by time
within a user, ids by first appearance. The interactions are therefore taggings, not plays.
"""

from __future__ import annotations

import dataclasses

import polars as pl

from data_prep.archives import PathLike, checked, member, table
from jaxrec.data import SequenceDataset, load_dataset

MD5 = "296d61afe4e8632b173fc2dd3be20ce2"
SHA256 = "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c"


def load_lastfm(archive: PathLike, *, min_interactions: int = 5, verify: bool = True) -> SequenceDataset:
    """S3-Rec's LastFM (1,090 users, 3,646 artists, 52,551 taggings), with names as titles and tags as
    attributes.

    Args:
      archive: ``hetrec2011-lastfm-2k.zip``.
      min_interactions: of the iterative k-core.
      verify: compare the checksum.
    """
    source = checked(archive, md5=(MD5,), sha256=(SHA256,), verify=verify)

    def rows(name: str, columns: tuple[str, ...], encoding: str = "utf-8") -> pl.DataFrame:
        # The first row names the columns.
        return table(member(archive, name), columns, "\t", encoding=encoding).slice(1)

    taggings = rows("user_taggedartists-timestamps.dat", ("user", "item", "tag", "timestamp"))
    artists = rows("artists.dat", ("item", "title", "url", "picture"))
    tags = rows("tags.dat", ("tag", "name"), "latin-1")
    tag_names = dict(tags.iter_rows())
    of_artist: dict[str, list[str]] = {}
    for artist, tag in taggings.select("item", "tag").iter_rows():
        of_artist.setdefault(artist, []).append(tag_names.get(tag, tag))
    dataset = load_dataset(
        taggings.select("user", "item", "timestamp"),
        name="lastfm",
        time_unit="ms",
        first_of_pair=True,
        filter="k-core",
        min_interactions=min_interactions,
        item_table=artists.select("item", "title"),
        item_attributes=of_artist,
    )
    return dataclasses.replace(dataset, meta={**dataset.meta, "source": source})
