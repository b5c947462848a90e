"""Logs beyond memory: read, filtered and sorted block by block, through files beside the result.

Polars streams the table, aggregates the ids and joins their numbers on; NumPy does the rest on memory-mapped arrays. Memory
holds a block of rows and what is proportional to users and items, never the log. The dataset is that of `load_dataset`, bit
for bit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data.catalogue import StringArray
from jaxrec.data.dataset import LOADED_WITH, SequenceDataset, open_dataset
from jaxrec.data.interactions import (
    AtLeast,
    FirstOfPair,
    InteractionLog,
    ItemsThenUsers,
    KCore,
    OnePass,
    order_note,
    stable_order,
)
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.load import RawLog, items_of, meta_of, open_finished, open_raw, with_unmatched_items
from jaxrec.data.readers.log import NO_TIMES, choose_columns, clean_ids, no_rows, parse_ratings
from jaxrec.data.readers.tables import reading
from jaxrec.data.readers.times import parse_times
from jaxrec.data.readers.vectors import attach_vectors
from jaxrec.data.storage import check_empty
from jaxrec.errors import DataError
from jaxrec.files import work_folder

#: Rows of a block: of the log while it is read, and of the ranges of users that are sorted.
ROWS = 4_000_000


def prepare_in_blocks(
    source: Any,
    directory: str | os.PathLike[str],
    config: DataConfig | None = None,
    *,
    rows: int = ROWS,
    **options: Any,
) -> SequenceDataset:
    """Prepare a log that does not fit into memory, and open the result, memory-mapped.

    Temporary files, about 40 bytes per interaction and the ids as they are, lie beside ``directory`` meanwhile, in a hidden
    folder; one that a killed process left is removed by the next call for the same ``directory``.

    Args:
      source: as for `load_dataset`: a file, a public dataset or a table, best a lazy one; no finished dataset.
      directory: to write; new or empty.
      config: the options; by default all of them have their default values.
      rows: of a block. 4 million need about 2 GiB.
      **options: further fields of `DataConfig`, which replace those of ``config``.

    Returns:
      The dataset that `load_dataset` gives, from ``directory``.

    Raises:
      ConfigError: an option does not exist or has an impossible value.
      DataError: as for `load_dataset`; times of different units in different parts of the log; or another process prepares
        the same ``directory``.
    """
    config = (config or DataConfig()).replace(**options)
    if isinstance(source, (str, os.PathLike)):
        config = config.replace(source=os.fspath(source))
        source = os.fspath(source)
    path = Path(directory)
    check_empty(path)
    finished = open_finished(source, config)
    raw = open_raw(source, config, {}) if finished is None else finished
    if isinstance(raw, SequenceDataset):
        raise DataError(f"{raw.name!r} is a finished dataset: prepare it without --low-memory")
    with work_folder(path) as work:
        dataset = attach_vectors(_Preparation(raw, work, rows).run(), config)
        dataset = dataset.with_meta(
            {LOADED_WITH: {"options": config.changed(), "fingerprint": dataset.fingerprint}}
        )
        dataset.save(path)
    return open_dataset(path)


#: Filter -> method of `_Preparation` that gives its mask.
_MASKS: dict[type, str] = {
    KCore: "_core",
    OnePass: "_one_pass",
    AtLeast: "_at_least",
    ItemsThenUsers: "_items_then_users",
    FirstOfPair: "_first_of_pair",
}


@dataclasses.dataclass
class _Preparation:
    """One preparation: where it comes from, where its files lie, and how large its blocks are."""

    raw: RawLog
    work: Path
    rows: int

    def run(self) -> SequenceDataset:
        """Read, filter, sort and number."""
        titles, attributes = items_of(self.raw)
        log, note, ids = self._read()
        keep, steps = self._filter(log)
        dataset = self._sequences(log, keep, ids)
        meta = meta_of(self.raw, note)
        dataset = dataset.with_meta({**meta, "order": dataset.meta["order"], "steps": steps})
        with reading("the item table"):
            dataset = dataclasses.replace(
                dataset,
                item_titles=titles(dataset.item_ids) if titles else None,
                attributes=attributes(dataset.item_ids) if attributes else None,
            )
        return with_unmatched_items(dataset)

    # ---- reading

    def _read(self) -> tuple[InteractionLog, dict[str, Any], dict[str, pl.Series]]:
        """The whole log in file order on disk, notes for ``meta``, and the ids of each role as text."""
        raw, config = self.raw, self.raw.config
        columns, warnings = choose_columns(raw.frame, config, raw.where)
        note: dict[str, Any] = {"columns": columns, "time": dict(NO_TIMES)}
        if warnings:
            note["warnings"] = warnings
        total, scales = 0, []
        parts = self.work / "parts"
        parts.mkdir()
        with (self.work / "times").open("wb") as times, (self.work / "enough").open("wb") as enough:
            for number, block in enumerate(self._blocks(columns)):
                try:
                    if (column := columns["time"]) is not None:
                        values, per_second, about = parse_times(block[column], column, config.time_unit)
                        if number and about["unit"] != note["time"]["unit"]:
                            raise _other_unit(column, about["unit"], note["time"]["unit"])
                        note["time"] = about
                        values.astype(np.int64, copy=False).tofile(times)
                        scales.append((total, len(block), per_second))
                    if (rating := columns.get("rating")) is not None:
                        (parse_ratings(block[rating], rating) >= config.min_rating).tofile(enough)
                    ids = [
                        clean_ids(block[column], role, column).alias(role)
                        for role in ("user", "item")
                        if (column := columns[role]) is not None
                    ]
                except DataError as error:
                    where = f"in the rows from {total + 1:,} on, counted from there: " if total else ""
                    raise DataError(f"{where}{error}") from None
                pl.DataFrame(ids).write_parquet(parts / f"{number:06}.parquet", compression="lz4")
                total += len(block)
        if not total:
            raise no_rows(raw.where, columns)
        per_second = self._one_scale(scales)
        users, items, texts = self._encode(parts, total)
        log = InteractionLog(
            users,
            items,
            self._map("times", np.int64, total) if scales else None,
            StringArray.of([]),
            StringArray.of([]),
            per_second,
        )
        return log, note, texts

    def _blocks(self, columns: Mapping[str, str | None]) -> Iterator[pl.DataFrame]:
        selected = [column for column in columns.values() if column is not None]
        with reading(self.raw.where):
            stream = self.raw.frame.select(selected).collect_batches(
                chunk_size=self.rows, maintain_order=True
            )
            for batch in stream:
                for first in range(0, len(batch), self.rows):
                    yield batch[first : first + self.rows]

    def _one_scale(self, scales: list[tuple[int, int, int]]) -> int:
        """Bring all blocks of times to the finest fraction of a second that one of them needs."""
        finest = max((per_second for _, _, per_second in scales), default=1)
        for first, count, per_second in scales:
            if per_second != finest:
                times = self._map("times", np.int64, first + count)
                times[first:] *= finest // per_second
        return finest

    def _encode(self, parts: Path, total: int) -> tuple[np.ndarray, np.ndarray, dict[str, pl.Series]]:
        """Codes of users and items in file order, int32[N], and the id of each code as text."""
        log = pl.scan_parquet(sorted(parts.iterdir()), glob=False).with_row_index("row")
        ids: dict[str, pl.Series] = {}
        for role in ("user", "item"):
            distinct = log.select(role).unique().collect(engine="streaming").with_row_index(f"{role}_code")
            log = log.join(distinct.lazy(), on=role, how="inner", maintain_order="left")
            ids[role] = distinct[role].cast(pl.String)
        codes = {role: self._new(role, np.int32, total) for role in ("user", "item")}
        for batch in log.select("row", "user_code", "item_code").collect_batches(maintain_order=False):
            rows = batch["row"].to_numpy()
            for role, into in codes.items():
                into[rows] = batch[f"{role}_code"].to_numpy()
        for part in parts.iterdir():
            part.unlink()
        return codes["user"], codes["item"], ids

    def _new(self, name: str, dtype: Any, length: int) -> np.ndarray:
        return np.memmap(self.work / name, dtype, "w+", shape=(length,))

    def _map(self, name: str, dtype: Any, length: int) -> np.ndarray:
        return np.memmap(self.work / name, dtype, "r+", shape=(length,))

    # ---- filters

    def _filter(self, log: InteractionLog) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """bool[N], interactions that stay, and entries of ``meta["steps"]``."""
        keep = np.ones(len(log), bool)
        steps: list[dict[str, Any]] = []
        config = self.raw.config
        masks: list[tuple[Any, dict[str, Any]]] = []
        if config.min_rating is not None:
            enough = self._map("enough", bool, len(log))
            masks.append((lambda *_: enough, {"filter": "min-rating", "minimum": config.min_rating}))
        for one in self.raw.filters():
            masks.append((getattr(self, _MASKS[type(one)]), one.step))
        for mask, step in masks:
            before = self._counts(log, keep)
            keep &= mask(log, keep, step)
            after = self._counts(log, keep)
            if not after["interactions"]:
                raise DataError(
                    f"filter {step['filter']!r} leaves none of {before['interactions']} interactions: lower its thresholds"
                )
            steps.append({**step, "before": before, "after": after})
        return keep, steps

    def _spans(self, length: int) -> Iterator[slice]:
        for first in range(0, length, self.rows):
            yield slice(first, min(first + self.rows, length))

    def _counted(self, log: InteractionLog, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interactions of each user and of each item among those that stay."""
        counts = [np.zeros(int(codes.max()) + 1, np.int64) for codes in (log.users, log.items)]
        for span in self._spans(len(log)):
            for codes, into in zip((log.users, log.items), counts, strict=True):
                into += np.bincount(codes[span][keep[span]], minlength=len(into))
        return counts[0], counts[1]

    def _counts(self, log: InteractionLog, keep: np.ndarray) -> dict[str, int]:
        users, items = self._counted(log, keep)
        return {
            "users": int(np.count_nonzero(users)),
            "items": int(np.count_nonzero(items)),
            "interactions": int(np.count_nonzero(keep)),
        }

    def _one_pass(self, log: InteractionLog, keep: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
        users, items = self._counted(log, keep)
        enough = np.zeros(len(log), bool)
        long_users, known = users >= step.get("users", step["minimum"]), items >= step["minimum"]
        for span in self._spans(len(log)):
            enough[span] = long_users[log.users[span]] & known[log.items[span]]
        return enough

    def _at_least(self, log: InteractionLog, keep: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
        number, codes = (0, log.users) if step["filter"] == "users" else (1, log.items)
        enough = self._counted(log, keep)[number] >= step["minimum"]
        return np.concatenate([enough[codes[span]] for span in self._spans(len(log))])

    def _items_then_users(self, log: InteractionLog, keep: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
        first = self._first_of_pair(log, keep, step)
        known = self._counted(log, first)[1] >= step["minimum"]
        stays = np.concatenate([known[log.items[span]] for span in self._spans(len(log))])
        long_users = self._counted(log, first & stays)[0] >= step["users"]
        for span in self._spans(len(log)):
            stays[span] &= long_users[log.users[span]]
        return stays

    def _core(self, log: InteractionLog, keep: np.ndarray, step: dict[str, Any]) -> np.ndarray:
        users, items = self._counted(log, keep)
        core, step["passes"] = keep.copy(), 0
        while True:
            step["passes"] += 1
            fallen = False
            few_users, few_items = users < step.get("users", step["k"]), items < step["k"]
            for span in self._spans(len(log)):
                of_user, of_item = log.users[span], log.items[span]
                falls = core[span] & (few_users[of_user] | few_items[of_item])
                if falls.any():
                    fallen = True
                    core[span] &= ~falls
                    users -= np.bincount(of_user[falls], minlength=len(users))
                    items -= np.bincount(of_item[falls], minlength=len(items))
            if not fallen:
                return core

    def _first_of_pair(self, log: InteractionLog, keep: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
        """Compare a share of the users at a time, so that a share of the log is in memory."""
        first, n_items = np.zeros(len(log), bool), int(log.items.max()) + 1
        shares = -(-len(log) // self.rows)
        for share in range(shares):
            mine = [
                span.start + np.flatnonzero(keep[span] & (log.users[span] % shares == share))
                for span in self._spans(len(log))
            ]
            rows = np.concatenate(mine)
            pairs = log.users[rows].astype(np.int64) * n_items + log.items[rows]
            first[rows[np.unique(pairs, return_index=True)[1]]] = True
        return first

    # ---- sequences

    def _sequences(
        self, log: InteractionLog, keep: np.ndarray, ids: Mapping[str, pl.Series]
    ) -> SequenceDataset:
        """Number users by first appearance, sort by user and time, number items by first appearance."""
        user_codes, numbers = self._by_first_appearance(log.users, keep, len(ids["user"]))
        counts = np.zeros(len(user_codes), np.int64)
        for span in self._spans(len(log)):
            counts += np.bincount(numbers[log.users[span][keep[span]]], minlength=len(counts))
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        items, times, moved = self._grouped(log, keep, numbers, offsets)
        moved |= self._sort_by_time(items, times, offsets)
        item_codes, item_numbers = self._by_first_appearance(
            items, np.ones(len(items), bool), len(ids["item"])
        )
        for span in self._spans(len(items)):
            items[span] = item_numbers[items[span]] + 1
            if times is not None and log.times_per_second > 1:
                times[span] //= log.times_per_second
        return SequenceDataset(
            items=items,
            offsets=offsets,
            user_ids=StringArray.of(ids["user"][user_codes].to_list()),
            item_ids=StringArray.of(ids["item"][item_codes].to_list()),
            timestamps=times,
            meta={"order": order_note(timed=times is not None, moved=moved)},
        )

    def _by_first_appearance(
        self, codes: np.ndarray, keep: np.ndarray, n_codes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes that stay, by first appearance, int64[K], and the number of each code, int32[n_codes]."""
        first = np.full(n_codes, len(codes), np.int64)
        # Written backwards, the last assignment is the first appearance.
        for span in reversed(list(self._spans(len(codes)))):
            rows = span.start + np.flatnonzero(keep[span])[::-1]
            first[codes[rows]] = rows
        present = np.argsort(first, kind="stable")[: int(np.count_nonzero(first < len(codes)))]
        numbers = np.zeros(n_codes, np.int32)
        numbers[present] = np.arange(len(present), dtype=np.int32)
        return present, numbers

    def _grouped(
        self, log: InteractionLog, keep: np.ndarray, numbers: np.ndarray, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, bool]:
        """Items and times user after user, each in file order (a counting sort), and whether any row moved."""
        items = self._new("items", np.int32, int(offsets[-1]))
        times = None if log.times is None else self._new("sorted", np.int64, int(offsets[-1]))
        following, moved, last = offsets[:-1].copy(), False, -1
        for span in self._spans(len(log)):
            rows = span.start + np.flatnonzero(keep[span])
            if not len(rows):
                continue
            users = numbers[log.users[rows]]
            moved |= bool(users[0] < last or np.any(users[1:] < users[:-1]))
            last = int(users[-1])
            order = np.argsort(users, kind="stable")
            users, rows = users[order], rows[order]
            starts = np.flatnonzero(np.diff(users, prepend=-1))
            lengths = np.diff(starts, append=len(users))
            places = following[users] + np.arange(len(users)) - np.repeat(starts, lengths)
            following[users[starts]] += lengths
            items[places] = log.items[rows]
            if times is not None and log.times is not None:
                times[places] = log.times[rows]
        return items, times, moved

    def _sort_by_time(self, items: np.ndarray, times: np.ndarray | None, offsets: np.ndarray) -> bool:
        """Sort each user's interactions by time, in place, users in ranges that fit a block; whether any moved."""
        moved = False
        first = 0
        while times is not None and first < len(offsets) - 1:
            stop = int(np.searchsorted(offsets, offsets[first] + self.rows, side="right")) - 1
            stop = max(stop, first + 1)
            span = slice(int(offsets[first]), int(offsets[stop]))
            users = np.repeat(np.arange(stop - first, dtype=np.int32), np.diff(offsets[first : stop + 1]))
            order = stable_order(users, times[span])
            if order is not None:
                moved = True
                items[span], times[span] = items[span][order], times[span][order]
            first = stop
        return moved


def _other_unit(column: str, unit: str, before: str) -> DataError:
    return DataError(
        f"time column {column!r} holds times in another unit ({unit}) than the rows before ({before}): bring all times to "
        "one unit, or give it by --data.time-unit if it is one"
    )
