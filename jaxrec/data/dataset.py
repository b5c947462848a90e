"""`SequenceDataset`: every user's interactions, oldest first, as flat arrays that can live on disk."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from jaxrec.data.catalogue import (
    AttributeTable,
    Catalogue,
    StringArray,
    array_of,
    digest,
    string_arrays,
    strings_of,
)
from jaxrec.data.storage import read_arrays, write_arrays
from jaxrec.errors import DataError
from jaxrec.files import as_path

FORMAT = "jaxrec.SequenceDataset"

#: Entry of ``meta``: the options of `jaxrec.data.DataConfig` that load the dataset again, and the fingerprint they give.
LOADED_WITH = "loaded_with"


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Interactions of U users with V items, as read-only arrays that may be memory-mapped.

    Attributes:
      items: int32[N], item ids 1..V (0 is padding and never here), user after user, oldest first.
      offsets: int64[U + 1]; user u owns ``items[offsets[u]:offsets[u + 1]]``.
      user_ids, item_ids: original ids as strings; ``item_ids[i - 1]`` is the id of item i.
      timestamps: int64[N] in seconds, never decreasing within a user, or None where only the order is known.
      item_titles: V strings indexed like ``item_ids``, or None.
      attributes: `AttributeTable`, or None.
      meta: name, source and its checksum, every filter applied with counts before and after.
      item_vectors: float32[V, C], a vector for each item (row i - 1 for item i), or None.

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
    item_vectors: np.ndarray | None = None
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
            # Entries of a file about its content do not hold for other arrays (dataclasses.replace).
            stale = ("fingerprint", "counts", "arrays", "format", "version", "digest")
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
        for name, values, expected, counted in lengths:
            if values is not None and len(values) != expected:
                raise DataError(f"{name} must have {expected} entries ({counted}), got {len(values)}")
        vectors = self.item_vectors
        if vectors is not None and (vectors.dtype != np.float32 or vectors.shape[:-1] != (self.n_items,)):
            raise DataError(
                f"item_vectors must be a float32 array [{self.n_items} items, width], got {vectors.dtype} of shape "
                f"{vectors.shape}"
            )
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

    def check_ranges(self) -> None:
        """Check, in one pass, that no item or offset points outside its array; large files are not read when opened.

        Raises:
          DataError: one does.
        """
        outside = len(self.items) and not (self.items.min() >= 1 and self.items.max() <= self.n_items)
        if outside or np.any(np.diff(self.offsets) < 0):
            fault = f"items outside 1..{self.n_items}" if outside else "offsets that decrease"
            raise DataError(
                f"dataset {self.name!r} is damaged: it holds {fault}; "
                "build it again from the source, or find the fault with --data.verify"
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
    def vector_width(self) -> int:
        """C, numbers in the vector of an item; 0 without vectors. The catalogue of a run knows C alone."""
        vectors = self.item_vectors
        return int(self.meta.get("vector_width", 0)) if vectors is None else int(vectors.shape[1])

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
        """Hexadecimal SHA-256 of items, offsets, timestamps and original ids (not of titles and attributes)."""
        return str(self.meta.get("fingerprint") or self.compute_fingerprint())

    def compute_fingerprint(self) -> str:
        """Compute the fingerprint from the content itself, whatever ``meta`` says."""
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
    def catalogue(self) -> Catalogue:
        """The items: ids, titles and attributes, with the dataset's name and fingerprint."""
        meta = {"name": self.name, "source_fingerprint": self.fingerprint}
        return Catalogue(self.item_ids, self.item_titles, self.attributes, meta)

    def item_index(self, original_id: Any) -> int | None:
        """Return the item id 1..V of an original id (compared as a string), or None where it is unknown."""
        return self.catalogue.index(original_id)

    def item_indices(self, original_ids: Iterable[Any]) -> np.ndarray:
        """int32[n], item ids of original ids; 0 where one is unknown."""
        return self.catalogue.indices(original_ids)

    def with_meta(self, entries: Mapping[str, Any]) -> SequenceDataset:
        """Return the same dataset with further entries of ``meta``; nothing is copied or checked again."""
        changed = dataclasses.replace(self, meta={**self.meta, **entries}, check_content=False)
        if "fingerprint" in vars(self):
            vars(changed)["fingerprint"] = self.fingerprint
        return changed

    def history(self, user: int) -> np.ndarray:
        """int32[n], the items of user index ``user``, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write to a directory of ``.npy`` files and ``meta.json``, which must be empty or new."""
        save_dataset(self, directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, verify: bool = False) -> SequenceDataset:
        """Open a saved dataset, memory-mapped, after comparing digests of its files.

        Args:
          directory: that `save` wrote.
          verify: read it all, check the content and compare the fingerprint; otherwise files above 8 MiB are compared by
            their size and by samples.

        Raises:
          DataError: the directory is missing, foreign, truncated or changed.
        """
        return open_dataset(directory, verify=verify)

    def __repr__(self) -> str:
        return (
            f"SequenceDataset({self.name!r}, {self.n_users:,} users, {self.n_items:,} items, "
            f"{self.n_interactions:,} interactions)"
        )


