"""Time and memory of reading a large CSV of interactions.

    python -m experiments.benchmarks.read_csv --json

writes a random log in no particular order (so that it must be sorted), reads it with `load_dataset` in a
fresh process, and deletes it. The last line of standard output is the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

_BLOCK = 1_000_000


def write_log(path: Path, rows: int, users: int, items: int, text_ids: bool) -> None:
    """A CSV with header user_id,item_id,rating,timestamp; items are drawn with a long tail."""
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - start)
            frame = pl.DataFrame(
                {
                    "user_id": generator.integers(1, users + 1, count),
                    "item_id": (items * generator.random(count) ** 3).astype(np.int64) + 1,
                    "rating": generator.integers(1, 6, count),
                    "timestamp": generator.integers(1_000_000_000, 1_500_000_000, count),
                }
            )
            if text_ids:
                frame = frame.with_columns(
                    pl.format(f"{prefix}-{{}}", pl.col(column).cast(pl.String).str.zfill(12)).alias(column)
                    for column, prefix in (("user_id", "visitor"), ("item_id", "article"))
                )
            frame.write_csv(file, include_header=start == 0)


def read_log(path: Path) -> dict[str, float | int]:
    """Seconds and peak memory of one `load_dataset` in this process."""
    from jaxrec.data import load_dataset

    begin, cpu = time.perf_counter(), time.process_time()
    dataset = load_dataset(path)
    seconds = time.perf_counter() - begin
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **dataset.counts,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(
            time.process_time() - cpu, 2
        ),  # far less than cores x seconds: the machine was busy
        "interactions_per_second": round(dataset.n_interactions / seconds),
        "peak_rss_mib": round(peak_kib / 1024),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time and memory of reading a large CSV.")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=138_493)
    parser.add_argument("--items", type=int, default=26_744)
    parser.add_argument("--text-ids", action="store_true", help="20-character ids in place of numbers")
    parser.add_argument("--directory", default=None, help="where the temporary file goes")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_log(options.write, options.rows, options.users, options.items, options.text_ids)
        return
    if options.read:
        print(json.dumps(read_log(options.read)))
        return
    # Written and read in fresh processes: this one stays small, and its memory does not enter the peak.
    itself = [sys.executable, "-m", "experiments.benchmarks.read_csv"]
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "log.csv"
        sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "users", "items")]
        text = ["--text-ids"] if options.text_ids else []
        subprocess.run([*itself, f"--write={path}", *sizes, *text], check=True)
        size = path.stat().st_size
        finished = subprocess.run([*itself, f"--read={path}"], check=True, capture_output=True, text=True)
    result = {"rows": options.rows, "text_ids": options.text_ids, "file_mib": round(size / 2**20)}
    result |= json.loads(finished.stdout.splitlines()[-1])
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:>24}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
