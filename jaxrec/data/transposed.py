"""The transposed log: for each item the users who interacted with it in training, oldest first.

Users and items change places: a sequence of the transposed dataset belongs to an item, and its members are users. Every
encoder trains on it as on any dataset, and then predicts the next user of an item (Revisiting SASRec, experiment E4). Only
the training part of a split is transposed, so that no held-out interaction, neither of validation nor of the test, enters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.interactions import order_note
from jaxrec.data.splits import Split
from jaxrec.errors import ConfigError, DataError

#: Entry of ``meta``: fingerprint and split of the dataset that was transposed, and the length of the sequences.
TRANSPOSED = "transposed"

#: Newest users of an item that its sequence holds, unless another number is asked for.
LAST = 50

#: Lowest number of training interactions of each tier of items.
TIERS = (0, 1, 2, 5, 20, 50, 200)


def transposed(split: Split, last: int = LAST) -> SequenceDataset:
    """Transpose the training part of a split.

    Numbers stay: item i of the log is sequence i - 1, user index u is member u + 1, those without a training interaction
    too. Users of an item with the same time stand in an order that is drawn once for the log: that of their numbers would
    tell the next one.

    >>> from jaxrec.data import load_dataset, split_dataset
    >>> split = split_dataset(load_dataset("movietweetings"))
    >>> reverse = transposed(split)
    >>> reverse.n_users == split.dataset.n_items, reverse.n_items == split.dataset.n_users
    (True, True)

    Args:
      split: of the log.
      last: newest interactions of each item that are kept; 0 = all.

    Raises:
      DataError: the log has no times, without which users have no order.
      ConfigError: ``last`` is below 0.
    """
    dataset = split.dataset
    members = newest_users(split, last)
    users, items, times = members.users, members.items, members.times
    offsets = np.zeros(dataset.n_items + 1, np.int64)
    np.cumsum(np.bincount(items - 1, minlength=dataset.n_items), out=offsets[1:])
    record = {
        "source": dataset.fingerprint,
        "split": dict(split.options),
        "last": last,
        "training_interactions": int(split.training_mask.sum()),
    }
    return SequenceDataset(
        items=users.astype(np.int32) + np.int32(1),
        offsets=offsets,
        user_ids=dataset.item_ids,
        item_ids=dataset.user_ids,
        timestamps=times.astype(np.int64),
        meta={
            "name": f"{dataset.name}-transposed",
            TRANSPOSED: record,
            "order": order_note(True, True),
            **{key: dataset.meta[key] for key in ("source", "license") if key in dataset.meta},
        },
    )


class Members(NamedTuple):
    """Training interactions, item after item and oldest first.

    Attributes:
      users: int64[N], index of the user.
      items: int32[N], 1..V.
      times: int64[N], seconds.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


def newest_users(split: Split, last: int) -> Members:
    """The newest ``last`` training interactions of every item; see `transposed`."""
    if last < 0:
        raise ConfigError(f"--last must be the newest users of an item to keep, or 0 for all; got {last}")
    dataset = split.dataset
    if dataset.timestamps is None:
        raise DataError(
            f"the users of an item are ordered by time, but dataset {dataset.name!r} has no times: name the time column "
            "when loading it (--data.time-column)"
        )
    mask = split.training_mask
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths)[mask]
    items, times = np.asarray(dataset.items)[mask], np.asarray(dataset.timestamps)[mask]
    drawn = np.random.default_rng(0).permutation(dataset.n_users)
    order = np.lexsort((drawn[users], times, items))
    users, items, times = users[order], items[order], times[order]
    if last:
        ends = np.cumsum(np.bincount(items, minlength=dataset.n_items + 1))
        newest = ends[items] - np.arange(len(items)) <= last
        users, items, times = users[newest], items[newest], times[newest]
    return Members(users, items, times)


