"""MovieTweetings 100K: ratings that people tweeted in 2013 (https://github.com/sidooms/MovieTweetings, MIT
licence).

``python -m data_prep.movietweetings --raw movietweetings-100K_raw.zip`` rebuilds the files in
``jaxrec/data/bundled/movietweetings`` byte for byte. They hold plain little-endian ``.npy`` arrays and UTF-8
text, nothing compressed, so the bytes depend on no compressor, clock or platform.

The rules: every rating counts as an interaction; stable sort by time within a user, ties in file order;
iterative 5-core; items numbered by first appearance. That leaves 4,333 users, 2,414 items and 68,055
interactions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.archives import PathLike, checked, member, table
from jaxrec.data import SequenceDataset, load_dataset
from jaxrec.errors import DataError, JaxrecError

SHA256 = "ce8255b178be608ad46b71b66af31e908a5f289bdc0b0095d46179dfaee3c910"
BUNDLED = Path(__file__).resolve().parent.parent / "jaxrec" / "data" / "bundled" / "movietweetings"


def load_movietweetings(archive: PathLike, *, k_core: int = 5, verify: bool = True) -> SequenceDataset:
    """The snapshot as a dataset: ids as "tt0111161", titles as "Name (Year)", genres as attributes.

    Args:
      archive: zip with ``ratings.dat`` (user::imdb id::rating::seconds) and ``movies.dat`` (imdb
        id::title::genres).
      k_core: of the iterative filter; 0 keeps everything.
      verify: compare the checksum of the archive.
    """
    source = checked(archive, sha256=(SHA256,), verify=verify)
    ratings = table(member(archive, "ratings.dat"), ("user", "item", "rating", "timestamp"), "::")
    movies = table(member(archive, "movies.dat"), ("item", "title", "genres"), "::")
    imdb = "tt" + ratings["item"].str.zfill(7)
    dataset = load_dataset(
        ratings.with_columns(imdb.alias("item")).select("user", "item", "timestamp"),
        name="movietweetings",
        filter="k-core" if k_core else "none",
        min_interactions=k_core,
        item_table=movies.with_columns(("tt" + movies["item"].str.zfill(7)).alias("item")),
        attribute_columns=("genres",),
    )
    about = {
        "source": {**source, "url": "https://github.com/sidooms/MovieTweetings", "edition": "snapshots/100K"},
        "license": "MIT, Copyright 2013 Simon Dooms",
    }
    return dataclasses.replace(dataset, meta={**dataset.meta, **about})


def bundle(dataset: SequenceDataset, licence: bytes) -> dict[str, bytes]:
    """Content of each bundled file, by name."""
    titles, attributes = dataset.item_titles, dataset.attributes
    if titles is None or attributes is None or dataset.timestamps is None:
        raise DataError("a bundled dataset needs timestamps, titles and attributes")
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
        "meta.json": _json({**dataset.meta, "counts": dataset.counts, "fingerprint": dataset.fingerprint}),
    }


def _npy(values: np.ndarray) -> bytes:
    """A version 1.0 ``.npy`` file of the narrowest unsigned little-endian type. The header is written here,
    since its padding has differed between NumPy releases."""
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
    """Command line: rebuild the bundled files."""
    parser = argparse.ArgumentParser(
        description="Rebuild the bundled MovieTweetings dataset from the raw snapshot."
    )
    parser.add_argument("--raw", required=True, help="zip of the 100K snapshot")
    parser.add_argument(
        "--out", default=BUNDLED, type=Path, help="directory to write (default: the package's own)"
    )
    options = parser.parse_args(arguments)
    try:
        dataset = load_movietweetings(options.raw)
        files = bundle(dataset, member(options.raw, "LICENSE"))
    except JaxrecError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (options.out / name).write_bytes(content)
    print(f"{dataset} written to {options.out}: {sum(map(len, files.values())):,} bytes")


if __name__ == "__main__":
    main()
