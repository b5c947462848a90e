"""Many short strings in two flat arrays: ids and titles of a large dataset stay on disk until asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

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
