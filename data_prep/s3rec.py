"""S3-Rec's files: ``user item item ...`` a line, attributes as JSON, and 99 sampled negatives a user."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from data_prep.archives import PathLike, checked, member
from jaxrec.data import SequenceDataset, load_dataset
from jaxrec.data.readers.text import parse_sequences
from jaxrec.errors import DataError

NAMES = ("Beauty", "LastFM", "Sports_and_Outdoors", "Toys_and_Games", "Yelp")


def load_s3rec(archive: PathLike, name: str) -> SequenceDataset:
    """One of S3-Rec's datasets, order only, with its attributes (as the numbers of the file).

    Args:
      archive: a zip with ``<name>.txt`` and ``<name>_item2attributes.json``.
      name: one of `NAMES`.
    """
    if name not in NAMES:
        raise DataError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    source = checked(archive)
    lines = member(archive, f"{name}.txt").decode().splitlines()
    dataset = load_dataset(
        parse_sequences(lines, f"{name}.txt"),
        name=f"s3rec-{name.lower()}",
        item_attributes=json.loads(member(archive, f"{name}_item2attributes.json")),
    )
    return dataclasses.replace(dataset, meta={**dataset.meta, "source": {**source, "member": f"{name}.txt"}})


def sampled_negatives(archive: PathLike, name: str, dataset: SequenceDataset) -> np.ndarray:
    """int32[U, n], the negatives that S3-Rec's sampled protocol ranks against each user's target.

    Args:
      archive, name: as for `load_s3rec`; the archive must hold ``<name>_sample.txt``.
      dataset: what `load_s3rec` returned.

    Raises:
      DataError: users without negatives, an unknown item, or lists of different lengths.
    """
    rows = [
        line.split() for line in member(archive, f"{name}_sample.txt").decode().splitlines() if line.strip()
    ]
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
