"""`SequenceDataset`: every user's interactions, oldest first, as flat arrays that can live on disk."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxrec.data.catalogue import AttributeTable, StringArray, digest
from jaxrec.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Interactions of U users with V items. The arrays may be memory-mapped; treat them as read-only.

    Attributes:
      items: int32[N], item ids 1..V (0 is padding and never here), user after user, oldest first.
      offsets: int64[U + 1]; user u owns ``items[offsets[u]:offsets[u + 1]]``.
      user_ids, item_ids: original ids as strings; ``item_ids[i - 1]`` is the id of item i.
      timestamps: int64[N] in seconds, never decreasing within a user, or None where only the order is known.
      item_titles: V strings indexed like ``item_ids``, or None.
      attributes: `AttributeTable`, or None.
      meta: name, source and its checksum, every filter applied with counts before and after.

    Raises:
      DataError: arrays of the wrong type or length, item ids outside 1..V, or times that run backwards.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    timestamps: np.ndarray | None = None
    item_titles: Sequence[str] | None = None
    attributes: AttributeTable | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # False only where a saved dataset is opened: its content was checked when it was written, and a scan
    # would read the whole file.
    check_content: dataclasses.InitVar[bool] = True

    def __post_init__(self, check_content: bool) -> None:
        for name in ("user_ids", "item_ids", "item_titles"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, StringArray.of(getattr(self, name)))
        self._check_shapes()
        if check_content:
            self._check_content()
            # What a file said of its content does not hold for arrays that came from elsewhere
            # (dataclasses.replace).
            stale = ("fingerprint", "counts", "arrays", "format", "version")
            object.__setattr__(self, "meta", {k: v for k, v in self.meta.items() if k not in stale})

    def _check_shapes(self) -> None:
        for name, array, dtype in (
            ("items", self.items, np.int32),
            ("offsets", self.offsets, np.int64),
            ("timestamps", self.timestamps, np.int64),
        ):
            if array is not None and (array.dtype != dtype or array.ndim != 1):
                raise DataError(
                    f"{name} must be a one-dimensional {np.dtype(dtype)} array, "
                    f"got {array.dtype} of shape {array.shape}"
                )
        lengths: tuple[tuple[str, Any, int, str], ...] = (
            ("offsets", self.offsets, len(self.user_ids) + 1, "users + 1"),
            ("timestamps", self.timestamps, len(self.items), "interactions"),
            ("item_titles", self.item_titles, self.n_items, "items"),
            (
                "attributes.offsets",
                self.attributes and self.attributes.offsets,
                self.n_items + 2,
                "items + 2",
            ),
        )
        for name, values, expected, what in lengths:
            if values is not None and len(values) != expected:
                raise DataError(f"{name} must have {expected} entries ({what}), got {len(values)}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise DataError(
                f"offsets must run from 0 to the {len(self.items)} interactions, "
                f"got {self.offsets[0]} to {self.offsets[-1]}"
            )

    def _check_content(self) -> None:
        if np.any(np.diff(self.offsets) < 0):
            raise DataError("offsets must not decrease: user u owns items[offsets[u]:offsets[u + 1]]")
        wrong = np.flatnonzero((self.items < 1) | (self.items > self.n_items))
        if len(wrong):
            raise DataError(
                f"items must be 1..{self.n_items} (0 is padding), got {self.items[wrong[0]]} at position "
                f"{wrong[0]} ({len(wrong)} such interactions)"
            )
        if self.timestamps is not None and len(self.timestamps) > 1:
            backwards = self.timestamps[1:] < self.timestamps[:-1]
            starts = self.offsets[1:-1]
            backwards[starts[(starts > 0) & (starts < len(self.items))] - 1] = False
            if backwards.any():
                place = int(np.flatnonzero(backwards)[0])
                user = int(np.searchsorted(self.offsets, place, side="right")) - 1
                raise DataError(
                    f"timestamps must not decrease within a user, but those of user "
                    f"{self.user_ids[user]!r} do at position {place + 1}: "
                    "sort by time first, or use load_dataset, which does"
                )

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """V; item ids are 1..V."""
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        """N."""
        return len(self.items)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self.meta.get("name", "unnamed"))

    @property
    def lengths(self) -> np.ndarray:
        """int64[U], interactions of each user."""
        return np.diff(self.offsets)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of items, offsets, timestamps and original ids (not of titles and
        attributes)."""
        return str(self.meta.get("fingerprint") or self.compute_fingerprint())

    def compute_fingerprint(self) -> str:
        """The fingerprint from the content itself, whatever ``meta`` says."""
        return digest(
            (
                ("items", self.items),
                ("offsets", self.offsets),
                ("timestamps", self.timestamps),
                ("user_ids", cast(StringArray, self.user_ids)),
                ("item_ids", cast(StringArray, self.item_ids)),
            )
        )

    @property
    def counts(self) -> dict[str, int]:
        """Users, items and interactions, as ``meta.json`` records them."""
        return {"users": self.n_users, "items": self.n_items, "interactions": self.n_interactions}

    @functools.cached_property
    def _item_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.item_ids, start=1)}

    def item_index(self, original_id: Any) -> int | None:
        """Item id 1..V of an original id (compared as a string), or None where it is unknown."""
        return self._item_numbers.get(str(original_id))

    def item_indices(self, original_ids: Iterable[Any]) -> np.ndarray:
        """int32[n], item ids of original ids; 0 where one is unknown."""
        return np.array([self._item_numbers.get(str(name), 0) for name in original_ids], np.int32)

    def history(self, user: int) -> np.ndarray:
        """int32[n], the items of user index ``user``, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write to a directory of ``.npy`` files and ``meta.json``, which must be empty or new."""
        from jaxrec.data.dataset import save_dataset

        save_dataset(self, directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, verify: bool = False) -> SequenceDataset:
        """Open a saved dataset, memory-mapped; ``verify`` reads it all and compares the fingerprint.

        Raises:
          DataError: the directory is missing, foreign, truncated, or (with ``verify``) changed.
        """
        from jaxrec.data.dataset import open_dataset

        return open_dataset(directory, verify=verify)

    def __repr__(self) -> str:
        return (
            f"SequenceDataset({self.name!r}, {self.n_users:,} users, {self.n_items:,} items, "
            f"{self.n_interactions:,} interactions)"
        )


