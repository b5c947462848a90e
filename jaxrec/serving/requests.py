"""Requests: what a caller asks of a recommender, and the numbers that it becomes."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Request:
    """One history with its options.

    Attributes:
      history: original item ids, oldest first; unknown ones are ignored and named in the answer.
      k: length of the list.
      remove_seen: leave out the items of the history; None = as the run was evaluated.
      timestamps: seconds since 1970 of each interaction, for models whose positions are times.
      exclude: ids of items that are no candidates.
      allow: ids of the only candidates; None = all items.
      exclude_attributes: items with one of these attributes are no candidates.
      allow_attributes: only items with one of these attributes are candidates; None = all items.
      user: original id of the user, for models that read whose history it is; None, or an id that training did not have,
        = a new user.
    """

    history: Sequence[Any]
    k: int = 10
    remove_seen: bool | None = None
    timestamps: Sequence[int] | None = None
    exclude: Iterable[Any] = ()
    allow: Iterable[Any] | None = None
    exclude_attributes: Iterable[str] = ()
    allow_attributes: Iterable[str] | None = None
    user: Any = None


class Prepared(NamedTuple):
    """A checked request in numbers.

    Attributes:
      known: int32[n], items of the history that the catalogue has.
      times: int32[n], seconds since the first of them; None for a model that does not read them.
      removed: int32[m], items that are no candidates.
      allowed: int32[a], the only candidates, or None.
      k: length of the list.
      unknown: ids of the history that the catalogue lacks.
      user: index of the user, -1 = a new one.
    """

    known: np.ndarray
    times: np.ndarray | None
    removed: np.ndarray
    allowed: np.ndarray | None
    k: int
    unknown: list[str]
    user: int = -1


#: More items than these are not removed from lists one by one.
MANY_ITEMS = 1 << 14
#: Entries of removed items in one call: a filter that many requests share has no more of them in all, and requests with a
#: list of allowed items may remove all others.
MOST_REMOVED = 1 << 23


def is_wide(left_out: int, requests: int) -> bool:
    """Whether the items that a filter of so many requests leaves out are too many to remove them one by one."""
    return left_out > MANY_ITEMS or left_out * requests > MOST_REMOVED


#: An escape of half a character, which JSON allows and no text holds.
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(data: bytes) -> Any:
    """Value of a JSON text in UTF-8, whose texts can be written again.

    Raises:
      ValueError: it is none, is nested too deeply, or has half a surrogate pair.
    """
    text = data.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if _HALF_CHARACTER.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


class RequestReader:
    """Checks requests against a catalogue.

    Args:
      items: the catalogue.
      remove_seen: what None in a request means.
      needs_times: whether the model reads the time of each interaction.
      needs_users: whether it reads whose history it is; the catalogue then has the ids of the users.
    """

    def __init__(
        self, items: SequenceDataset, remove_seen: bool, needs_times: bool, needs_users: bool = False
    ):
        self.items, self.remove_seen, self.needs_times = items, remove_seen, needs_times
        self.needs_users = needs_users
        self._with_attribute: dict[str, np.ndarray] = {}

    def read(self, requests: Sequence[Request]) -> list[Prepared]:
        """Check every request; a filter that several share is looked up once.

        Raises:
          ConfigError: ``k`` is no integer from 1 to the catalogue.
          DataError: a field is not of its form, timestamps are needed, or a filter has an unknown name.
        """
        shared: dict[tuple[str, Any, bool], np.ndarray] = {}

        def once(name: str, values: Any, others: bool = False) -> np.ndarray:
            key: tuple[str, Any, bool] = (name, id(values), others)
            if name.endswith("attributes") and _is_list(values):
                key = (name, tuple(map(str, values)), others)
            if key not in shared:
                if others:  # an iterator gives its values once
                    shared[key] = self._others(once(name, values))
                elif name.endswith("attributes"):
                    shared[key] = self._attribute_filter(name, values)
                else:
                    shared[key] = self._id_filter(name, values)
            return shared[key]

        def common(filters: Sequence[np.ndarray]) -> np.ndarray:
            """Items in all of the filters: one array for all requests that share these."""
            key = ("common", tuple(map(id, filters)), False)
            if key not in shared:
                shared[key] = functools.reduce(np.intersect1d, filters)
            return shared[key]

        uses = Counter(
            id(filter_) for request in requests for filter_ in (request.exclude, request.exclude_attributes)
        )
        return [self._read(request, once, common, uses) for request in requests]

    def _read(self, request: Request, once: Any, common: Any, uses: Mapping[int, int]) -> Prepared:
        names = [self.items.catalogue.text_of(item) for item in item_list(request.history)]
        seconds = request.timestamps
        if seconds is None and self.needs_times:
            if names:
                raise DataError(
                    "this model needs the time of each interaction: give --timestamps (in Python timestamps=, in a file of "
                    "histories a column timestamps), seconds since 1970 of each item of a history"
                )
            seconds = ()
        k = self._length(request.k)
        remove_seen = self.remove_seen if request.remove_seen is None else request.remove_seen
        if not isinstance(remove_seen, (bool, np.bool_)):
            raise DataError(
                f"remove_seen must be True or False, or one of them per history, got {remove_seen!r}"
            )
        numbers = self.items.item_indices(names)
        known = numbers[numbers > 0]
        removed = [known if remove_seen else known[:0]]
        unwanted = once("exclude", request.exclude)
        attributes = request.exclude_attributes
        if _is_collection(attributes):
            attributes = list(attributes)
        excluded = once("exclude_attributes", attributes)
        wide_ids = is_wide(len(unwanted), uses[id(request.exclude)])
        wide_attributes = is_wide(len(excluded), uses[id(request.exclude_attributes)])
        removed += [items for items, wide in ((unwanted, wide_ids), (excluded, wide_attributes)) if not wide]
        filters = [
            once(name, values)
            for name, values in (("allow", request.allow), ("allow_attributes", request.allow_attributes))
            if values is not None
        ]
        if wide_ids:
            filters.append(once("exclude", request.exclude, others=True))
        if wide_attributes:
            filters.append(once("exclude_attributes", attributes, others=True))
        allowed = common(filters) if filters else None
        times = None if seconds is None else relative_times(seconds, numbers > 0)
        if not self.needs_times:
            times = None
        unknown = [name for name, number in zip(names, numbers, strict=True) if number == 0]
        user = self._user(request.user)
        return Prepared(known, times, np.concatenate(removed), allowed, k, unknown, user)

    @functools.cached_property
    def _users(self) -> dict[str, int]:
        """Index of each user that the model knows."""
        names = self.items.user_ids if self.needs_users else ()
        return {str(name): index for index, name in enumerate(names)}

    def _user(self, user: Any) -> int:
        """The index of a user, -1 for a new one."""
        if user is None:
            return -1
        if isinstance(user, (bytes, list, tuple, set, dict, float)):
            raise DataError(f"user must be an id of a user, or one per history, got {user!r}")
        if not self.needs_users:
            raise DataError(
                f"user names whose history it is, and this model does not read that: got {user!r}; leave user out, or "
                "train with --encoder.user"
            )
        return self._users.get(str(user), -1)

    def _length(self, k: Any) -> int:
        integer = isinstance(k, (int, np.integer)) and not isinstance(k, (bool, np.bool_))
        if not integer or not 1 <= k <= self.items.n_items:
            raise ConfigError(
                f"k must be an integer from 1 to the catalogue's {self.items.n_items} items, got {k!r}"
            )
        return int(k)

    def _others(self, items: np.ndarray) -> np.ndarray:
        """int32, all items but some."""
        others = np.ones(self.items.n_items + 1, bool)
        others[0] = False
        others[items] = False
        return np.flatnonzero(others).astype(np.int32)

    def _id_filter(self, name: str, ids: Any) -> np.ndarray:
        if not _is_collection(ids):
            raise DataError(f"{name} must be a list of item ids, or one such list per history, got {ids!r}")
        texts = [self.items.catalogue.text_of(item) for item in ids]
        numbers = np.asarray(self.items.item_indices(texts), np.int32)
        unknown = [text for text, number in zip(texts, numbers, strict=True) if number == 0]
        _refuse_unknown(f"{name} must hold ids of the catalogue", unknown)
        return np.unique(numbers)

    def _attribute_filter(self, name: str, values: Any) -> np.ndarray:
        if not _is_collection(values):
            raise DataError(
                f"{name} must be a list of attributes, or one such list per history, got {values!r}"
            )
        names, table = [str(value) for value in values], self.items.attributes
        if names and table is None:
            raise DataError(
                f"{name} needs items with attributes, and the run's catalogue has none: train with a dataset that has "
                "them, or give item ids"
            )
        if table is None or not names:
            return np.zeros(0, np.int32)
        numbers = {each: number for number, each in enumerate(table.names, start=1)}
        _refuse_unknown(
            f"{name} must hold attributes of the catalogue", [each for each in names if each not in numbers]
        )
        return np.unique(np.concatenate([self._items_with(each, numbers[each], table) for each in names]))

    def _items_with(self, name: str, number: int, table: AttributeTable) -> np.ndarray:
        """int32, items with an attribute."""
        if name not in self._with_attribute:
            owners = np.repeat(np.arange(len(table.offsets) - 1, dtype=np.int32), np.diff(table.offsets))
            self._with_attribute[name] = owners[np.asarray(table.values) == number]
        return self._with_attribute[name]


def _refuse_unknown(rule: str, unknown: list[str]) -> None:
    if unknown:
        raise DataError(
            f"{rule}, got {', '.join(map(repr, unknown[:5]))}"
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        )


def _is_collection(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def item_list(history: Any) -> list[Any]:
    """Check a history and return its ids as they are; they may be of any type that has the text of an id."""
    message = "histories must be a list of lists of item ids, one list per user"
    if not _is_collection(history):
        raise DataError(f"{message}; got {history!r} as a history")
    items = list(history)
    bad = [
        item
        for item in items
        if item is None or isinstance(item, (bytes, list, tuple, dict)) or _is_nan(item)
    ]
    if bad:
        raise DataError(f"{message}; got {bad[0]!r} as an item id")
    return items


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def relative_times(timestamps: Any, known: np.ndarray) -> np.ndarray:
    """int32, seconds of the known interactions since the first of them; only intervals within a history matter."""
    message = "timestamps must have one entry for each interaction of each history: whole seconds since 1970"
    try:
        count, kind = len(timestamps), np.asarray(timestamps).dtype.kind
        seconds = np.asarray(timestamps, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{message}; {error}") from None
    if count != len(known):
        raise DataError(f"{message}; got {count} for {len(known)} items")
    if seconds.ndim != 1:
        raise DataError(f"{message}; got lists as entries of one history")
    if kind in "mM":  # in days or nanoseconds, as their type has it
        raise DataError(f"{message}; got dates: convert them to seconds")
    if not (
        np.isfinite(seconds).all() and (np.abs(seconds) < 2.0**62).all() and (np.diff(seconds) >= 0).all()
    ):
        raise DataError(f"{message}, oldest first; got {seconds[:5].tolist()}")
    present = np.asarray(timestamps, np.int64)[known]
    since = present - present.min(initial=np.iinfo(np.int64).max)
    return np.minimum(since, np.iinfo(np.int32).max).astype(np.int32)


def requests_of(histories: Any, **options: Any) -> list[Request]:
    """Make one request per history.

    Args:
      histories: original item ids, oldest first; one history per user.
      **options: fields of `Request`; a list has one value per history, for a filter a list of lists, with None where a
        history has none. A single value is for all.

    Raises:
      DataError: histories are no list of lists, or a list has another number of entries.
      ConfigError: ``k`` has another number of entries.
    """
    if not _is_collection(histories):
        raise DataError(
            f"histories must be a list of lists of item ids, one list per user; got {histories!r}"
        )
    named = [item_list(history) for history in histories]
    columns = {name: _per_history(name, value, len(named)) for name, value in options.items()}
    return [
        Request(history, **{name: values[row] for name, values in columns.items()})
        for row, history in enumerate(named)
    ]


#: Fields that hold one value for each history, with the error and the noun of a message.
_ONE_EACH = {
    "k": (ConfigError, "number"),
    "remove_seen": (DataError, "value"),
    "repeats": (DataError, "value"),
    "user": (DataError, "id"),
}


def one_per_history(name: str, value: Any, count: int) -> Sequence[Any]:
    """One value of a field for each of ``count`` histories, from a list of them or a single one for all."""
    if not _is_collection(value) or isinstance(value, Mapping):
        return [value] * count
    listed = list(value)
    if len(listed) != count:
        kind, noun = _ONE_EACH[name]
        raise kind(f"{name} must have one {noun} for each of the {count} histories, got {len(listed)}")
    return listed


def _per_history(name: str, value: Any, count: int) -> Sequence[Any]:
    if name == "timestamps":
        return _timestamps_per_history(value, count)
    if name in _ONE_EACH:
        return one_per_history(name, value, count)
    if value is None or not _is_collection(value):
        return [value] * count
    listed = list(value)
    if not any(map(_is_list, listed)) or not all(each is None or _is_list(each) for each in listed):
        return [listed] * count
    if len(listed) != count:
        raise DataError(f"{name} must have one list for each of the {count} histories, got {len(listed)}")
    return [() if each is None and not name.startswith("allow") else each for each in listed]


def _timestamps_per_history(value: Any, count: int) -> Sequence[Any]:
    if value is None:
        return [None] * count
    message = "timestamps must have one entry for each interaction of each history: whole seconds since 1970"
    if not _is_collection(value) or len(listed := list(value)) != count:
        raise DataError(f"{message}; expected one list per history, {count} in all")
    return listed


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset, np.ndarray))
