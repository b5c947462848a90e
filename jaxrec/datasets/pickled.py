"""The pickled form of BERT4Rec-VAE-Pytorch and its descendants (LRURec, LlamaRec): ``dataset.pkl``, read as data alone.

A pickle is a program. Here its instructions are listed and followed by a reader of our own, which knows those that build
numbers, text, lists, tuples, sets and dictionaries, and no other: nothing that a file names can be imported or called.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import content
from jaxrec.errors import DataError

_PARTS = ("train", "val", "test")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *(
            "UNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE",
            "BINUNICODE8",
            "STRING",
            "SHORT_BINSTRING",
            "BINSTRING",
        ),
    )
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_FROM_MARK: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list, "TUPLE": tuple, "FROZENSET": frozenset, "DICT": lambda values: _pairs(values),
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


class _Reader:
    """The values that the instructions have built so far."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks of the marks that are open
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> bool:
        """Carry out an instruction; False for one that builds no plain value."""
        if name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _FROM_MARK:
            values = self._from_mark()
            self.stack.append(_FROM_MARK[name](values))
        elif name in _TUPLES:
            values = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(values[::-1]))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"):
            self._extend(name)
        else:
            return self._remember(name, argument)
        return True

    def _from_mark(self) -> list[Any]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def _extend(self, name: str) -> None:
        """Add values to the container before them."""
        if name.endswith("S"):
            values = self._from_mark()
        else:
            values = [self.stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
        kind = {"A": list, "S": dict}[name[0]] if name != "ADDITEMS" else set
        container = self.stack[-1]
        if type(container) is not kind:
            raise ValueError(f"{name} to a {type(container).__name__}")
        if kind is list:
            container.extend(values)
        else:
            container.update(_pairs(values) if kind is dict else values)

    def _remember(self, name: str, argument: Any) -> bool:
        """Carry out an instruction about marks and values that occur again; False for any other."""
        if name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        else:
            return name in ("PROTO", "FRAME", "STOP")
        return True


def plain_pickle(text: bytes, name: str) -> Any:
    """Return the value of a pickle of plain values.

    Args:
      text: the whole file.
      name: of the file, for messages.

    Raises:
      DataError: the file is damaged, or holds anything but numbers, text, lists, tuples, sets and dictionaries.
    """
    reader = _Reader()
    try:
        for code, argument, _ in pickletools.genops(io.BytesIO(text)):
            if not reader.follow(code.name, argument):
                what = f" {argument}" if code.name in ("GLOBAL", "INST") else ""
                raise DataError(
                    f"file {name!r} uses the pickle instruction {code.name}{what}: expected plain numbers, text, lists and "
                    "dictionaries, since anything else could run code; save it again with int() and list() around its values"
                )
        (value,) = reader.stack
    except DataError:
        raise
    except Exception as error:  # a malformed pickle raises errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"file {name!r} is not a readable pickle: {reason}") from None
    return value


@public_dataset(
    "pickled",
    title="Any dataset.pkl of BERT4Rec-VAE-Pytorch, LRURec or LlamaRec",
    size="that of the dataset",
    url="https://github.com/jaywonchung/BERT4Rec-VAE-Pytorch",
    licence="that of the dataset",
    citation="that of the dataset",
    files=("dataset.pkl",),
    rules={"all": {}, "5-core": {"filter": "k-core", "min_interactions": 5}},
)
def read_pickled(archive: Path) -> RawDataset:
    """Read a dictionary with ``train``, ``val`` and ``test`` (user -> items, oldest first), ``umap`` and ``smap``.

    Original ids come from the two maps (original id -> number), titles from ``meta`` (number -> title) where it is there.
    """
    value = plain_pickle(content(archive), archive.name)
    if not isinstance(value, dict) or any(not isinstance(value.get(part), dict) for part in _PARTS):
        raise DataError(
            f"file {archive.name!r} must hold a dictionary with train, val and test, each user -> items"
        )
    user_ids, item_ids = (_original(value.get(key), key, archive.name) for key in ("umap", "smap"))
    users: list[str] = []
    items: list[str] = []
    for user in value["train"]:
        whole = [item for part in _PARTS for item in _sequence(value[part], part, user, archive.name)]
        users += [user_ids.get(user, str(user))] * len(whole)
        items += [item_ids.get(item, str(item)) for item in whole]
    note = {"warnings": ["the source has no times: its order is taken for the order of the interactions"]}
    titles = value.get("meta")
    table = None
    if isinstance(titles, dict):
        rows = [(item_ids.get(item, str(item)), str(title)) for item, title in titles.items()]
        table = pl.DataFrame(rows, schema={"item": pl.String, "title": pl.String}, orient="row")
    return RawDataset(pl.DataFrame({"user": users, "item": items}), {}, items=table, meta=note)


def _sequence(sequences: Mapping[Any, Any], part: str, user: Any, name: str) -> Sequence[Any]:
    """Items of a user in one part; none where the part lacks the user."""
    sequence = sequences.get(user, ())
    if not isinstance(sequence, (list, tuple)) or not all(isinstance(item, (int, str)) for item in sequence):
        raise DataError(
            f"file {name!r} must hold a list of items, each a number or text, for user {user!r} in {part}; "
            f"got {sequence!r:.100}"
        )
    return sequence


def _original(numbers: Any, key: str, name: str) -> Mapping[Any, str]:
    """Number -> original id; the numbers themselves are the ids where there is no map."""
    if numbers is None:
        return {}
    if not isinstance(numbers, dict):
        raise DataError(
            f"{key} of file {name!r} must be a dictionary of original ids, got {type(numbers).__name__}"
        )
    return {number: str(original) for original, number in numbers.items()}
