"""MovieLens (https://grouplens.org/datasets/movielens/): 1M, and the editions in CSV (latest-small, 20M,
25M).

Redistribution is not allowed, so these read the official archive that you download; every rating is an
interaction.

A note on ML-1M: the ``ml-1m.txt`` of the SASRec line of work comes from the same ratings, but many ratings of
one user share a second and that file broke these ties in an order that cannot be recovered. Sorting
``ratings.dat``
by time, ties in file order, gives a different last item for about a quarter of the users: report results on
the two files apart.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import polars as pl

from data_prep.archives import PathLike, checked, member, table
from jaxrec.data import SequenceDataset, load_dataset

Filter = Literal["none", "k-core", "one-pass"]
ML_1M_SHA256 = "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
ML_1M_MD5 = "c4d9eecfca2ab87c1945afe126590906"


def load_ml_1m(
    archive: PathLike, *, filter: Filter = "one-pass", min_interactions: int = 5, verify: bool = True
) -> SequenceDataset:
    """MovieLens 1M with titles and genres; the default filter is that of SASRec (3,416 items remain).

    Args:
      archive: ``ml-1m.zip``.
      filter, min_interactions: as in `jaxrec.data.load_dataset`.
      verify: compare the checksum.
    """
    source = checked(archive, sha256=(ML_1M_SHA256,), md5=(ML_1M_MD5,), verify=verify)
    ratings = table(member(archive, "ratings.dat"), ("user", "item", "rating", "timestamp"), "::")
    movies = table(member(archive, "movies.dat"), ("item", "title", "genres"), "::", encoding="latin-1")
    dataset = load_dataset(
        ratings.select("user", "item", "timestamp"),
        name="ml-1m",
        filter=filter,
        min_interactions=min_interactions,
        item_table=movies,
        attribute_columns=("genres",),
    )
    return dataclasses.replace(dataset, meta={**dataset.meta, "source": source})


def load_movielens_csv(
    archive: PathLike, *, name: str = "ml-latest-small", filter: Filter = "none", min_interactions: int = 5
) -> SequenceDataset:
    """An edition with ``ratings.csv`` and ``movies.csv``, with titles and genres.

    Args:
      archive: ``ml-latest-small.zip`` (its content changes over time, so no checksum is compared),
        ``ml-20m.zip``, ...
      name: of the dataset.
      filter, min_interactions: as in `jaxrec.data.load_dataset`.
    """
    source = checked(archive)
    dataset = load_dataset(
        pl.read_csv(member(archive, "ratings.csv"), infer_schema=False),
        name=name,
        filter=filter,
        min_interactions=min_interactions,
        item_table=pl.read_csv(member(archive, "movies.csv"), infer_schema=False),
        attribute_columns=("genres",),
    )
    return dataclasses.replace(dataset, meta={**dataset.meta, "source": source})
