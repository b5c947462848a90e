"""Lists and vectors of millions of users: Parquet in parts, within bounded memory, continued where it was interrupted."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from jaxrec.errors import ConfigError
from jaxrec.serving.parts import Parts
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.requests import Request
from jaxrec.serving.sources import Block, FileSource, LogSource, Source
from jaxrec.serving.vectors import user_vectors
from jaxrec.training.digests import content_digests

#: Users of one part: their histories and lists are in memory at once.
USERS_PER_PART = 8192


@dataclasses.dataclass(frozen=True)
class BulkJob:
    """All that a process needs to compute any part of a table of users; it can be sent to other processes.

    Attributes:
      run: run directory.
      out: directory to write.
      histories: file of histories (see `jaxrec.serving.sources.FileSource`); "" = all users of the run's dataset.
      k: length of the lists.
      seed: which of the run's models; None = the first.
      remove_seen: leave out the items of the history; None = as the run was evaluated.
      exclude: ids of items that are no candidates of any user.
      allow: ids of the only candidates; None = all items.
      exclude_attributes: items with one of these attributes are no candidates.
      allow_attributes: only items with one of these attributes are candidates; None = all items.
      users_per_part: users of a part.
      vectors: write the users' vectors instead of lists.
      data: where the run's dataset is now; "" = where its configuration says.
    """

    run: str
    out: str
    histories: str = ""
    k: int = 10
    seed: int | None = None
    remove_seen: bool | None = None
    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] | None = None
    exclude_attributes: tuple[str, ...] = ()
    allow_attributes: tuple[str, ...] | None = None
    users_per_part: int = USERS_PER_PART
    vectors: bool = False
    data: str = ""

    def __post_init__(self) -> None:
        if self.users_per_part < 1:
            raise ConfigError(f"--users-per-part must be at least 1, got {self.users_per_part}")

    def open(self) -> BulkTable:
        """Load the model and open the histories.

        Raises:
          ConfigError: the run is not finished, or an option has a value that it cannot have.
          DataError: the histories cannot be read, or a filter has an unknown name.
        """
        return BulkTable(self)


class BulkTable:
    """The table of a job, computed part by part.

    Args:
      job: what to compute.

    Attributes:
      candidates: items that the filters of the whole job leave.
    """

    def __init__(self, job: BulkJob):
        self.job = job
        self.recommender = Recommender.load(job.run, job.seed, job.data)
        length = (
            1 if job.vectors else job.k
        )  # vectors have none, and a catalogue may be shorter than the default
        filters = Request(
            (), length, False, (), job.exclude, job.allow, job.exclude_attributes, job.allow_attributes
        )
        checked = self.recommender.prepare([filters])
        removed = self.recommender.removed(checked).items
        self.lists = self.recommender.lists.without(removed)
        self.candidates = self.recommender.items.n_items - len(np.unique(removed))

    @functools.cached_property
    def source(self) -> Source:
        """The histories of the file, or of all users of the log."""
        job, recommender = self.job, self.recommender
        if job.histories:
            return FileSource(job.histories, recommender, job.k, job.remove_seen)
        seen = recommender.config.evaluation.remove_seen if job.remove_seen is None else job.remove_seen
        return LogSource(recommender.run.dataset, seen, job.k, recommender.needs_times)

    @property
    def count(self) -> int:
        """Number of parts; of no users there is one, which has the columns alone."""
        return max(1, -(-len(self.source) // self.job.users_per_part))

    @functools.cached_property
    def parts(self) -> Parts:
        """The directory that is written."""
        options = dataclasses.asdict(self.job)
        for name in ("run", "out", "histories", "data"):
            del options[name]
        for name in ("exclude", "allow"):
            options[name] = _digest(options[name])
        leaves = jax.tree_util.tree_leaves_with_path(self.recommender.params)
        digests = content_digests({jax.tree_util.keystr(path): leaf for path, leaf in leaves})
        identity = {"model": _digest(sorted(digests.items())), **self.source.identity, **options}
        return Parts(self.job.out, identity, self.count)

    def part(self, number: int) -> pl.DataFrame:
        """Compute a part: columns user, items, scores and popular, or user and vector."""
        start = number * self.job.users_per_part
        block = self.source.read(start, min(start + self.job.users_per_part, len(self.source)))
        if self.job.vectors:
            vectors = user_vectors(self.recommender, block.histories)
            return pl.DataFrame({"user": block.users, "vector": vectors})
        return self._list_table(block)

    def _list_table(self, block: Block) -> pl.DataFrame:
        most, allowed = int(block.lengths.max(initial=1)), block.allowed or [None] * len(block.users)
        lists = self.lists.top_k_among(block.histories, most, block.removed, allowed)
        real = (lists.items > 0) & (np.arange(lists.items.shape[1]) < block.lengths[:, None])
        popular = (block.histories.lengths == 0) & (self.recommender.ranker.item_counts is not None)
        flat = pl.DataFrame(
            {
                "row": np.nonzero(real)[0].astype(np.uint32),
                "items": self._names.gather(lists.items[real] - 1),
                "scores": lists.scores[real],
            }
        )
        rows = flat.group_by("row", maintain_order=True).agg("items", "scores")
        users = pl.DataFrame(
            {"row": np.arange(len(block.users), dtype=np.uint32), "user": block.users, "popular": popular},
            schema_overrides={"user": pl.String},
        )
        empty: pl.Series = pl.Series([[]], dtype=pl.List(pl.String))
        return users.join(rows, on="row", how="left", maintain_order="left").select(
            "user",
            pl.col("items").fill_null(empty),
            pl.col("scores").fill_null(pl.Series([[]], dtype=pl.List(pl.Float32))),
            "popular",
        )

    @functools.cached_property
    def _names(self) -> pl.Series:
        return pl.Series("items", [str(name) for name in self.recommender.items.item_ids], dtype=pl.String)


def _digest(values: Any) -> str | None:
    return None if values is None else hashlib.sha256(repr(values).encode()).hexdigest()


def run_bulk(job: BulkJob, resume: bool = False, progress: Any = None) -> dict[str, Any]:
    """Write the table of a job.

    Args:
      job: what to write.
      resume: continue a directory that an interrupted call of the same job left.
      progress: see `jaxrec.serving.parts.Parts.write_all`.

    Returns:
      Directory, users, those whose lists are popular items (of lists alone), candidates, parts, parts written now, seconds
      and users per second (of these parts).

    Raises:
      RunExistsError: ``out`` exists, and ``resume`` is False; nothing is overwritten.
      ConfigError, DataError: see `BulkJob.open`; or ``out`` was computed with other options.
    """
    table = job.open()
    begin = time.perf_counter()
    written = table.parts.write_all(table.part, resume, progress)
    return bulk_summary(table, written, time.perf_counter() - begin)


def bulk_summary(table: BulkTable, written: Sequence[int], seconds: float) -> dict[str, Any]:
    """Figures of a finished job, of which the parts with these numbers were written now; see `run_bulk`."""
    size = table.job.users_per_part
    users = sum(min(size, len(table.source) - number * size) for number in written)
    popular = {} if table.job.vectors else {"popular": table.parts.total("popular")}
    return {
        "out": str(Path(table.job.out)),
        "users": len(table.source),
        **popular,
        "candidates": table.candidates,
        "parts": table.count,
        "parts_written": len(written),
        "seconds": round(seconds, 2),
        "users_per_second": round(users / seconds, 1) if written else None,
    }
