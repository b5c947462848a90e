"""Time, memory and disk of preparing a large log: Polars alone, DuckDB alone, `jaxrec prepare`; and of training from it.

    python -m data_prep.synthetic --rows 100000000 --out log.parquet
    python -m experiments.benchmarks.preparation log.parquet --engines polars duckdb low-memory --train

Every run is a fresh process. All do the same: number users and items by first appearance, keep the k-core, sort by user and
time, ties in file order; a digest of the sorted items and times shows that they agree. ``polars`` and ``duckdb`` leave
everything to the engine, ``memory`` is `load_dataset` and ``low-memory`` is `prepare_in_blocks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.record import command_line, number, write_record
from jaxrec.analysis.tables import to_markdown

K = 5
Engine = Literal["polars", "duckdb", "memory", "low-memory"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Prepare logs with several engines, and train from the last result.

    Attributes:
      files: logs with the columns user_id, item_id and timestamp, .parquet or .csv.
      engines: engines to compare.
      memory_gib: memory limit of DuckDB; Polars has none.
      threads: threads of both engines.
      train: train some steps from the memory-mapped result of the last file.
      directory: folder of temporary files.
      joined: files with the output of earlier calls, whose runs join the record; one call of an hour can so be several.
      record: name of the record; empty = none.
      notes: paragraphs for the record.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    engines: tuple[Engine, ...] = ("polars", "duckdb", "low-memory")
    memory_gib: float = 4.0
    threads: int = 1
    train: bool = False
    directory: str = ""
    joined: tuple[Path, ...] = ()
    record: str = ""
    notes: tuple[str, ...] = ()


# ---- one measurement, in a process of its own


class Memory:
    """Peak memory of this process: all of it, and what is no page of a file, sampled ten times a second."""

    def __init__(self) -> None:
        self.anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, self.field("RssAnon"))
            time.sleep(0.1)

    @staticmethod
    def field(name: str) -> int:
        """MiB of a field of /proc/self/status."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name + ":"))

    def peaks(self) -> dict[str, int]:
        """MiB."""
        return {"peak_rss_mib": self.field("VmHWM"), "peak_anonymous_mib": self.anonymous}


def digest_of(batches: Iterator[tuple[np.ndarray, np.ndarray]], n_items: int) -> str:
    """Hash of sorted items, numbered by first appearance, and times; one batch at a time."""
    numbers, following = np.zeros(n_items, np.int32), 1
    hashes = hashlib.sha256(), hashlib.sha256()
    for codes, times in batches:
        distinct, first = np.unique(codes, return_index=True)
        new = distinct[np.argsort(first)]
        new = new[numbers[new] == 0]
        numbers[new] = np.arange(following, following + len(new))
        following += len(new)
        hashes[0].update(numbers[codes].tobytes())
        hashes[1].update(times.astype(np.int64).tobytes())
    return hashes[0].hexdigest()[:16] + hashes[1].hexdigest()[:16]


def with_polars(file: Path, work: Path, options: Options) -> dict[str, Any]:
    """Prepare by Polars' streaming engine alone."""
    import polars as pl

    text = file.suffix == ".csv"
    log = (pl.scan_csv(file, infer_schema=False) if text else pl.scan_parquet(file)).with_row_index("row")
    codes = {}
    for name, column in (("u", "user_id"), ("i", "item_id")):
        first = log.group_by(column).agg(pl.col("row").min()).collect(engine="streaming").sort("row")
        codes[name] = first.select(column).with_row_index(name).cast({name: pl.Int32})
    sink: dict[str, Any] = {"compression": "lz4"}
    log = log.join(codes["u"].lazy(), on="user_id").join(codes["i"].lazy(), on="item_id")
    log.select("row", "u", "i", pl.col("timestamp").cast(pl.Int64).alias("t")).sink_parquet(
        work / "log.parquet", **sink
    )
    log, sizes = pl.scan_parquet(work / "log.parquet"), None
    while True:
        few = {
            name: log.group_by(name).len().filter(pl.col("len") >= K).select(name).collect(engine="streaming")
            for name in ("u", "i")
        }
        log = pl.scan_parquet(work / "log.parquet")
        for name, kept in few.items():
            log = log.join(kept.lazy(), on=name, how="semi")
        before, sizes = sizes, [len(kept) for kept in few.values()]
        if sizes == before:
            break
    # Users by first appearance among what is left.
    first = log.group_by("u").agg(pl.col("row").min().alias("first")).collect(engine="streaming")
    log = log.join(first.lazy(), on="u")
    log.sort("first", "t", "row").select("i", "t").sink_parquet(work / "sorted.parquet", **sink)
    result = {"users": sizes[0], "items": sizes[1]}
    batches = pl.scan_parquet(work / "sorted.parquet").collect_batches(
        chunk_size=1_000_000, maintain_order=True
    )
    return result | {
        "batches": ((b["i"].to_numpy(), b["t"].to_numpy()) for b in batches),
        "codes": len(codes["i"]),
    }


