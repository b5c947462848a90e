"""Write a log in the layout for many machines, with DuckDB: Parquet parts by a hash of the user, sorted by user and time.

    python -m data_prep.partition log.parquet --out parts --parts 64
    jaxrec prepare parts --out data/own

`data_prep/README.md` describes the layout; `data_prep/partition_spark.py` writes the same with Spark.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxrec.data.storage import check_empty
from jaxrec.errors import ConfigError, DataError
from jaxrec.files import work_folder

SOURCES = {".csv": "read_csv('{}', all_varchar = true)", ".parquet": "read_parquet('{}')"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Partition a log by a hash of the user.

    Attributes:
      log: the log: a .parquet or .csv file, or a pattern such as 'logs/*.parquet'.
      out: directory to write; new or empty.
      parts: number of parts.
      user_column: column of users.
      item_column: column of items.
      time_column: column of whole seconds.
      memory_gib: memory that DuckDB may take before it spills to disk beside ``out``.
    """

    log: Annotated[str, tyro.conf.Positional]
    out: Path
    parts: int = 64
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = "timestamp"
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        """Check number and kind.

        Raises:
          ConfigError: no part, or a file of another kind.
        """
        if not 1 <= self.parts <= 100_000:
            raise ConfigError(f"--parts must be 1 to 100000, got {self.parts}")
        if Path(self.log).suffix not in SOURCES:
            raise ConfigError(f"the log must end in .parquet or .csv, got {self.log!r}")


def partition(options: Options) -> int:
    """Write the layout; return the number of interactions.

    Raises:
      DataError: ``out`` holds anything, another process writes it, or the log cannot be read or lacks a column.
    """
    import duckdb

    out = Path(options.out)
    check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    source = SOURCES[Path(options.log).suffix].format(options.log.replace("'", "''"))
    with work_folder(out) as work:
        limits = {"memory_limit": f"{options.memory_gib}GiB", "temp_directory": str(work)}
        with duckdb.connect(f"{work}/log.duckdb", config=limits) as base:
            try:
                base.execute(
                    f'CREATE VIEW log AS SELECT "{options.user_column}"::VARCHAR AS user_id, '
                    f'"{options.item_column}"::VARCHAR AS item_id, '
                    f'"{options.time_column}"::BIGINT AS timestamp FROM {source}'
                )
                base.execute(
                    "CREATE TABLE sorted AS SELECT ('0x' || substr(md5(user_id), 1, 8))::BIGINT % ? AS part, * FROM log "
                    "ORDER BY part, user_id, timestamp, item_id",
                    [options.parts],
                )
            except duckdb.Error as error:
                raise DataError(
                    f"{options.log!r} cannot be partitioned: {str(error).splitlines()[0]}"
                ) from None
            for part in range(options.parts):
                folder = out / f"part={part:05}"
                folder.mkdir()
                target = str(folder / "log.parquet").replace("'", "''")
                base.execute(
                    f"COPY (SELECT user_id, item_id, timestamp FROM sorted WHERE part = {part} "
                    f"ORDER BY user_id, timestamp, item_id) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
                )
            return int(base.execute("SELECT count(*) FROM sorted").fetchall()[0][0])


def main() -> None:
    """Command line."""
    options = tyro.cli(Options, description=__doc__)
    print(f"{partition(options):,} interactions in {options.parts} parts below {options.out}")


if __name__ == "__main__":
    main()
