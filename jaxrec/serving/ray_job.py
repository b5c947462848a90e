"""Bulk jobs on many machines: a Ray Data job whose actors compute and write the parts of a single machine's job."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jaxrec.errors import ConfigError
from jaxrec.serving.bulk import BulkJob, bulk_summary


class PartWriter:
    """Actor: loads the model once and writes the parts that it is sent.

    Args:
      job: what to compute; its paths must mean the same on every machine.
    """

    def __init__(self, job: BulkJob):
        self.table = job.open()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the parts of a batch; return their numbers and users."""
        users = []
        for part in batch["part"].tolist():
            table = self.table.part(part)
            self.table.parts.write(part, table)
            users.append(len(table))
        return {"part": batch["part"], "users": np.asarray(users)}


def run_on_ray(job: BulkJob, resume: bool = False, actors: int = 1) -> dict[str, Any]:
    """Write the table of a job with Ray actors; the files are those of `jaxrec.serving.bulk.run_bulk`.

    Args:
      job: what to write; ``out`` is on storage that all machines share.
      resume: continue a directory that an interrupted call of the same job left.
      actors: number of processes, each with a model of its own.

    Returns:
      As `jaxrec.serving.bulk.run_bulk`.

    Raises:
      ConfigError: Ray is not installed, or a value is out of its range.
      RunExistsError: ``out`` exists, and ``resume`` is False.
    """
    if actors < 1:
        raise ConfigError(f"--ray-actors must be at least 1, got {actors}")
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray-actors needs Ray: pip install 'jaxrec[ray]'") from None
    begin = time.perf_counter()
    table = job.open()
    missing = table.parts.claim(resume)
    if missing:
        parts = ray.data.from_items([{"part": part} for part in missing])
        parts.map_batches(
            PartWriter,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(missing))),
        ).materialize()
    table.parts.finish()
    return bulk_summary(table, missing, time.perf_counter() - begin)
