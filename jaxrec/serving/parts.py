"""Tables in parts: a directory of Parquet files, each written whole or not at all, that a second call continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.errors import ConfigError, RunExistsError
from jaxrec.files import write_atomically

#: Beside the parts: what they were computed from, and, once all are there, that they are.
MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"


class Parts:
    """A directory ``part-00000.parquet``, ``part-00001.parquet``, ... and a manifest.

    Args:
      out: the directory.
      identity: all that the content depends on, as JSON values; a directory of another identity is not continued.
      count: number of parts.
    """

    def __init__(self, out: str | Path, identity: Mapping[str, Any], count: int):
        self.out, self.count = Path(out), count
        self.identity = json.loads(json.dumps(identity))

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.out / f"part-{part:05d}.parquet"

    def claim(self, resume: bool) -> list[int]:
        """Make the directory, or continue it; return the parts that are missing.

        Raises:
          RunExistsError: the directory or a file of that name exists, and ``resume`` is False.
          ConfigError: it was computed from something else.
        """
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            if not resume:
                raise RunExistsError(
                    f"--out {self.out} exists, and nothing in it was overwritten: continue it with --resume, or give "
                    "another --out"
                )
            self._check_identity()
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            self._write_identity()
        return [part for part in range(self.count) if not self.path(part).exists()]

    def write(self, part: int, table: pl.DataFrame) -> None:
        """Write a part, whole or not at all."""
        write_atomically(self.path(part), lambda file: table.write_parquet(file))

    def total(self, column: str) -> int:
        """Sum of a column over all parts."""
        return sum(
            int(pl.scan_parquet(self.path(part), glob=False).select(pl.col(column).sum()).collect().item())
            for part in range(self.count)
        )

    def finish(self) -> None:
        """Mark the directory as complete."""
        write_atomically(self.out / SUCCESS, "")

    def write_all(
        self,
        make: Callable[[int], pl.DataFrame],
        resume: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[int]:
        """Compute and write the missing parts; one is written while the next is computed.

        Args:
          make: table of a part.
          resume: continue a directory that exists.
          progress: called with the number of parts there and their count, at the start and after each.

        Returns:
          Numbers of the parts that were written.

        Raises:
          RunExistsError, ConfigError: see `claim`.
        """
        missing = self.claim(resume)
        report = progress or (lambda there, count: None)
        report(self.count - len(missing), self.count)
        with ThreadPoolExecutor(1) as writer:
            pending = None
            for place, part in enumerate(missing):
                table = make(part)
                if pending is not None:
                    pending.result()
                    report(self.count - len(missing) + place, self.count)
                pending = writer.submit(self.write, part, table)
            if pending is not None:
                pending.result()
                report(self.count, self.count)
        self.finish()
        return missing

    def _write_identity(self) -> None:
        write_atomically(self.out / MANIFEST, json.dumps(self.identity, indent=1) + "\n")

    def _check_identity(self) -> None:
        try:
            former = json.loads((self.out / MANIFEST).read_text())
        except (OSError, ValueError):
            raise RunExistsError(
                f"--out {self.out} exists and has no {MANIFEST}, so it is not ours to continue: give another --out"
            ) from None
        different = [name for name in self.identity if former.get(name) != self.identity[name]]
        if different or set(former) != set(self.identity):
            if not any(
                self.out.glob("part-*.parquet")
            ):  # a job that ended before its first part, as by a bad row
                self._write_identity()
                return
            names = different or sorted(set(former) ^ set(self.identity))
            first = names[0]
            raise ConfigError(
                f"--out {self.out} was computed with another {first}: expected {former.get(first)!r}, got "
                f"{self.identity.get(first)!r}; repeat the former options, or give another --out"
            )
