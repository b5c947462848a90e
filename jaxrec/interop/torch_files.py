"""Tables of tensors in files that PyTorch saved, read without PyTorch: the zip form and the one before version 1.6."""

from __future__ import annotations

import dataclasses
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.errors import CheckpointError
from jaxrec.interop.unpickling import MALFORMED, DataUnpickler, Inert, Storage, Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

#: Names under which training scripts keep the state_dict.
STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """Content of a checkpoint.

    Attributes:
      path: of the file.
      tensors: float32 arrays by name, in the order of the file.
      extras: what lies beside them, such as the configuration.
    """

    path: Path
    tensors: Mapping[str, np.ndarray]
    extras: Mapping[str, Any]

    def extra(self, *names: str) -> Any:
        """A nested entry beside the tensors, or None."""
        value: Any = self.extras
        for name in names:
            value = value.get(name) if isinstance(value, (Mapping, Inert)) else None
        return value


def read_torch_file(path: str | Path, inert: tuple[str, ...] = ()) -> TorchFile:
    """Read the tensors of a checkpoint; nothing in it is executed.

    Args:
      path: a file that ``torch.save`` wrote.
      inert: packages whose objects may lie beside the tensors; they become placeholders.

    Raises:
      CheckpointError: the file is missing, damaged, of another kind, or asks for anything but data.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror}): expected a file that torch.save wrote"
        ) from None
    try:
        root = _read_zip(data, inert) if data[:4] == b"PK\x03\x04" else _read_legacy(data, inert)
        state, extras = _split(root)
        tensors = {str(name): _array(value) for name, value in state.items() if isinstance(value, Tensor)}
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
    except (*MALFORMED, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged, or no checkpoint of PyTorch ({reason}): expected a file that torch.save wrote"
        ) from None
    return TorchFile(path, tensors, extras)


def _array(tensor: Tensor) -> np.ndarray:
    array = tensor.array()
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _read_zip(data: bytes, inert: tuple[str, ...]) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1 or any("/code/" in name for name in archive.namelist()):
            raise CheckpointError(
                "it is no table of tensors, but an archive of another kind (such as TorchScript): save the state_dict"
            )
        prefix = pickles[0][: -len("data.pkl")]
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise CheckpointError("it was written on a big-endian machine, whose files are not read")
        # PyTorch stores its entries uncompressed; a compressed one may be far larger than the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed")
        storages: dict[str, Storage] = {}

        def storage(key: str, code: str, count: int) -> Storage:
            if key not in storages:
                storages[key] = target = Storage(code, count)
                entry = archive.getinfo(f"{prefix}data/{key}")
                if entry.file_size != count * target.item_size:
                    raise ValueError(f"storage {key} has {entry.file_size} bytes for {count} elements")
                target.data = archive.read(entry)
            return storages[key]

        return DataUnpickler(io.BytesIO(archive.read(pickles[0])), inert, storage).load()


def _read_legacy(data: bytes, inert: tuple[str, ...]) -> Any:
    file = io.BytesIO(data)
    storages: dict[str, Storage] = {}

    def storage(key: str, code: str, count: int) -> Storage:
        return storages.setdefault(key, Storage(code, count))

    def load() -> Any:
        return DataUnpickler(file, inert, storage).load()

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise ValueError("it does not begin as torch.save begins its files")
    system = load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was written on a big-endian machine, whose files are not read")
    root = load()
    for key in load():
        (count,) = struct.unpack("<q", file.read(8))
        target = storages[str(key)]
        if count != target.count:
            raise ValueError(f"storage {key} has {count} elements, its tensors need {target.count}")
        target.data = file.read(count * target.item_size)
    return root


def _split(root: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The state_dict, without the prefix of a wrapper, and what lies beside it."""
    if not isinstance(root, Mapping):
        kind = type(root).__name__
        raise CheckpointError(f"it holds one {kind}: expected the state_dict of a model")
    extras: Mapping[str, Any] = {}
    state: Mapping[str, Any] = root
    if not any(isinstance(value, Tensor) for value in root.values()):
        key = next((key for key in STATE_KEYS if isinstance(root.get(key), Mapping)), None)
        if key is None:
            raise CheckpointError(
                f"it holds no tensors: expected the state_dict of a model, alone or under {', '.join(STATE_KEYS)}; got "
                f"{', '.join(map(str, list(root)[:6])) or 'an empty table'}"
            )
        state, extras = root[key], {str(name): value for name, value in root.items() if name != key}
    for prefix in ("module.", "torch_model.", "_orig_mod."):
        if state and all(str(name).startswith(prefix) for name in state):
            state = {str(name)[len(prefix) :]: value for name, value in state.items()}
    return state, extras
