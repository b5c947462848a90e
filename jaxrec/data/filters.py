"""Filters of a log: the rules that papers used, recorded in ``meta["steps"]`` with counts before and
after."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxrec.data.dataset import AttributeTable, SequenceDataset
from jaxrec.data.interactions import InteractionLog, from_dataset, to_dataset
from jaxrec.errors import ConfigError


class Filter(Protocol):
    """Anything that thins out a log."""

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """The interactions that stay, in their order."""
        ...


def _check_threshold(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}; leave the filter out to keep everything")


@dataclasses.dataclass(frozen=True)
class KCore:
    """Iterative k-core (S3-Rec and most later work): drop users and items with fewer than their minimum of
    interactions until none is left.

    Attributes:
      k: fewest interactions of a user and of an item.
    """

    k: int

    def __post_init__(self) -> None:
        _check_threshold("k", self.k)

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        keep = np.ones(len(log), bool)
        users, items = log.users, log.items
        user_counts = np.bincount(users, minlength=len(log.user_ids))
        item_counts = np.bincount(items, minlength=len(log.item_ids))
        places = np.arange(len(log))
        passes = 0
        while True:
            passes += 1
            stay = (user_counts[users] >= self.k) & (item_counts[items] >= self.k)
            if stay.all():
                break
            # Only what falls is counted again, so a pass costs what is left.
            user_counts -= np.bincount(users[~stay], minlength=len(user_counts))
            item_counts -= np.bincount(items[~stay], minlength=len(item_counts))
            keep[places[~stay]] = False
            users, items, places = users[stay], items[stay], places[stay]
        return log.select(keep, {"filter": "k-core", "k": self.k, "passes": passes})


@dataclasses.dataclass(frozen=True)
class OnePass:
    """SASRec's filter: one pass on the raw counts drops an interaction whose user or item has fewer than
    ``minimum``. It is not iterated, so shorter users and rarer items remain.

    Attributes:
      minimum: fewest raw interactions of a user and of an item.
    """

    minimum: int

    def __post_init__(self) -> None:
        _check_threshold("minimum", self.minimum)

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        enough_user = np.bincount(log.users, minlength=len(log.user_ids)) >= self.minimum
        enough_item = np.bincount(log.items, minlength=len(log.item_ids)) >= self.minimum
        keep = enough_user[log.users] & enough_item[log.items]
        return log.select(keep, {"filter": "one-pass", "minimum": self.minimum})


@dataclasses.dataclass(frozen=True)
class FirstOfPair:
    """Keep the first row, in file order, of each (user, item): no repeats remain."""

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        pairs = log.users.astype(np.int64) * len(log.item_ids) + log.items
        keep = np.zeros(len(log), bool)
        keep[np.unique(pairs, return_index=True)[1]] = True
        return log.select(keep, {"filter": "first-of-pair"})


def apply_filters(log: InteractionLog, filters: Sequence[Filter]) -> InteractionLog:
    """The filters one after the other."""
    for each in filters:
        log = each(log)
    return log


def filter_dataset(dataset: SequenceDataset, filters: Sequence[Filter]) -> SequenceDataset:
    """A smaller dataset; users and items are numbered anew, titles and attributes follow."""
    log = apply_filters(from_dataset(dataset), filters)
    inherited = ("name", "source", "columns", "time", "order", "license", "steps")

    def titles(item_ids: Sequence[str]) -> Sequence[str]:
        assert dataset.item_titles is not None
        return [dataset.item_titles[int(item) - 1] for item in dataset.item_indices(item_ids)]

    def attributes(item_ids: Sequence[str]) -> AttributeTable:
        table = dataset.attributes
        assert table is not None
        names = list(table.names)
        old = dataset.item_indices(item_ids)
        return AttributeTable.from_lists([[names[a - 1] for a in table.of_item(int(item))] for item in old])

    return to_dataset(
        log,
        meta={key: dataset.meta[key] for key in inherited if key in dataset.meta},
        titles=titles if dataset.item_titles is not None else None,
        attributes=attributes if dataset.attributes is not None else None,
    )
