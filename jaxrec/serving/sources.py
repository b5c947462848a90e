"""Sources of many histories, read in pieces: the log of a run, or a file of one history per line or row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from jaxrec.data.catalogue import id_text
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import DataError, JaxrecError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.seen import SeenItems
from jaxrec.serving.recommender import Recommender, histories_of_requests
from jaxrec.serving.requests import Request, parse_json
from jaxrec.training.feed import RelativeSeconds

#: Columns of a file of histories beside "user" and "history".
OPTIONS = (
    "k",
    "remove_seen",
    "timestamps",
    "exclude",
    "allow",
    "exclude_attributes",
    "allow_attributes",
)


class Block(NamedTuple):
    """Some users of a source.

    Attributes:
      users: original ids.
      histories: of each user.
      removed: items that are no candidates of each.
      lengths: int64[E], length of each list.
      allowed: the only candidates of each, None for all; None where no user has such.
    """

    users: list[str]
    histories: Histories
    removed: SeenItems
    lengths: np.ndarray
    allowed: list[np.ndarray | None] | None = None


class Source(Protocol):
    """Histories of many users."""

    def __len__(self) -> int:
        """Number of users."""

    @property
    def identity(self) -> dict[str, Any]:
        """Entries of a manifest that tell this source from others."""

    def read(self, start: int, stop: int) -> Block:
        """Read some users."""


class LogSource:
    """Every user of a dataset, with the whole history.

    Args:
      dataset: with the items of the run.
      remove_seen: leave out the items of the history.
      k: length of the lists.
      with_times: read timestamps.
    """

    def __init__(self, dataset: SequenceDataset, remove_seen: bool, k: int, with_times: bool):
        self.dataset, self.remove_seen, self.k = dataset, remove_seen, k
        self._times = (
            RelativeSeconds(dataset.timestamps, dataset.offsets)
            if with_times and dataset.timestamps is not None
            else None
        )

    def __len__(self) -> int:
        return self.dataset.n_users

    @property
    def identity(self) -> dict[str, Any]:
        """Fingerprint of the dataset."""
        return {"histories": f"dataset {self.dataset.fingerprint}"}

    def read(self, start: int, stop: int) -> Block:
        """Read users ``start`` to ``stop - 1``."""
        bounds = np.asarray(self.dataset.offsets[start : stop + 1], np.int64)
        first, last = int(bounds[0]), int(bounds[-1])
        items = np.asarray(self.dataset.items[first:last], np.int32)
        times = None if self._times is None else self._times[slice(first, last)]
        offsets = bounds - first
        numbers = np.arange(start, start + len(offsets) - 1, dtype=np.int32)
        histories = Histories(items, offsets[:-1], offsets[1:], times, numbers)
        users = [str(user) for user in self.dataset.user_ids[start:stop]]
        removed = (
            SeenItems(offsets, items) if self.remove_seen else SeenItems(np.zeros_like(offsets), items[:0])
        )
        return Block(users, histories, removed, np.full(len(users), self.k))


class FileSource:
    """A Parquet file, or a text file of one JSON object per line, with a history per user.

    Columns are "user", "history" (a list of item ids, oldest first) and, where wanted, fields of
    `jaxrec.serving.Request` in `OPTIONS`.

    Args:
      file: ``.parquet``, ``.jsonl`` or ``.ndjson``.
      recommender: that checks the requests.
      k: length of a list where the file says none.
      remove_seen: leave out the items of the history where the file says nothing; None = as the run was evaluated.

    Raises:
      DataError: the file is missing, of another kind, or lacks a column.
    """

    def __init__(self, file: str | Path, recommender: Recommender, k: int, remove_seen: bool | None):
        self.file, self.recommender, self.k, self.remove_seen = Path(file), recommender, k, remove_seen
        if not self.file.is_file():
            raise DataError(f"--histories {self.file} does not exist: give a .parquet or .jsonl file")
        self._offsets: np.ndarray | None = None
        if self.file.suffix == ".parquet":
            self._table = self._open()
            self._count = int(self._table.select(pl.len()).collect().item())
        elif self.file.suffix in (".jsonl", ".ndjson"):
            self._offsets = _line_offsets(self.file)
            self._count = len(self._offsets) - 1
        else:
            raise DataError(
                f"--histories must be a .parquet, .jsonl or .ndjson file with the columns user and history, got "
                f"{self.file.name!r}"
            )

    def _open(self) -> pl.LazyFrame:
        try:
            table = pl.scan_parquet(self.file, glob=False)
            columns = table.collect_schema().names()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"--histories {self.file} cannot be read: {error}") from None
        missing = {"user", "history"} - set(columns)
        if missing:
            raise DataError(
                f"--histories {self.file.name} must have the columns user and history, got {', '.join(columns)}"
            )
        return table

    def __len__(self) -> int:
        return self._count

    @property
    def identity(self) -> dict[str, Any]:
        """Digest of the file."""
        with self.file.open("rb") as content:
            return {"histories": f"file {hashlib.file_digest(content, 'sha256').hexdigest()}"}

    def read(self, start: int, stop: int) -> Block:
        """Read rows ``start`` to ``stop - 1``.

        Raises:
          DataError: a row is no valid request; the message names it.
        """
        rows = self._json_rows(start, stop) if self._offsets is not None else self._parquet_rows(start, stop)
        users, requests = [], []
        for number, row in enumerate(rows, start=start + 1):
            users.append(id_text(row.get("user")))
            requests.append(self._request(row, number))
        try:
            prepared = self.recommender.prepare(requests)
        except JaxrecError:
            for number, request in enumerate(requests, start=start + 1):
                try:
                    self.recommender.prepare([request])
                except JaxrecError as error:
                    raise DataError(f"--histories {self.file.name}, row {number}: {error}") from None
            raise
        removed, allowed = self.recommender.filters(prepared)
        lengths = np.array([request.k for request in prepared])
        return Block(users, histories_of_requests(prepared), removed, lengths, allowed)

    def _request(self, row: dict[str, Any], number: int) -> Request:
        unknown = set(row) - {"user", "history", *OPTIONS}
        if row.get("user") is None or "history" not in row or unknown:
            problem = f"unknown field {sorted(unknown)[0]!r}" if unknown else "no user or no history"
            raise DataError(
                f"--histories {self.file.name}, row {number}: {problem}; expected user, history and, where wanted, "
                f"{', '.join(OPTIONS)}"
            )
        options: dict[str, Any] = {"k": self.k, "remove_seen": self.remove_seen}
        options |= {name: row[name] for name in OPTIONS if row.get(name) is not None}
        if self.recommender.needs_users:
            options["user"] = row.get("user")
        return Request(row["history"] if row["history"] is not None else [], **options)

    def _parquet_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        return self._table.slice(start, stop - start).collect().to_dicts()

    def _json_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        assert self._offsets is not None
        with self.file.open("rb") as file:
            file.seek(int(self._offsets[start]))
            lines = file.read(int(self._offsets[stop] - self._offsets[start])).splitlines()
        rows = []
        for number, line in enumerate(lines, start=start + 1):
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"--histories {self.file.name}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"--histories {self.file.name}, line {number} must be a JSON object, got {line[:40]!r}"
                )
            rows.append(row)
        return rows


def _line_offsets(file: Path) -> np.ndarray:
    """int64[lines + 1], the first byte of each line and the end; eight bytes per line are in memory."""
    offsets = [np.zeros(1, np.int64)]
    place = 0
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            offsets.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + place + 1)
            place += len(chunk)
    starts = np.concatenate(offsets)
    return starts if starts[-1] == place else np.append(starts, place)
