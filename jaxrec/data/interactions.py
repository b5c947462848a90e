"""`InteractionLog`: interactions in file order, with filters that thin them out and `to_dataset`, which sorts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from jaxrec.data.catalogue import AttributeTable, StringArray
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class InteractionLog:
    """N interactions in file order; users and items are codes into the lists of their original ids.

    Attributes:
      users, items: int32[N], codes 0...
      times: int64[N] in units of ``1 / times_per_second`` seconds, or None where the file order is the order.
      user_ids, item_ids: original id of each code; codes without an interaction are dropped by `to_dataset`.
      times_per_second: 1 for seconds, 1000 for milliseconds, ...: sorting uses the full resolution.
      steps: filters applied so far, as entries of ``meta["steps"]``.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: StringArray
    item_ids: StringArray
    times_per_second: int = 1
    steps: tuple[Mapping[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.users)

    def counts(self) -> dict[str, int]:
        """Count the users and items that occur, and the interactions."""
        return {
            "users": int(np.count_nonzero(np.bincount(self.users))),
            "items": int(np.count_nonzero(np.bincount(self.items))),
            "interactions": len(self),
        }

    def select(self, keep: np.ndarray, step: Mapping[str, Any]) -> InteractionLog:
        """Return the interactions where ``keep`` holds, and record ``step`` with the counts before and after.

        Args:
          keep: bool[N].
          step: entry of ``meta["steps"]``.

        Raises:
          DataError: nothing is left.
        """
        rest = dataclasses.replace(
            self,
            users=self.users[keep],
            items=self.items[keep],
            times=None if self.times is None else self.times[keep],
        )
        if not len(rest):
            raise DataError(
                f"filter {step.get('filter')!r} leaves none of {len(self)} interactions: lower its thresholds"
            )
        record = {**step, "before": self.counts(), "after": rest.counts()}
        return dataclasses.replace(rest, steps=(*self.steps, record))


def to_dataset(
    log: InteractionLog,
    *,
    meta: Mapping[str, Any],
    titles: Callable[[Sequence[str]], Sequence[str]] | None = None,
    attributes: Callable[[Sequence[str]], AttributeTable] | None = None,
) -> SequenceDataset:
    """Build the sequences of a log.

    Users are numbered by first appearance in the log, items by first appearance in the sequences (S3-Rec's rule). The sort
    by (user, time) is stable: ties in time keep file order.

    Args:
      log: at least one interaction.
      meta: entries for the dataset's ``meta``; the log's steps are added under ``steps``.
      titles: function from the dataset's item ids, in order, to their titles, or None.
      attributes: the same for attributes.
    """
    user_codes, users = by_first_appearance(log.users, len(log.user_ids))
    order = stable_order(users, log.times)
    if order is not None:
        users = users[order]
    items = log.items if order is None else log.items[order]
    item_codes, items = by_first_appearance(items, len(log.item_ids))
    timestamps = None
    if log.times is not None:
        times = log.times if order is None else log.times[order]
        timestamps = (times // log.times_per_second if log.times_per_second > 1 else times).astype(np.int64)
    offsets = np.zeros(len(user_codes) + 1, np.int64)
    np.cumsum(np.bincount(users, minlength=len(user_codes)), out=offsets[1:])
    item_ids = log.item_ids.take(item_codes)
    items += np.int32(1)
    return SequenceDataset(
        items=items,
        offsets=offsets,
        user_ids=log.user_ids.take(user_codes),
        item_ids=item_ids,
        timestamps=timestamps,
        item_titles=titles(item_ids) if titles else None,
        attributes=attributes(item_ids) if attributes else None,
        meta={
            "order": order_note(log.times is not None, order is not None),
            **meta,
            "steps": [*meta.get("steps", ()), *log.steps],
        },
    )


def order_note(timed: bool, moved: bool) -> dict[str, Any]:
    """Return the entry ``order`` of ``meta``: whether there are times, and whether sorting moved a row."""
    keys = "user and time" if timed else "user"
    return {"rule": f"stable sort by {keys}; ties keep source order", "rows_moved": moved}


def from_dataset(dataset: SequenceDataset) -> InteractionLog:
    """Return the log of a dataset, user after user."""
    users = np.repeat(np.arange(dataset.n_users, dtype=np.int32), dataset.lengths)
    return InteractionLog(
        users=users,
        items=np.asarray(dataset.items) - np.int32(1),
        times=None if dataset.timestamps is None else np.asarray(dataset.timestamps),
        user_ids=StringArray.of(dataset.user_ids),
        item_ids=StringArray.of(dataset.item_ids),
    )


def by_first_appearance(codes: np.ndarray, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Old codes by first appearance, int64[K], and the renumbered codes, int32[N]."""
    first = np.full(n_codes, len(codes), np.int64)
    # Of repeated indices NumPy keeps the last assignment; written backwards, that is the first appearance.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    by_appearance = np.argsort(first, kind="stable")
    present = by_appearance[: int(np.count_nonzero(first < len(codes)))]
    renumbered = np.zeros(n_codes, np.int32)
    renumbered[present] = np.arange(len(present), dtype=np.int32)
    return present, renumbered[codes]


def stable_order(users: np.ndarray, times: np.ndarray | None) -> np.ndarray | None:
    """Order of a stable sort by (user, time), or None where the log is already in it."""
    if times is None:
        return None if bool(np.all(users[1:] >= users[:-1])) else np.argsort(users, kind="stable")
    same = users[1:] == users[:-1]
    if bool(np.all((users[1:] > users[:-1]) | (same & (times[1:] >= times[:-1])))):
        return None
    low, high = int(times.min()), int(times.max())
    if (int(users.max()) + 1) * (high - low + 1) < 2**63:
        key = users.astype(np.int64)  # one 64-bit key sorts in half the time and memory of two
        key *= high - low + 1
        key += times
        key -= low
        return np.argsort(key, kind="stable")
    return np.lexsort((times, users))


class Filter(Protocol):
    """Function that thins out a log."""

    @property
    def step(self) -> dict[str, Any]:
        """Entry of ``meta["steps"]``, but for what only applying it shows."""
        ...

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Return the interactions that stay, in their order."""
        ...


def _check_threshold(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}; leave the filter out to use everything")


@dataclasses.dataclass(frozen=True)
class KCore:
    """Iterative k-core, as in S3-Rec and most later work.

    Users and items with fewer than k interactions are dropped until none is left.

    Attributes:
      k: fewest interactions of a user and of an item.
      users: fewest interactions of a user, where it is another number; 0 = k.
    """

    k: int
    users: int = 0

    def __post_init__(self) -> None:
        _check_threshold("k", self.k)

    @property
    def step(self) -> dict[str, Any]:
        """Entry of ``meta["steps"]``."""
        return {"filter": "k-core", "k": self.k, **({"users": self.users} if self.users else {})}

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
            stay = (user_counts[users] >= (self.users or self.k)) & (item_counts[items] >= self.k)
            if stay.all():
                break
            # Only what falls is counted again, so a pass costs what is left.
            user_counts -= np.bincount(users[~stay], minlength=len(user_counts))
            item_counts -= np.bincount(items[~stay], minlength=len(item_counts))
            keep[places[~stay]] = False
            users, items, places = users[stay], items[stay], places[stay]
        return log.select(keep, {**self.step, "passes": passes})


@dataclasses.dataclass(frozen=True)
class OnePass:
    """SASRec's filter: one pass over the raw counts.

    An interaction whose user or item has fewer than ``minimum`` is dropped. The pass is not iterated, so shorter users and
    rarer items remain.

    Attributes:
      minimum: fewest raw interactions of a user and of an item.
      users: fewest raw interactions of a user, where it is another number; 0 = minimum.
    """

    minimum: int
    users: int = 0

    def __post_init__(self) -> None:
        _check_threshold("minimum", self.minimum)

    @property
    def step(self) -> dict[str, Any]:
        """Entry of ``meta["steps"]``."""
        return {
            "filter": "one-pass",
            "minimum": self.minimum,
            **({"users": self.users} if self.users else {}),
        }

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        enough_user = np.bincount(log.users, minlength=len(log.user_ids)) >= (self.users or self.minimum)
        enough_item = np.bincount(log.items, minlength=len(log.item_ids)) >= self.minimum
        keep = enough_user[log.users] & enough_item[log.items]
        return log.select(keep, self.step)


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Drop users, or items, with fewer than ``minimum`` interactions, once.

    Attributes:
      role: "users" or "items".
      minimum: fewest interactions of each.
    """

    role: Literal["users", "items"]
    minimum: int

    def __post_init__(self) -> None:
        _check_threshold("minimum", self.minimum)

    @property
    def step(self) -> dict[str, Any]:
        """Entry of ``meta["steps"]``."""
        return {"filter": self.role, "minimum": self.minimum}

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        codes = log.users if self.role == "users" else log.items
        return log.select((np.bincount(codes) >= self.minimum)[codes], self.step)


@dataclasses.dataclass(frozen=True)
class ItemsThenUsers:
    """Drop items of too few distinct users, then users of too few distinct items, each once (Scalable-SASRec's rule).

    Attributes:
      minimum: fewest distinct users of an item.
      users: fewest distinct items of a user, among the items that stay.
    """

    minimum: int
    users: int

    def __post_init__(self) -> None:
        _check_threshold("minimum", self.minimum)
        _check_threshold("users", self.users)

    @property
    def step(self) -> dict[str, Any]:
        """Entry of ``meta["steps"]``."""
        return {"filter": "items-then-users", "minimum": self.minimum, "users": self.users}

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        first = _first_of_pair(log)
        known = np.bincount(log.items[first], minlength=len(log.item_ids)) >= self.minimum
        stays = known[log.items]
        distinct = np.bincount(log.users[first & stays], minlength=len(log.user_ids))
        return log.select(stays & (distinct >= self.users)[log.users], self.step)


@dataclasses.dataclass(frozen=True)
class FirstOfPair:
    """Keep the first row, in file order, of each (user, item): no repeats remain."""

    def __call__(self, log: InteractionLog) -> InteractionLog:
        """Apply; the order of the interactions stays."""
        return log.select(_first_of_pair(log), self.step)

    @property
    def step(self) -> dict[str, Any]:
        """Entry of ``meta["steps"]``."""
        return {"filter": "first-of-pair"}


def _first_of_pair(log: InteractionLog) -> np.ndarray:
    """bool[N], the first row of each (user, item)."""
    pairs = log.users.astype(np.int64) * len(log.item_ids) + log.items
    first = np.zeros(len(log), bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    return first


def apply_filters(log: InteractionLog, filters: Sequence[Filter]) -> InteractionLog:
    """Apply the filters one after the other."""
    for one in filters:
        log = one(log)
    return log


def filter_dataset(dataset: SequenceDataset, filters: Sequence[Filter]) -> SequenceDataset:
    """Filter a dataset; users and items are numbered anew, titles, attributes and vectors follow."""
    log = apply_filters(from_dataset(dataset), filters)
    inherited = ("name", "rule", "source", "columns", "time", "order", "license", "steps", "warnings")

    def titles(item_ids: Sequence[str]) -> Sequence[str]:
        assert dataset.item_titles is not None
        return [dataset.item_titles[int(item) - 1] for item in dataset.item_indices(item_ids)]

    def attributes(item_ids: Sequence[str]) -> AttributeTable:
        table = dataset.attributes
        assert table is not None
        names = list(table.names)
        old = dataset.item_indices(item_ids)
        return AttributeTable.from_lists([[names[a - 1] for a in table.of_item(int(item))] for item in old])

    filtered = to_dataset(
        log,
        meta={key: dataset.meta[key] for key in inherited if key in dataset.meta},
        titles=titles if dataset.item_titles is not None else None,
        attributes=attributes if dataset.attributes is not None else None,
    )
    if dataset.item_vectors is None:
        return filtered
    vectors = dataset.item_vectors[dataset.item_indices(filtered.item_ids) - 1]
    return dataclasses.replace(filtered, item_vectors=vectors, check_content=False)
