"""Gowalla check-ins of SNAP: a user, a time and a place per line, newest first."""

from __future__ import annotations

from pathlib import Path

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import content, table


@public_dataset(
    "gowalla",
    title="Gowalla check-ins",
    size="107,092 users, 1,280,969 places, 6,442,890 check-ins",
    url="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
    licence="research",
    citation="Cho, Myers and Leskovec, Friendship and Mobility, KDD 2011",
    files=("loc-gowalla_totalCheckins.txt.gz",),
    downloads=("https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",),
    rules={
        "5-core": {"filter": "k-core", "min_interactions": 5},
        "first-of-pair-5-core": {"first_of_pair": True, "filter": "k-core", "min_interactions": 5},
        "scalable-sasrec": {"filter": "items-then-users", "min_interactions": 5, "min_user_interactions": 20},
        "all": {},
    },
)
def read_gowalla(archive: Path) -> RawDataset:
    """Read check-ins; the file lists each user's newest first, so that ties in time are turned round too."""
    columns = ("user", "timestamp", "latitude", "longitude", "item")
    checkins = table(content(archive), columns, "\t").select("user", "item", "timestamp")
    return RawDataset(checkins.reverse(), {})
