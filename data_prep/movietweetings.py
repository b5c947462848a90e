"""Rebuild the bundled MovieTweetings dataset from the raw 100K snapshot.

``python -m data_prep.movietweetings --raw movietweetings-100K_raw.zip`` rebuilds the files in
``jaxrec/data/bundled/movietweetings`` byte for byte. They hold plain little-endian ``.npy`` arrays and UTF-8 text, nothing
compressed, so the bytes depend on no compressor, clock or platform.

The rules: every rating counts as an interaction; stable sort by time within a user, ties in file order; iterative 5-core;
items numbered by first appearance. That leaves 4,333 users, 2,414 items and 68,055 interactions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data import SequenceDataset, load_dataset
from jaxrec.datasets.archives import member
from jaxrec.errors import DataError, JaxrecError

BUNDLED = Path(__file__).resolve().parent.parent / "jaxrec" / "data" / "bundled" / "movietweetings"

#: Entries of ``meta`` in ``meta.json``, in the order of the file.
META = ("order", "name", "source", "columns", "time", "steps", "license")


def bundle(dataset: SequenceDataset, licence: bytes) -> dict[str, bytes]:
    """Return the content of each bundled file, by name."""
    titles, attributes = dataset.item_titles, dataset.attributes
    if titles is None or attributes is None or dataset.timestamps is None:
        raise DataError("a bundled dataset needs timestamps, titles and attributes")
    meta = {key: dataset.meta[key] for key in META}
    return {
        "LICENSE": licence,
        "items.npy": _npy(dataset.items),
        "lengths.npy": _npy(dataset.lengths),
        "timestamps.npy": _npy(dataset.timestamps),
        "user_ids.txt": _lines(dataset.user_ids),
        "item_ids.txt": _lines(dataset.item_ids),
        "item_titles.txt": _lines(titles),
        "attribute_lengths.npy": _npy(np.diff(attributes.offsets)[1:]),
        "attribute_values.npy": _npy(attributes.values),
        "attribute_names.txt": _lines(attributes.names),
        "meta.json": _json({**meta, "counts": dataset.counts, "fingerprint": dataset.fingerprint}),
    }


def _npy(values: np.ndarray) -> bytes:
    """A version 1.0 ``.npy`` file of the narrowest unsigned little-endian type.

    The header is written here, since its padding has differed between NumPy releases.
    """
    if values.min(initial=0) < 0:
        raise DataError("bundled arrays hold no negative numbers")
    dtype = np.min_scalar_type(int(values.max(initial=0))).newbyteorder("<")
    header = repr({"descr": dtype.str, "fortran_order": False, "shape": (len(values),)}).encode()
    padding = -(10 + len(header) + 1) % 64
    header += b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values.astype(dtype).tobytes()


def _lines(values: Any) -> bytes:
    strings = list(values)
    if any("\n" in value or "\r" in value for value in strings):
        raise DataError("bundled strings hold no line breaks")
    return "".join(value + "\n" for value in strings).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def main(arguments: list[str] | None = None) -> None:
    """Rebuild the bundled files."""
    parser = argparse.ArgumentParser(
        description="Rebuild the bundled MovieTweetings dataset from the raw snapshot."
    )
    parser.add_argument("--raw", required=True, help="zip of the 100K snapshot")
    parser.add_argument(
        "--out", default=BUNDLED, type=Path, help="directory to write (default: the package's own)"
    )
    options = parser.parse_args(arguments)
    try:
        dataset = load_dataset("movietweetings-100k", archive=(options.raw,), name="movietweetings")
        files = bundle(dataset, member(Path(options.raw), "LICENSE"))
    except JaxrecError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (options.out / name).write_bytes(content)
    print(f"{dataset} written to {options.out}: {sum(map(len, files.values())):,} bytes")


if __name__ == "__main__":
    main()