def item_user_rows(split: Split, newest: int) -> np.ndarray:
    """Newest training users of each item, newest first: int32[V+1, newest], indices of users, -1 = none.

    Args:
      split: of the log.
      newest: users of each item.

    Raises:
      DataError: the log has no times.
    """
    members = newest_users(split, newest)
    ends = np.cumsum(np.bincount(members.items, minlength=split.dataset.n_items + 1))
    rows = np.full((split.dataset.n_items + 1, newest), -1, np.int32)
    rows[members.items, ends[members.items] - 1 - np.arange(len(members.items))] = members.users
    return rows


class Tier(NamedTuple):
    """Items with similar numbers of training interactions.

    Attributes:
      name: range of the numbers.
      items: number of items.
      interactions: their training interactions.
      used: of them, those in the sequences of the transposed log.
      cut: items with more users than a sequence holds.
      trainable: items with at least two users, so that a sequence has an input and a target.
      median: median length of the sequences; 0 where there is no item.
      test_targets: test targets among the items.
    """

    name: str
    items: int
    interactions: int
    used: int
    cut: int
    trainable: int
    median: float
    test_targets: int


@dataclasses.dataclass(frozen=True)
class ReverseCoverage:
    """Extent of the transposed log, by popularity of the items.

    Attributes:
      last: newest users of an item that a sequence holds; 0 = all.
      tiers: from no training interaction upwards.
    """

    last: int
    tiers: tuple[Tier, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"last": self.last, "tiers": [tier._asdict() for tier in self.tiers]}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows of a table."""
        header = ["training interactions", "items", "of all interactions", "interactions used"]
        header += ["sequences cut", "with a target", "median length", "of the test targets"]
        interactions = sum(tier.interactions for tier in self.tiers)
        targets = sum(tier.test_targets for tier in self.tiers)
        rows = [
            [
                tier.name,
                f"{tier.items:,}",
                _share(tier.interactions, interactions),
                _share(tier.used, tier.interactions),
                _share(tier.cut, tier.items),
                _share(tier.trainable, tier.items),
                f"{tier.median:g}",
                _share(tier.test_targets, targets),
            ]
            for tier in self.tiers
        ]
        return header, rows

    def lines(self) -> list[str]:
        """Return sentences for people: totals, and what is cut."""
        items, interactions, used, cut, trainable = (
            sum(getattr(tier, name) for tier in self.tiers)
            for name in ("items", "interactions", "used", "cut", "trainable")
        )
        lines = [
            f"{trainable:,} of {items:,} items have at least two training users, {items - trainable:,} give no target",
            f"sequences hold {used:,} of {interactions:,} training interactions ({_share(used, interactions)})",
        ]
        if cut:
            lines.append(
                f"{cut:,} items have more than {self.last} users, of whom the newest {self.last} are kept: --last 0 keeps "
                "all"
            )
        return lines


def reverse_coverage(split: Split, last: int = LAST, edges: Sequence[int] = TIERS) -> ReverseCoverage:
    """Measure the sequences of the transposed log, by training interactions of the item.

    Args:
      split: of the log.
      last: newest interactions of each item that are kept; 0 = all.
      edges: lowest number of training interactions of each tier, from 0 upwards.

    Raises:
      ConfigError: ``edges`` do not start at 0 and increase.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] != 0:
        raise ConfigError(f"edges of tiers must start at 0 and increase, got {tuple(edges)}")
    counts = split.item_counts[1:]
    lengths = np.minimum(counts, last) if last else counts
    tier_of = np.searchsorted(np.asarray(edges), counts, side="right") - 1
    targets = np.bincount(split.test.targets, minlength=split.dataset.n_items + 1)[1:]
    tiers = []
    for number, low in enumerate(edges):
        inside = tier_of == number
        high = edges[number + 1] - 1 if number + 1 < len(edges) else None
        own = lengths[inside]
        tiers.append(
            Tier(
                name=str(low) if high == low else f"{low} or more" if high is None else f"{low} to {high}",
                items=int(inside.sum()),
                interactions=int(counts[inside].sum()),
                used=int(own.sum()),
                cut=int((counts[inside] > own).sum()),
                trainable=int((own >= 2).sum()),
                median=float(np.median(own)) if len(own) else 0.0,
                test_targets=int(targets[inside].sum()),
            )
        )
    return ReverseCoverage(last, tuple(tiers))


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else "-"
