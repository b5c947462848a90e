"""Names for interchangeable parts: attention mechanisms, encoders, objectives, samplers, presets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from jaxrec.errors import UnknownNameError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """An immutable mapping from a public name to a part, whose failed look-up lists what exists.

    >>> losses = Registry("objective", {"bce": 1, "cross-entropy": 2})
    >>> losses["bce"]
    1
    >>> losses.name_of(2)
    'cross-entropy'
    """

    def __init__(self, kind: str, parts: Mapping[str, T]):
        self.kind = kind
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> T:
        try:
            return self._parts[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._parts, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}: expected one of {', '.join(sorted(self._parts))}.{hint}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def name_of(self, part: T) -> str:
        """The name under which ``part`` is registered."""
        for name, registered in self._parts.items():
            if registered is part or registered == part:
                return name
        raise UnknownNameError(
            f"{part!r} is not a registered {self.kind}: expected one of {', '.join(self._parts)}"
        )