def with_duckdb(file: Path, work: Path, options: Options) -> dict[str, Any]:
    """Prepare by DuckDB alone, in a database on disk."""
    import duckdb

    limits = {
        "memory_limit": f"{options.memory_gib}GiB", "threads": options.threads, "temp_directory": str(work / "spilled"),
    }  # fmt: skip
    base = duckdb.connect(str(work / "log.duckdb"), config=limits)
    source = f"read_csv('{file}', all_varchar = true)" if file.suffix == ".csv" else f"read_parquet('{file}')"
    base.execute(f"CREATE TABLE raw AS SELECT user_id, item_id, timestamp::BIGINT AS t FROM {source}")
    for name, column in (("u", "user_id"), ("i", "item_id")):
        base.execute(
            f"CREATE TABLE codes_{name} AS SELECT {column}, "
            f"(row_number() OVER (ORDER BY min(rowid)) - 1)::INTEGER AS {name} FROM raw GROUP BY {column}"
        )
    base.execute(
        "CREATE TABLE log AS SELECT raw.rowid AS row, u, i, t FROM raw "
        "JOIN codes_u USING (user_id) JOIN codes_i USING (item_id)"
    )
    base.execute("DROP TABLE raw")
    kept, sizes = "log", None
    while True:
        for name in ("u", "i"):
            base.execute(
                f"CREATE TEMP TABLE new_{name} AS SELECT {name} FROM {kept} GROUP BY {name} HAVING count(*) >= {K}"
            )
        for name in ("u", "i"):
            base.execute(f"CREATE OR REPLACE TEMP TABLE kept_{name} AS FROM new_{name}")
            base.execute(f"DROP TABLE new_{name}")
        kept = "(SELECT * FROM log SEMI JOIN kept_u USING (u) SEMI JOIN kept_i USING (i))"
        counted = base.execute(
            "SELECT (SELECT count(*) FROM kept_u), (SELECT count(*) FROM kept_i)"
        ).fetchall()[0]
        before, sizes = sizes, counted
        if sizes == before:
            break
    n_items = base.execute("SELECT count(*) FROM codes_i").fetchall()[0][0]
    base.execute(f"CREATE TEMP TABLE firsts AS SELECT u, min(row) AS first FROM {kept} GROUP BY u")
    query = f"SELECT i, t FROM {kept} JOIN firsts USING (u) ORDER BY first, t, row"
    sorted_rows = base.sql(query).to_arrow_reader(1_000_000)
    batches = ((b.column(0).to_numpy(), b.column(1).to_numpy()) for b in sorted_rows)
    return {"users": sizes[0], "items": sizes[1], "batches": batches, "codes": n_items}


def with_jaxrec(file: Path, work: Path, low_memory: bool) -> dict[str, Any]:
    """Prepare by `load_dataset` and `save`, or by `prepare_in_blocks`."""
    from jaxrec.data import load_dataset, prepare_in_blocks

    settings: dict[str, Any] = {"filter": "k-core", "min_interactions": K}
    if low_memory:
        dataset = prepare_in_blocks(file, work / "data", **settings)
    else:
        dataset = load_dataset(file, **settings)
        dataset.save(work / "data")
    batches = ((dataset.items, dataset.timestamps) for _ in range(1))
    return {
        "users": dataset.n_users,
        "items": dataset.n_items,
        "batches": batches,
        "codes": dataset.n_items + 1,
    }


def prepare(engine: Engine, file: Path, work: Path, options: Options) -> dict[str, Any]:
    """Prepare one log with one engine in this process; return what was measured."""
    memory, begin, cpu = Memory(), time.perf_counter(), time.process_time()
    if engine == "polars":
        outcome = with_polars(file, work, options)
    elif engine == "duckdb":
        outcome = with_duckdb(file, work, options)
    else:
        outcome = with_jaxrec(file, work, engine == "low-memory")
    interactions, digest = 0, hashlib.sha256()

    def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal interactions
        for codes, times in outcome["batches"]:
            interactions += len(codes)
            yield codes, times

    if engine in ("polars", "duckdb"):
        digest = digest_of(counted(), outcome["codes"])
        seconds, peaks = time.perf_counter() - begin, memory.peaks()
    else:
        seconds, peaks = time.perf_counter() - begin, memory.peaks()
        digest = digest_of(counted(), outcome["codes"])
    return {
        **{key: outcome[key] for key in ("users", "items")},
        "interactions": interactions,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **peaks,
        "digest": digest,
    }