def check_dataset(value: Any) -> None:
    """Check that a value is a dataset, not the file or table that one is loaded from.

    Raises:
      DataError: it is not.
    """
    if not isinstance(value, SequenceDataset):
        shown = repr(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else type(value).__name__
        raise DataError(f"expected a dataset, got {shown}: give what load_dataset returns for it")


def save_dataset(dataset: SequenceDataset, directory: str | os.PathLike[str]) -> None:
    """Write a dataset; see `SequenceDataset.save`."""
    arrays: dict[str, np.ndarray] = {"items": dataset.items, "offsets": dataset.offsets}
    if dataset.timestamps is not None:
        arrays["timestamps"] = dataset.timestamps
    arrays |= string_arrays("user_ids", dataset.user_ids)
    arrays |= dataset.catalogue.arrays()
    if dataset.item_vectors is not None:
        arrays["item_vectors"] = np.ascontiguousarray(dataset.item_vectors).reshape(-1)
    meta = {
        **dataset.meta,
        "format": FORMAT,
        "fingerprint": dataset.fingerprint,
        "counts": dataset.counts,
    }
    write_arrays(directory, arrays, meta)


def open_dataset(
    directory: str | os.PathLike[str], *, verify: bool = False, in_memory: bool = False
) -> SequenceDataset:
    """Open a saved dataset; see `SequenceDataset.load`.

    Args:
      directory: that `SequenceDataset.save` wrote.
      verify: read all of it and compare its fingerprint.
      in_memory: read the arrays rather than map them, so that later changes of the files do not reach them.
    """
    path = as_path(directory, "the directory of a dataset")
    arrays, meta = read_arrays(
        path,
        (FORMAT,),
        "give the directory that jaxrec prepare (SequenceDataset.save) wrote, or one of Parquet files",
        in_memory,
    )
    if "fingerprint" not in meta:
        raise DataError(
            f"dataset {str(path)!r} has an altered meta.json: no fingerprint; build it again from the source"
        )
    catalogue = Catalogue.from_arrays(arrays, meta)
    options = {"source": os.fspath(directory)}
    vectors = arrays.get("item_vectors")
    dataset = SequenceDataset(
        items=array_of(arrays, "items"),
        offsets=array_of(arrays, "offsets"),
        user_ids=strings_of(arrays, "user_ids"),
        item_ids=catalogue.ids,
        timestamps=arrays.get("timestamps"),
        item_titles=catalogue.titles,
        attributes=catalogue.attributes,
        meta={**meta, LOADED_WITH: {"options": options, "fingerprint": meta["fingerprint"]}},
        item_vectors=None if vectors is None else vectors.reshape(len(catalogue.ids), -1),
        check_content=verify,
    )
    if verify and dataset.compute_fingerprint() != meta["fingerprint"]:
        raise DataError(
            f"dataset {str(path)!r} has changed since it was saved: its fingerprint is not the one in "
            "meta.json; build it again from the source"
        )
    return dataset
