"""The pickled form of BERT4Rec-VAE-Pytorch and its descendants (LRURec, LlamaRec): ``dataset.pkl``, read as data alone.

A pickle is a program. Here its instructions are listed first, and a file with any but those that build numbers, text, lists,
tuples, sets and dictionaries is refused before one of them runs; so nothing that a file names is imported or called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import content
from jaxrec.errors import DataError

#: Instructions that build plain values and refer to none outside the file.
_PLAIN = (
    "PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET POP POP_MARK DUP NONE NEWTRUE NEWFALSE "
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "STRING SHORT_BINSTRING BINSTRING EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT "
    "SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET"
)
_PARTS = ("train", "val", "test")


class _PlainUnpickler(pickle.Unpickler):
    """A second guard: names are refused whatever the list of instructions let through."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def plain_pickle(text: bytes, name: str) -> Any:
    """Return the value of a pickle of plain values.

    Args:
      text: the whole file.
      name: of the file, for messages.

    Raises:
      DataError: the file is damaged, or holds anything but numbers, text, lists, tuples, sets and dictionaries.
    """
    plain = frozenset(_PLAIN.split())
    try:
        for number, (code, argument, _) in enumerate(pickletools.genops(io.BytesIO(text))):
            if code.name not in plain:
                what = f" {argument}" if code.name in ("GLOBAL", "INST") else ""
                raise DataError(
                    f"file {name!r} uses the pickle instruction {code.name}{what}: expected plain numbers, text, lists and "
                    "dictionaries, since anything else could run code; save it again with int() and list() around its values"
                )
            # The reader makes room for as many remembered values as the largest number says.
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number:
                raise ValueError("it remembers more values than it has")
        return _PlainUnpickler(io.BytesIO(text)).load()
    except DataError:
        raise
    except Exception as error:  # a malformed pickle raises errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"file {name!r} is not a readable pickle: {reason}") from None


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
    for user, sequence in value["train"].items():
        whole = [*sequence, *(item for part in _PARTS[1:] for item in value[part].get(user, ()))]
        users += [user_ids.get(user, str(user))] * len(whole)
        items += [item_ids.get(item, str(item)) for item in whole]
    note = {"warnings": ["the source has no times: its order is taken for the order of the interactions"]}
    titles = value.get("meta")
    table = None
    if isinstance(titles, dict):
        rows = [(item_ids.get(item, str(item)), str(title)) for item, title in titles.items()]
        table = pl.DataFrame(rows, schema={"item": pl.String, "title": pl.String}, orient="row")
    return RawDataset(pl.DataFrame({"user": users, "item": items}), {}, items=table, meta=note)


def _original(numbers: Any, key: str, name: str) -> Mapping[Any, str]:
    """Number -> original id; the numbers themselves are the ids where there is no map."""
    if numbers is None:
        return {}
    if not isinstance(numbers, dict):
        raise DataError(
            f"{key} of file {name!r} must be a dictionary of original ids, got {type(numbers).__name__}"
        )
    return {number: str(original) for original, number in numbers.items()}