def train(directory: Path) -> dict[str, Any]:
    """Split a saved dataset by time and train for about 200 steps, streamed from its files."""
    from jaxrec.config import RunConfig
    from jaxrec.data import SequenceDataset, SplitConfig, split_dataset
    from jaxrec.data.batches import BatchConfig
    from jaxrec.models import TransformerConfig
    from jaxrec.objectives import SampledSoftmaxConfig
    from jaxrec.training.loop import train as train_run

    memory, begin = Memory(), time.perf_counter()
    dataset = SequenceDataset.load(directory)
    config = RunConfig(
        split=SplitConfig(strategy="temporal", valid_quantile=0.99998, test_quantile=0.99999),
        batches=BatchConfig(batch_size=64, max_length=50),
        encoder=TransformerConfig(width=16, layers=1),
        objective=SampledSoftmaxConfig(n_negatives=256),
    )
    split = split_dataset(dataset, config.split)
    split_seconds, after_split = time.perf_counter() - begin, memory.peaks()
    # About 7 sequences of this log fill a row; an epoch has so many steps.
    epochs = 200 * config.batches.batch_size * 7 / split.counts["training_users"]
    config = config.updated(
        {"training.epochs": epochs, "training.evaluate_every": epochs, "training.feed": "streamed"}
    )
    begin = time.perf_counter()
    result = train_run(config, dataset, progress=False)
    return {
        "split_seconds": round(split_seconds, 1),
        "split_peak_rss_mib": after_split["peak_rss_mib"],
        "test_cases": len(split.test),
        "steps": result.steps,
        "seconds": round(time.perf_counter() - begin, 1),
        "data_mib": sum(file.stat().st_size for file in directory.iterdir()) >> 20,
        **memory.peaks(),
    }


# ---- all of them


def measure(arguments: Sequence[str], work: Path, threads: int) -> dict[str, Any]:
    """Result of a call of this module in a fresh process, with the largest size of ``work`` meanwhile."""
    command = [sys.executable, "-m", "experiments.benchmarks.preparation", "--inner", *arguments]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    largest = 0
    while process.poll() is None:
        largest = max(largest, size_of(work))
        time.sleep(0.5)
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**json.loads(output.splitlines()[-1]), "peak_disk_mib": largest >> 20}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder whose files come and go."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--inner"]:
        options = json.loads(sys.argv[2])
        settings = Options(files=(), memory_gib=options["memory_gib"], threads=options["threads"])
        work = Path(options["work"])
        if options["engine"] == "train":
            outcome = train(work / "data")
        else:
            outcome = prepare(options["engine"], Path(options["file"]), work, settings)
        print(json.dumps(outcome))
        return
    options = tyro.cli(Options, description=__doc__)
    printed = [
        json.loads(line)
        for file in options.joined
        for line in file.read_text().splitlines()
        if line[:1] == "{"
    ]
    rows = [line for line in printed if "engine" in line]
    trained = next((line for line in printed if "engine" not in line), None)
    for file in options.files:
        for engine in options.engines:
            with tempfile.TemporaryDirectory(dir=options.directory or None) as folder:
                shared = {"work": folder, "memory_gib": options.memory_gib, "threads": options.threads}
                inner = json.dumps({"engine": engine, "file": str(file), **shared})
                outcome = measure([inner], Path(folder), options.threads)
                before = {"engine": engine, "format": file.suffix[1:], "file_mib": file.stat().st_size >> 20}
                rows.append({**before, **outcome})
                print(json.dumps(rows[-1]), flush=True)
                if options.train and file == options.files[-1] and engine == options.engines[-1]:
                    trained = measure(
                        [json.dumps({"engine": "train", **shared})], Path(folder), options.threads
                    )
                    print(json.dumps(trained), flush=True)
    if len({row["digest"] for row in rows}) > 1:
        raise SystemExit("the engines disagree")
    if options.record:
        write(options, rows, trained)


def write(options: Options, rows: list[dict[str, Any]], trained: dict[str, Any] | None) -> None:
    """Write the record."""
    head = rows[0]
    header = [
        "engine",
        "format",
        "seconds",
        "CPU seconds",
        "rows kept per second",
        "peak RSS, GiB",
        "no file pages",
        "disk, GiB",
    ]
    table = [
        [
            row["engine"],
            row["format"],
            number(row["seconds"]),
            number(row["cpu_seconds"]),
            number(row["interactions"] / row["seconds"]),
            *(f"{row[key] / 1024:.2f}" for key in ("peak_rss_mib", "peak_anonymous_mib", "peak_disk_mib")),
        ]
        for row in rows
    ]
    kept = f"{head['users']:,} users, {head['items']:,} items and {head['interactions']:,} interactions"
    body = [
        f"{kept} remain in the {K}-core; all runs agree in every item and time. Threads: {options.threads}; limit of "
        f"memory of DuckDB: {options.memory_gib:g} GiB.",
        to_markdown(header, table),
    ]
    if trained is not None:
        size, after_split, peak, anonymous = (
            f"{trained[key] / 1024:.2f} GiB"
            for key in ("data_mib", "split_peak_rss_mib", "peak_rss_mib", "peak_anonymous_mib")
        )
        body.append(
            f"From the memory-mapped result ({size}): a temporal split took {trained['split_seconds']:.0f} s, with a peak "
            f"of {after_split}. Then {trained['steps']} steps of streamed training and the ranking of "
            f"{trained['test_cases']} test cases had a peak of {peak}, of which {anonymous} were no pages of files."
        )
    write_record(
        options.record,
        {"runs": rows, "training": trained},
        title="Preparing a large log",
        command=command_line("experiments.benchmarks.preparation"),
        body=body,
        notes=options.notes,
    )


if __name__ == "__main__":
    main()
