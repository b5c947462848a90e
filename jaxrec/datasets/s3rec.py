"""S3-Rec's files: ``user item item ...`` per line, attributes as JSON, and 99 sampled negatives per user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.data.readers.text import parse_sequences
from jaxrec.datasets.archives import member
from jaxrec.errors import DataError

#: Registered name -> name of the files, and users, items and interactions.
NAMES = {
    "s3rec-beauty": ("Beauty", (22_363, 12_101, 198_502)),
    "s3rec-lastfm": ("LastFM", (1_090, 3_646, 52_551)),
    "s3rec-sports": ("Sports_and_Outdoors", (35_598, 18_357, 296_337)),
    "s3rec-toys": ("Toys_and_Games", (19_412, 11_924, 167_597)),
    "s3rec-yelp": ("Yelp", (30_431, 20_033, 316_354)),
}


def _register(name: str, stem: str, counts: tuple[int, int, int]) -> None:
    @public_dataset(
        name,
        title=f"{stem.replace('_', ' ')}, as S3-Rec prepared it",
        size="{:,} users, {:,} items, {:,} interactions".format(*counts),
        url="https://github.com/RUCAIBox/CIKM2020-S3Rec",
        licence="research",
        citation="Zhou et al., S3-Rec: Self-Supervised Learning for Sequential Recommendation, CIKM 2020",
        files=("s3rec_data.zip",),
        rules={"all": {}},
    )
    def read(archive: Path) -> RawDataset:
        """Read sequences without times, with attributes as the numbers of the file."""
        lines = member(archive, f"{stem}.txt").decode().splitlines()
        attributes: dict[str, Any] = json.loads(member(archive, f"{stem}_item2attributes.json"))
        frame = parse_sequences(lines, f"{stem}.txt")
        return RawDataset(frame, {"member": f"{stem}.txt"}, attributes=attributes)


for _name, (_stem, _counts) in NAMES.items():
    _register(_name, _stem, _counts)


def sampled_negatives(archive: Path, name: str, dataset: SequenceDataset) -> np.ndarray:
    """int32[U, n], the negatives that S3-Rec's sampled protocol ranks against each user's target.

    Args:
      archive: a zip that holds ``<name>_sample.txt``.
      name: of the files, such as "LastFM".
      dataset: with the users of that file.

    Raises:
      DataError: users without negatives, an unknown item, or lists of different lengths.
    """
    lines = member(archive, f"{name}_sample.txt").decode().splitlines()
    rows = [line.split() for line in lines if line.strip()]
    of_user = {row[0]: row[1:] for row in rows}
    missing = [user for user in dataset.user_ids if user not in of_user]
    if missing:
        raise DataError(
            f"{len(missing)} users have no negatives in {name}_sample.txt, the first is {missing[0]!r}"
        )
    lists = [dataset.item_indices(of_user[user]) for user in dataset.user_ids]
    if len({len(negatives) for negatives in lists}) != 1:
        raise DataError(f"the users of {name}_sample.txt have different numbers of negatives")
    negatives = np.stack(lists)
    if not negatives.all():
        raise DataError(f"{name}_sample.txt has items that {name}.txt lacks")
    return negatives
