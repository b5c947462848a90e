"""`Catalogue`: ids, titles and attributes of items, as flat arrays that can stay on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, overload

import numpy as np

from jaxrec.data.storage import read_arrays, write_arrays
from jaxrec.errors import DataError

FORMAT = "jaxrec.Catalogue"

#: Directories of a catalogue that older releases wrote: a dataset without users.
_OLDER_FORMAT = "jaxrec.SequenceDataset"


class StringArray(Sequence[str]):
    """A read-only sequence of strings: UTF-8 ``data`` uint8[bytes] and ``offsets`` int64[n + 1].

    A fixed-width NumPy array pays the width of the longest string for every entry (one long URL among a
    million ids costs gigabytes); this form has no padding, and both arrays can be memory-mapped. An integer
    index gives a ``str``, a slice or an index array a NumPy array of ``str``; ``numpy.asarray`` gives them all.

    Raises:
      DataError: the offsets do not cover the data.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data):
            raise DataError(
                f"offsets of strings must run from 0 to the {len(data)} bytes: the array is damaged"
            )
        self.data = data
        self.offsets = offsets

    @classmethod
    def of(cls, values: Iterable[str] | StringArray) -> StringArray:
        """Pack any iterable of strings; a `StringArray` is returned as it is."""
        if isinstance(values, StringArray):
            return values
        strings = values.tolist() if isinstance(values, np.ndarray) else list(values)
        for position, value in enumerate(strings):
            if not isinstance(value, str):
                raise DataError(
                    f"expected strings, got {value!r} at position {position}: convert ids with str() first"
                )
        text = "".join(strings)
        encoded = text.encode()
        if len(encoded) == len(text):
            lengths = np.fromiter(map(len, strings), np.int64, len(strings))
        else:
            lengths = np.fromiter((len(value.encode()) for value in strings), np.int64, len(strings))
        offsets = np.zeros(len(strings) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.frombuffer(encoded, np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            size = len(self)
            if not -size <= index < size:
                raise IndexError(f"index {index} is out of range for {size} strings")
            place = int(index) % size
            return bytes(self.data[self.offsets[place] : self.offsets[place + 1]]).decode()
        places = np.arange(len(self))[index]
        return np.array([self[int(place)] for place in places.ravel()], np.str_).reshape(places.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.tolist(), dtype=np.str_ if dtype is None else dtype)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringArray):
            return NotImplemented
        return bool(np.array_equal(self.offsets, other.offsets) and np.array_equal(self.data, other.data))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        examples = ", ".join(repr(self[place]) for place in range(min(3, len(self))))
        return f"StringArray([{examples}{', ...' if len(self) > 3 else ''}], n={len(self)})"

    def tolist(self) -> list[str]:
        """All strings as a list."""
        blob = bytes(self.data)
        bounds = self.offsets.tolist()
        return [blob[start:stop].decode() for start, stop in itertools.pairwise(bounds)]

    def take(self, index: np.ndarray) -> StringArray:
        """The strings at ``index`` (int[n], not negative), packed anew."""
        lengths = np.diff(self.offsets)[index]
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # Byte j of the result comes from the start of its string plus its distance from the start of the
        # copy.
        source = np.repeat(self.offsets[:-1][index] - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
        return StringArray(np.asarray(self.data)[source], offsets)


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeTable:
    """Attributes of items (genres, brands, tags, ...), as compressed sparse rows.

    Attributes:
      offsets: int64[V + 2]; item i owns ``values[offsets[i]:offsets[i + 1]]``. Row 0, the padding item, is
        empty.
      values: int32[M], attribute ids 1..A (0 is left for padding); ``names[a - 1]`` names attribute a.
      names: A strings.
    """

    offsets: np.ndarray
    values: np.ndarray
    names: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", StringArray.of(self.names))

    @property
    def n_attributes(self) -> int:
        """A, the number of distinct attributes."""
        return len(self.names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of offsets, values and names."""
        names = cast(StringArray, self.names)
        return digest((("offsets", self.offsets), ("values", self.values), ("names", names)))

    def of_item(self, item: int) -> np.ndarray:
        """int32[...], the attribute ids of one item."""
        return self.values[self.offsets[item] : self.offsets[item + 1]]

    @classmethod
    def from_lists(cls, lists: Sequence[Iterable[str]]) -> AttributeTable:
        """Build from V lists of names, ``lists[i - 1]`` for item i.

        Attributes are numbered by first appearance; a name that an item lists twice counts once.
        """
        ids: dict[str, int] = {}
        values: list[int] = []
        offsets = np.zeros(len(lists) + 2, np.int64)
        for row, names in enumerate(lists):
            values.extend(ids.setdefault(name, len(ids) + 1) for name in dict.fromkeys(names))
            offsets[row + 2] = len(values)
        return cls(offsets, np.array(values, np.int32), StringArray.of(ids))


def id_text(value: Any) -> str:
    """Return an id as text; a whole number that comes as a float, as pandas has it beside a missing value, is that integer.

    >>> id_text(101), id_text(101.0), id_text("101.0")
    ('101', '101', '101.0')
    """
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value) if whole else value)


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of a dataset: original ids, titles and attributes. Item i (1..V) is entry i - 1.

    Attributes:
      ids: V strings.
      titles: V strings, or None.
      attributes: `AttributeTable`, or None.
      meta: name of the dataset and further entries, such as its fingerprint.

    Raises:
      DataError: titles or attributes of another number of items.
    """

    ids: Sequence[str]
    titles: Sequence[str] | None = None
    attributes: AttributeTable | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Pack the strings and check the lengths."""
        object.__setattr__(self, "ids", StringArray.of(self.ids))
        if self.titles is not None:
            object.__setattr__(self, "titles", StringArray.of(self.titles))
            if len(self.titles) != self.n_items:
                raise DataError(
                    f"item_titles must have {self.n_items} entries (items), got {len(self.titles)}"
                )
        if self.attributes is not None and len(self.attributes.offsets) != self.n_items + 2:
            raise DataError(
                f"attributes.offsets must have {self.n_items + 2} entries (items + 2), "
                f"got {len(self.attributes.offsets)}"
            )

    @property
    def n_items(self) -> int:
        """V; item ids are 1..V."""
        return len(self.ids)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self.meta.get("name", "unnamed"))

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids, start=1)}

    def text_of(self, original_id: Any) -> str:
        """Return an original id as the catalogue writes it, a known one or not; see `id_text`."""
        text = str(original_id)
        return text if text in self._numbers else id_text(original_id)

    def index(self, original_id: Any) -> int | None:
        """Return the item 1..V of an original id (compared as a string), or None where it is unknown."""
        return self._numbers.get(self.text_of(original_id))

    def indices(self, original_ids: Iterable[Any]) -> np.ndarray:
        """int32[n], items of original ids; 0 where one is unknown."""
        return np.array([self._numbers.get(self.text_of(name), 0) for name in original_ids], np.int32)

    def original_ids(self, items: Iterable[int]) -> list[str]:
        """Return the original ids of items 1..V."""
        return [self.ids[int(item) - 1] for item in items]

    def titles_of(self, items: Iterable[int]) -> list[str] | None:
        """Return the titles of items 1..V, or None for a catalogue without titles."""
        return None if self.titles is None else [self.titles[int(item) - 1] for item in items]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that hold the catalogue on disk, by name."""
        arrays = string_arrays("item_ids", self.ids)
        if self.titles is not None:
            arrays |= string_arrays("item_titles", self.titles)
        if self.attributes is not None:
            arrays |= {
                "attribute_offsets": self.attributes.offsets,
                "attribute_values": self.attributes.values,
            }
            arrays |= string_arrays("attribute_names", self.attributes.names)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Catalogue:
        """Build from the arrays of `arrays`.

        Raises:
          DataError: an array is missing, or arrays do not fit each other.
        """
        attributes = None
        if "attribute_offsets" in arrays:
            attributes = AttributeTable(
                array_of(arrays, "attribute_offsets"),
                array_of(arrays, "attribute_values"),
                strings_of(arrays, "attribute_names"),
            )
        titles = strings_of(arrays, "item_titles") if "item_titles_bytes" in arrays else None
        return cls(strings_of(arrays, "item_ids"), titles, attributes, meta)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write to a new or empty directory."""
        write_arrays(directory, self.arrays(), {**self.meta, "format": FORMAT})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Catalogue:
        """Open a saved catalogue, memory-mapped, after comparing its digests.

        Raises:
          DataError: the directory is missing, foreign, truncated or changed.
        """
        arrays, meta = read_arrays(
            directory, (FORMAT, _OLDER_FORMAT), "give the directory of a saved catalogue"
        )
        return cls.from_arrays(arrays, meta)

    def __repr__(self) -> str:
        """Name and number of items."""
        return f"Catalogue({self.name!r}, {self.n_items:,} items)"


def string_arrays(name: str, strings: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the two arrays that hold strings on disk, by name."""
    packed = StringArray.of(strings)
    return {f"{name}_bytes": packed.data, f"{name}_offsets": packed.offsets}


def strings_of(arrays: Mapping[str, np.ndarray], name: str) -> StringArray:
    """Return the strings that `string_arrays` put under ``name``; raise `DataError` where an array is missing."""
    return StringArray(array_of(arrays, f"{name}_bytes"), array_of(arrays, f"{name}_offsets"))


def array_of(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return an array by name; raise `DataError` where it is missing."""
    if name not in arrays:
        raise DataError(
            f"the dataset lacks {name}: its meta.json was altered; build it again from the source"
        )
    return arrays[name]


def digest(parts: Iterable[tuple[str, np.ndarray | StringArray | None]]) -> str:
    """SHA-256 over arrays, labelled with type and length, so that moved boundaries change it."""
    digest = hashlib.sha256()
    for label, part in parts:
        arrays = (part.data, part.offsets) if isinstance(part, StringArray) else (part,)
        for array in arrays:
            if array is None:
                digest.update(f"{label}:none;".encode())
                continue
            little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{label}:{little_endian.dtype.str}:{len(array)};".encode())
            digest.update(little_endian.data)
    return digest.hexdigest()
