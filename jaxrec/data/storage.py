"""A `SequenceDataset` at rest: a directory of memory-mappable ``.npy`` files and one ``meta.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxrec.data.dataset import AttributeTable, SequenceDataset
from jaxrec.data.strings import StringArray
from jaxrec.errors import DataError

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
