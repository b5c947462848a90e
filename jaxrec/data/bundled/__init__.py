"""Bundled datasets, read through package resources."""

from __future__ import annotations

import io
import json
from importlib import resources
from typing import Any

import numpy as np

from jaxrec.data.catalogue import AttributeTable, StringArray
from jaxrec.data.dataset import SequenceDataset

BUNDLED = ("movietweetings",)


def load_bundled(name: str) -> SequenceDataset:
    """Load a bundled dataset by name; its arrays are stored in the narrowest type and widened here."""
    folder = resources.files(__name__) / name

    def array(part: str, dtype: Any) -> np.ndarray:
        stored = np.load(io.BytesIO((folder / f"{part}.npy").read_bytes()), allow_pickle=False)
        return stored.astype(dtype)

    def offsets(part: str) -> np.ndarray:
        lengths = array(part, np.int64)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    def lines(part: str) -> StringArray:
        return StringArray.of((folder / f"{part}.txt").read_text(encoding="utf-8").split("\n")[:-1])

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return SequenceDataset(
        items=array("items", np.int32),
        offsets=offsets("lengths"),
        user_ids=lines("user_ids"),
        item_ids=lines("item_ids"),
        timestamps=array("timestamps", np.int64),
        item_titles=lines("item_titles"),
        attributes=AttributeTable(
            np.concatenate([np.zeros(1, np.int64), offsets("attribute_lengths")]),
            array("attribute_values", np.int32),
            lines("attribute_names"),
        ),
        meta=meta,
        check_content=False,
    )