FORMAT = "jaxrec.SequenceDataset"
VERSION = 1


def save_dataset(dataset: SequenceDataset, directory: str | os.PathLike[str]) -> None:
    """Write ``dataset``; ``meta.json`` comes last, so an interrupted save is recognised as incomplete.

    Raises:
      DataError: ``directory`` is a file, or a directory that holds anything.
    """
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(
            f"directory {str(path)!r} is not empty: give a new or empty directory, nothing was written"
        )
    path.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, StringArray):
            arrays[f"{name}_bytes"], arrays[f"{name}_offsets"] = value.data, value.offsets
        elif value is not None:
            arrays[name] = value

    for name in ("items", "offsets", "timestamps", "user_ids", "item_ids", "item_titles"):
        add(name, getattr(dataset, name))
    if dataset.attributes is not None:
        for name in ("offsets", "values", "names"):
            add(f"attribute_{name}", getattr(dataset.attributes, name))
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    meta = {
        **dataset.meta,
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "counts": dataset.counts,
        "arrays": {name: {"dtype": array.dtype.str, "length": len(array)} for name, array in arrays.items()},
    }
    (path / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_dataset(directory: str | os.PathLike[str], *, verify: bool = False) -> SequenceDataset:
    """Open a saved dataset; see `SequenceDataset.load`."""
    path = Path(directory)
    meta = _read_meta(path)
    arrays = {name: _open_array(path, name, expected) for name, expected in meta["arrays"].items()}

    def strings(name: str) -> StringArray:
        return StringArray(arrays[f"{name}_bytes"], arrays[f"{name}_offsets"])

    missing = {"items", "offsets", "user_ids_bytes", "item_ids_bytes"} - arrays.keys()
    if missing:
        raise DataError(
            f"dataset {str(path)!r} lacks {', '.join(sorted(missing))}: its meta.json was altered"
        )
    attributes = None
    if "attribute_offsets" in arrays:
        attributes = AttributeTable(
            arrays["attribute_offsets"], arrays["attribute_values"], strings("attribute_names")
        )
    dataset = SequenceDataset(
        items=arrays["items"],
        offsets=arrays["offsets"],
        user_ids=strings("user_ids"),
        item_ids=strings("item_ids"),
        timestamps=arrays.get("timestamps"),
        item_titles=strings("item_titles") if "item_titles_bytes" in arrays else None,
        attributes=attributes,
        meta=meta,
        check_content=verify,
    )
    if verify and dataset.compute_fingerprint() != meta["fingerprint"]:
        raise DataError(
            f"dataset {str(path)!r} has changed since it was saved: its fingerprint is not the one in "
            "meta.json; build it again from the source"
        )
    return dataset


def _read_meta(path: Path) -> dict[str, Any]:
    advice = "give the directory that SequenceDataset.save wrote"
    if not path.is_dir():
        raise DataError(f"dataset directory {str(path)!r} does not exist: {advice}")
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"directory {str(path)!r} has no meta.json, so it is no dataset or an interrupted save: {advice}"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{str(path / 'meta.json')!r} is not valid JSON ({error}): save the dataset again"
        ) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise DataError(f"{str(path / 'meta.json')!r} has format {found!r}, expected {FORMAT!r}: {advice}")
    if meta.get("version") != VERSION:
        raise DataError(
            f"dataset {str(path)!r} has version {meta.get('version')!r}, this release reads version "
            f"{VERSION}: build it again from the source"
        )
    return cast("dict[str, Any]", meta)


def _open_array(path: Path, name: str, expected: dict[str, Any]) -> np.ndarray:
    file = path / f"{name}.npy"
    again = "build the dataset again from the source"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"dataset {str(path)!r} lacks the file {file.name}: {again}") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"dataset file {str(file)!r} is truncated or damaged ({error}): {again}") from None
    if array.dtype.str != expected["dtype"] or array.shape != (expected["length"],):
        raise DataError(
            f"dataset file {str(file)!r} holds {array.dtype.str} of shape {array.shape}, meta.json says "
            f"{expected['dtype']} of length {expected['length']}: {again}"
        )
    return array
