"""Starting points of the trials: a small log, its saved form, a finished run, and their right answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from experiments.reliability.trials import command
from jaxrec.data import SequenceDataset
from jaxrec.data.catalogue import AttributeTable

#: Options of a run that trains in a second.
SMALL = ["--preset", "smoke", "--quiet", "--json", "--batches.batch-size", "8", "--batches.max-length", "16"]
SMALL += ["--encoder.width", "8", "--evaluation.ks", "5", "10", "--training.checkpoint-seconds", "0"]
#: History of the recommendations that are compared.
HISTORY = ("i3", "i7", "i5")


def cache_environment(folder: Path) -> dict[str, str]:
    """Environment of processes that share compiled programs."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "OPENBLAS_NUM_THREADS": "1",
    }


def walks(users: int = 40, items: int = 30, seed: int = 0) -> SequenceDataset:
    """Users who walk through the catalogue in steps of one or two; items have attributes, but for a few."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 20, users)
    sequences = [(rng.integers(0, items) + np.cumsum(rng.integers(1, 3, n))) % items + 1 for n in lengths]
    times = [1_500_000_000 + np.cumsum(rng.integers(1, 10**5, n)) for n in lengths]
    labels = [[] if i % 7 == 3 else [f"a{i % 6}", f"b{i % 4}"] for i in range(1, items + 1)]
    return SequenceDataset(
        np.concatenate(sequences).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids=[f"u{i}" for i in range(users)],
        item_ids=[f"i{i}" for i in range(items)],
        timestamps=np.concatenate(times).astype(np.int64),
        attributes=AttributeTable.from_lists(labels),
        meta={"name": "walks"},
    )


def table(dataset: SequenceDataset) -> pl.DataFrame:
    """The log as raw interactions."""
    users = np.repeat(list(dataset.user_ids), np.diff(dataset.offsets))
    items = [dataset.item_ids[i - 1] for i in dataset.items]
    return pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": np.asarray(dataset.timestamps, np.int64)}
    )


class Base(NamedTuple):
    """Files and right answers.

    Attributes:
      folder: holds ``log.csv``, ``data`` (a saved dataset), ``run`` and ``other`` (finished runs).
      audit: what ``jaxrec audit log.csv --json`` finds.
      saved: what ``jaxrec audit data --json`` finds.
      recommended: items for `HISTORY`.
      popular: items for an empty history.
      compared: of the two runs.
    """

    folder: Path
    audit: dict[str, Any]
    saved: dict[str, Any]
    recommended: list[str] | None
    popular: list[str] | None
    compared: Any


def without_names(findings: dict[str, Any]) -> dict[str, Any]:
    """Findings of an audit but the name, the fingerprint (which covers the name of ids' types) and the warnings."""
    return {key: value for key, value in findings.items() if key not in ("name", "fingerprint", "warnings")}


def make_base(folder: Path, trained: bool = True) -> Base:
    """Write the files that are missing; with ``trained`` two runs of different seeds, too."""
    log, data = folder / "log.csv", folder / "data"
    if not log.exists():
        folder.mkdir(parents=True, exist_ok=True)
        table(walks()).write_csv(log)
    if not data.exists():
        walks().save(data)
    if trained:
        for name, seed in (("run", 0), ("other", 1)):
            if not (folder / name / "results.json").exists():
                answer = command(
                    *("train", "--data", data, "--workdir", folder / name, "--overwrite"),
                    *("--training.seeds", seed, *SMALL),
                    seconds=600,
                )
                if answer.status != 0:
                    raise RuntimeError(f"the run that trials start from failed: {answer.message}")
    recommended = popular = compared = None
    if trained:
        recommended = recommend(folder / "run").value["items"]
        popular = recommend(folder / "run", history=()).value["items"]
        compared = command("compare", folder / "run", folder / "other", "--json", seconds=120).value
    return Base(
        folder,
        without_names(command("audit", log, "--json", seconds=120).value),
        without_names(command("audit", data, "--json", seconds=120).value),
        recommended,
        popular,
        compared,
    )


def recommend(run: Path, seconds: float = 60.0, history: tuple[str, ...] = HISTORY) -> Any:
    """Ask a run for the items after a history."""
    return command("recommend", run, "--history", *history, "-k", 5, "--json", seconds=seconds)


def opened(folder: Path, trained: bool) -> Base:
    """The base of this process, read once."""
    key = (str(folder), trained, os.getpid())
    if key not in _OPENED:
        _OPENED[key] = make_base(folder, trained)
    return _OPENED[key]


_OPENED: dict[tuple[str, bool, int], Base] = {}


def as_text(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True)
