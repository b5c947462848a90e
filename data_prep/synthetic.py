"""A large synthetic log: Zipf items and power-law users, or the fractal expansion of a real log.

    python -m data_prep.synthetic --rows 100000000 --out log.parquet
    python -m data_prep.synthetic --expand movietweetings --factor 8 8 --out expanded.csv

The rows of a drawn log are in the order of time up to late arrivals, as a collector writes them, so that preparing it needs
a sort. The expansion takes the Kronecker product of the real matrix of users and items with a small binary matrix of the
same kind (Belletti et al., Scalable Realistic Recommendation Datasets through Fractal Expansions, arXiv 1901.08910, in its
simplest form): popularity stays as skewed as it is, and every copy of a user keeps the order of the original.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from jaxrec.data import SequenceDataset, load_dataset
from jaxrec.errors import ConfigError

BLOCK = 1_000_000
START, SPAN = 1_500_000_000, 3 * 365 * 86_400  # first second, seconds


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a large log of interactions with the columns user_id, item_id and timestamp.

    Attributes:
      out: file to write, .parquet or .csv.
      rows: interactions of a drawn log.
      users: users to draw from; 0 = a twentieth of the rows.
      items: items to draw from; 0 = a hundredth of the rows.
      zipf: exponent of the items' popularity.
      activity: exponent of the users' activity, beyond the most active thousandth.
      late: standard deviation of late arrivals, in seconds.
      text_ids: ids as text of 20 characters in place of numbers.
      seed: of the draws.
      expand: a dataset to expand in place of drawing one: a file, a directory or a name.
      factor: copies of every user and of every item in the expansion.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    rows: int = 1_000_000
    users: int = 0
    items: int = 0
    zipf: float = 1.0
    activity: float = 0.9
    late: float = 3600.0
    text_ids: bool = False
    seed: int = 0
    expand: str = ""
    factor: tuple[int, int] = (4, 4)

    def __post_init__(self) -> None:
        """Check sizes and file name.

        Raises:
          ConfigError: a size below 1, or a file of another kind.
        """
        if min(self.rows, *self.factor) < 1 or min(self.users, self.items) < 0:
            raise ConfigError("--rows and --factor must be at least 1, --users and --items at least 0")
        object.__setattr__(self, "out", Path(self.out))
        if self.out.suffix not in (".parquet", ".csv"):
            raise ConfigError(f"--out must end in .parquet or .csv, got {str(self.out)!r}")


def drawn_blocks(options: Options) -> Iterator[pl.DataFrame]:
    """Iterate over blocks of a drawn log; user 1 is the most active, item 1 the most popular."""
    generator = np.random.default_rng(options.seed)
    users = options.users or max(1, options.rows // 20)
    items = options.items or max(1, options.rows // 100)
    by_user = cumulated(users, options.activity, shift=users / 1000)
    by_item = cumulated(items, options.zipf)
    # Ids in another order than popularity, as in any real log.
    user_ids = generator.permutation(users) + 1
    item_ids = generator.permutation(items) + 1
    for first in range(0, options.rows, BLOCK):
        count = min(BLOCK, options.rows - first)
        times = START + SPAN * (first + np.arange(count)) / options.rows
        times += options.late * np.abs(generator.standard_normal(count))
        yield pl.DataFrame(
            {
                "user_id": user_ids[np.searchsorted(by_user, generator.random(count))],
                "item_id": item_ids[np.searchsorted(by_item, generator.random(count))],
                "timestamp": times.astype(np.int64),
            }
        )


def cumulated(n: int, exponent: float, shift: float = 0.0) -> np.ndarray:
    """float64[n], the distribution function of a power law over ranks 1..n, flat among those below ``shift``."""
    weights = (np.arange(1, n + 1, dtype=np.float64) + shift) ** -exponent
    sums = np.cumsum(weights)
    return sums / sums[-1]


def expanded_blocks(dataset: SequenceDataset, options: Options) -> Iterator[pl.DataFrame]:
    """Iterate over the fractal expansion of a dataset, one block of its log at a time."""
    n_users, n_items = options.factor
    pattern = np.argwhere(reduced(dataset, n_users, n_items, options.seed))
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths)
    times = np.arange(dataset.n_interactions) if dataset.timestamps is None else dataset.timestamps
    block = max(1, BLOCK // len(pattern))
    for first in range(0, dataset.n_interactions, block):
        part = slice(first, first + block)
        # Interaction (u, v) becomes one interaction per cell of the pattern.
        yield pl.DataFrame(
            {
                "user_id": (users[part, None] * n_users + pattern[None, :, 0]).ravel() + 1,
                "item_id": ((dataset.items[part, None] - 1) * n_items + pattern[None, :, 1]).ravel() + 1,
                "timestamp": np.repeat(times[part], len(pattern)),
            }
        )


def reduced(dataset: SequenceDataset, n_users: int, n_items: int, seed: int) -> np.ndarray:
    """bool[n_users, n_items], the dataset's matrix in small.

    Users and items fall into random groups; the cell of two groups holds where it is at least as dense as the median cell.
    Every row and column has a cell, so that no copy of a user or an item is empty.
    """
    generator = np.random.default_rng(seed)
    user_group = generator.integers(0, n_users, dataset.n_users)
    item_group = generator.integers(0, n_items, dataset.n_items)
    users = np.repeat(user_group, dataset.lengths)
    counts = np.zeros((n_users, n_items), np.int64)
    np.add.at(counts, (users, item_group[dataset.items - 1]), 1)
    cells = counts >= np.median(counts)
    cells[np.arange(n_users), counts.argmax(axis=1)] = True
    cells[counts.argmax(axis=0), np.arange(n_items)] = True
    return cells


def write_blocks(blocks: Iterator[pl.DataFrame], path: Path, text_ids: bool = False) -> int:
    """Write blocks to a Parquet or CSV file, one after the other; return the number of rows."""
    rows, writer = 0, None
    with path.open("wb") as file:
        for block in blocks:
            if text_ids:
                block = block.with_columns(
                    pl.format(f"{prefix}-{{}}", pl.col(column).cast(pl.String).str.zfill(12)).alias(column)
                    for column, prefix in (("user_id", "visitor"), ("item_id", "article"))
                )
            if path.suffix == ".csv":
                block.write_csv(file, include_header=rows == 0)
            else:
                import pyarrow.parquet

                table = block.to_arrow()
                writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
            rows += len(block)
        if writer is not None:
            writer.close()
    return rows


def main() -> None:
    """Command line."""
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    blocks = (
        expanded_blocks(load_dataset(options.expand), options) if options.expand else drawn_blocks(options)
    )
    rows = write_blocks(blocks, options.out, options.text_ids)
    print(f"{rows:,} interactions in {options.out}, {options.out.stat().st_size / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
