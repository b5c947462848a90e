"""A reader of pickles that builds plain data and tensors, and calls nothing that the file names.

A pickle is a program: it names functions and has them called. Here every name is looked up in a list of builders of our
own, which make containers and records; a name that is not on the list ends the reading. No module is imported for a file.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxrec.errors import CheckpointError

#: Storage class of PyTorch -> NumPy's code of its elements; bfloat16 has none and is read as the upper half of float32.
STORAGE_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


class Storage:
    """Elements of one or more tensors; ``data`` holds the bytes once they are read."""

    def __init__(self, code: str, count: int):
        self.code = code
        self.count = count
        self.data: bytes | None = None

    @property
    def item_size(self) -> int:
        """Bytes of an element."""
        return 2 if self.code == "bfloat16" else np.dtype(self.code).itemsize

    def elements(self) -> np.ndarray:
        """All elements [count]."""
        data = self.data
        if data is None or len(data) != self.count * self.item_size:
            raise ValueError(f"a storage of {self.count} elements is missing or truncated")
        if self.code != "bfloat16":
            return np.frombuffer(data, self.code)
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


class Tensor:
    """A view of a `Storage`, made into an array on demand: the storages of older files follow after their pickle."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any):
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        self.storage = storage
        self.offset = int(offset)
        self.shape = tuple(int(n) for n in shape)
        self.stride = tuple(int(n) for n in stride)

    def array(self) -> np.ndarray:
        """A copy of the elements, of `shape`.

        Raises:
          ValueError: it reaches beyond its storage.
        """
        elements = self.storage.elements()
        sizes = (self.offset, *self.shape, *self.stride)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        empty = 0 in self.shape
        if min(sizes) < 0 or (not empty and last >= len(elements)):
            raise ValueError(
                f"a tensor of shape {list(self.shape)} reaches beyond its storage of {len(elements)}"
            )
        if empty:
            return np.zeros(self.shape, elements.dtype)
        strides = tuple(s * elements.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(elements[self.offset :], self.shape, strides, writeable=False)
        return view.copy()


class Inert:
    """Placeholder of an object of another package: holds what the file says of it, and does nothing."""

    args: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]
    elements: list[Any]

    # In place of __init__, which a pickle may leave out.
    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Make an empty placeholder."""
        placeholder = super().__new__(cls)
        placeholder.args, placeholder.state, placeholder.entries, placeholder.elements = args, None, {}, []
        return placeholder

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Add an element, for a subclass of list."""
        self.elements.append(value)

    def get(self, name: str, default: Any = None) -> Any:
        """An entry or attribute of the object."""
        state = self.state if isinstance(self.state, dict) else {}
        return self.entries.get(name, state.get(name, default))


class NumpyArray:
    """A NumPy array of a pickle; `values` are its elements, flat."""

    def __init__(self, *_: Any):
        self.values: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        if not isinstance(dtype, NumpyType):
            raise ValueError("an array without a type")
        count = int(np.prod(shape))
        values = data if isinstance(data, list) else dtype.decode(data)
        if len(values) != count:
            raise ValueError(f"an array of shape {list(shape)} with {len(values)} elements")
        self.values = list(values)


class NumpyType:
    """The type of a `NumpyArray`: numbers, text or Python objects."""

    def __init__(self, code: Any = "", *_: Any):
        if not isinstance(code, str) or code[:1] not in "biufUSO":
            raise ValueError(f"elements of type {code!r}")
        self.code = code
        self.order: Literal["<", ">"] = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def decode(self, data: Any) -> list[Any]:
        """Elements of raw bytes."""
        raw = data.encode("latin-1") if isinstance(data, str) else data
        values: list[Any] = np.frombuffer(raw, np.dtype(self.code).newbyteorder(self.order)).tolist()
        return values


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return dtype.decode(data)[0]


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding than latin-1")
    return text.encode("latin-1")


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _items(*args: Any) -> Any:
    return args[0] if args else ()


#: (module, name) as a file has it -> builder. Builders make data of their arguments and have no other effect.
_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): Inert,
    ("torch", "Size"): _items,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): _items,
    ("__builtin__", "set"): _items,
    ("_codecs", "encode"): _encode,
    **{
        (f"{package}.multiarray", name): builder
        for package in ("numpy.core", "numpy._core")
        for name, builder in (("_reconstruct", NumpyArray), ("scalar", _scalar))
    },
    ("numpy", "dtype"): NumpyType,
    ("numpy", "ndarray"): NumpyArray,
}


class DataUnpickler(pickle.Unpickler):
    """Reads one pickle after another from a file.

    Args:
      file: binary, at the start of a pickle.
      inert: packages whose classes become `Inert` placeholders; every other name that is no builder is refused.
      storage: returns the `Storage` of a persistent id ``("storage", type code, key, device, count, ...)``.
    """

    def __init__(self, file: io.BytesIO, inert: tuple[str, ...], storage: Callable[[str, str, int], Storage]):
        super().__init__(file)
        self._inert = inert
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """The builder for a name, made anew so that a file cannot change what the next one gets.

        Raises:
          CheckpointError: the name is not on the list.
        """
        if module in ("torch", "torch.storage") and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        builder = _BUILDERS.get((module, name))
        if builder is OrderedDict:
            return OrderedDict
        if builder is not None:
            return functools.partial(builder) if not isinstance(builder, type) else type(name, (builder,), {})
        if module.split(".")[0] in self._inert:
            return type(name, (Inert,), {})
        raise CheckpointError(
            f"the file asks for {module}.{name}, which is no part of a table of tensors: nothing was executed. Expected the "
            "state_dict of a model; save it anew with torch.save(model.state_dict(), file), from code that you trust"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor names."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError(f"an unknown reference {pid!r}")
        _, code, key, _, count = pid[:5]
        if code not in STORAGE_TYPES.values() or not isinstance(count, int) or count < 0:
            raise ValueError(f"a storage of type {code!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a view of a storage, as PyTorch wrote before version 0.4")
        return self._storage(str(key), code, count)


#: Errors of a pickle that is malformed, or uses a builder in another way than PyTorch does.
MALFORMED = (
    *(pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, KeyError, IndexError),
    *(UnicodeError, MemoryError, RecursionError, OverflowError, ImportError),
)
