"""Many short strings in two flat arrays: ids and titles of a large dataset stay on disk until asked for."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast, overload

import numpy as np

from jaxrec.errors import DataError


class StringArray(Sequence[str]):
    """A read-only sequence of strings: UTF-8 ``data`` uint8[bytes] and ``offsets`` int64[n + 1].

    A fixed-width NumPy array pays the width of the longest string for every entry (one long URL among a
    million ids costs gigabytes); this form pays for what is there, and both arrays can be memory-mapped. An
    integer index gives a ``str``, a slice or an index array a NumPy array of ``str``; ``numpy.asarray`` gives
    them all.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
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
        shown = ", ".join(repr(self[place]) for place in range(min(3, len(self))))
        return f"StringArray([{shown}{', ...' if len(self) > 3 else ''}], n={len(self)})"

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
        """Build from V lists of names, ``lists[i - 1]`` for item i. Attributes are numbered by first
        appearance; a name that an item lists twice counts once."""
        ids: dict[str, int] = {}
        values: list[int] = []
        offsets = np.zeros(len(lists) + 2, np.int64)
        for row, names in enumerate(lists):
            values.extend(ids.setdefault(name, len(ids) + 1) for name in dict.fromkeys(names))
            offsets[row + 2] = len(values)
        return cls(offsets, np.array(values, np.int32), StringArray.of(ids))


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
