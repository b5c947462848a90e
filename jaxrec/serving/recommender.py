"""Recommendations from a run directory, for users that training never saw, in original ids."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from jaxrec.data.dataset import SequenceDataset, save_dataset
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.seen import SeenItems
from jaxrec.files import write_atomically
from jaxrec.runs import CATALOGUE, ITEM_COUNTS, Run
from jaxrec.training.state import Params


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The answer to one history.

    Attributes:
      items: original ids, best first; shorter than asked for only where the catalogue runs out.
      titles: their titles, or None for a dataset without titles.
      scores: float32, one each, comparable within the list.
      unknown: ids of the history that are not in the catalogue; they were ignored.
      popular: whether no item of the history is known, so that these are the items with the most training
        interactions, whose numbers are the scores.
    """

    items: list[str]
    titles: list[str] | None
    scores: list[float]
    unknown: list[str]
    popular: bool = False


class Recommender:
    """A trained encoder with its catalogue. Scores come from the same code as the evaluation's ranks.

    >>> recommender = Recommender.load("runs/a")                                   # doctest: +SKIP
    >>> recommender.recommend([["tt0111161", "tt0468569"]], k=10)[0].titles        # doctest: +SKIP
    """

    def __init__(self, run: Run, seed: int | None = None):
        """A finished run with the model of one seed.

        Args:
          run: on disk.
          seed: which of the run's models; None = the first.

        Raises:
          ConfigError: the run is not finished, or has no such seed.
          CheckpointError: it has no usable checkpoint.
        """
        self.run = run
        self.config = run.config
        self.items = run.catalogue
        self.encoder = run.encoder
        self.ranker = run.ranker(seed)
        self.needs_times = self.config.encoder.needs_timestamps

    @property
    def params(self) -> Params:
        """Parameters of the model."""
        return self.ranker.params

    @classmethod
    def load(cls, run: str | Path, seed: int | None = None) -> Recommender:
        """The model of a run directory; see `Recommender`."""
        return cls(Run(run), seed)

    def recommend(
        self,
        histories: Sequence[Iterable[Any]],
        k: int | Sequence[int] = 10,
        *,
        remove_seen: bool | Sequence[bool] | None = None,
        timestamps: Sequence[Sequence[int]] | None = None,
        exclude: Iterable[Any] = (),
        allow: Iterable[Any] | None = None,
    ) -> list[Recommendation]:
        """Recommend the best next items for each history; ``k`` and every filter may differ per history.

        Args:
          histories: original item ids, oldest first; one history per user. Unknown ids are ignored and named in the
            answer; a history without any known id gets the most popular items, and its answer says so.
          k: length of the lists, one number or one per history.
          remove_seen: leave out the items of the history itself, one value or one per history; None = as the run was
            evaluated.
          timestamps: seconds since 1970 of each interaction, for models with time-interval attention.
          exclude: ids that are no candidates: a list for all histories, or a list of lists, one per history.
          allow: the only candidates, likewise; a list is shorter than ``k`` where fewer are left. Each list takes four
            bytes per item of the catalogue.

        Raises:
          ConfigError: ``k`` is no integer from 1 to the catalogue.
          DataError: an argument is not of this form, timestamps are needed, or a filter has an unknown id.
        """
        named = _requests(histories)
        lengths, removal = self._lengths(k, len(named)), self._removal(remove_seen, len(named))
        if timestamps is None and self.needs_times:
            raise DataError(
                "this model needs the time of each interaction (positions 'time-interval'): give timestamps=, a list of "
                "seconds since 1970 for each history"
            )
        ids = [self.items.item_indices(history) for history in named]
        times = self._times(named, ids, timestamps)
        numbers_of = [numbers[numbers > 0] for numbers in ids]
        offsets = np.concatenate([[0], np.cumsum([len(numbers) for numbers in numbers_of])]).astype(np.int64)
        log = np.concatenate([*numbers_of, np.zeros(1, np.int32)]).astype(np.int32)
        excluded = [
            np.concatenate([own if remove else own[:0], *filters])
            for own, remove, *filters in zip(
                numbers_of,
                removal,
                self._filter("exclude", exclude, len(named)),
                self._not_allowed(allow, len(named)),
                strict=True,
            )
        ]
        removed = SeenItems(
            np.concatenate([[0], np.cumsum([len(items) for items in excluded])]).astype(np.int64),
            np.concatenate([*excluded, np.zeros(0, np.int32)]).astype(np.int32),
        )
        lists = self.ranker.top_k(
            Histories(log, offsets[:-1], offsets[1:], times), max(lengths, default=1), removed
        )
        return [
            self._answer(
                lists.items[row, : lengths[row]],
                lists.scores[row, : lengths[row]],
                [name for name, i in zip(named[row], ids[row], strict=True) if i == 0],
                self.ranker.item_counts is not None and not len(numbers_of[row]),
            )
            for row in range(len(named))
        ]

    def _lengths(self, k: Any, count: int) -> list[int]:
        lengths = list(k) if _is_list(k) else [k] * max(count, 1)
        for length in lengths:
            integer = isinstance(length, (int, np.integer)) and not isinstance(length, (bool, np.bool_))
            if not integer or not 1 <= length <= self.items.n_items:
                raise ConfigError(
                    f"k must be an integer from 1 to the catalogue's {self.items.n_items} items, got {length!r}"
                )
        if len(lengths) != max(count, 1) and _is_list(k):
            raise ConfigError(f"k must have one number for each of the {count} histories, got {len(lengths)}")
        return [int(length) for length in lengths][:count]

    def _removal(self, remove_seen: Any, count: int) -> list[bool]:
        if remove_seen is None:
            remove_seen = self.config.evaluation.remove_seen
        values = list(remove_seen) if _is_list(remove_seen) else [remove_seen] * count
        if len(values) != count or not all(isinstance(value, (bool, np.bool_)) for value in values):
            raise DataError(
                f"remove_seen must be True or False, or one of them per history, got {remove_seen!r}"
            )
        return [bool(value) for value in values]

    def _filter(self, name: str, items: Iterable[Any], count: int) -> list[Int[np.ndarray, " _"]]:
        """Numbers of the items of a filter, one array per history."""
        if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
            raise DataError(f"{name} must be a list of item ids, or one such list per history, got {items!r}")
        listed = list(items)
        per_history = bool(listed) and all(_is_list(each) for each in listed)
        if per_history and len(listed) != count:
            raise DataError(f"{name} must have one list for each of the {count} histories, got {len(listed)}")
        numbers = []
        for ids in listed if per_history else [listed]:
            texts = [str(item) for item in ids]
            indices = self.items.item_indices(texts)
            unknown = [text for text, number in zip(texts, indices, strict=True) if number == 0]
            if unknown:
                raise DataError(
                    f"{name} must hold ids of the catalogue, got {', '.join(map(repr, unknown[:5]))}"
                    + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
                )
            numbers.append(np.asarray(indices, np.int32))
        return numbers if per_history else numbers * count

    def _not_allowed(self, allow: Iterable[Any] | None, count: int) -> list[Int[np.ndarray, " _"]]:
        if allow is None:
            return [np.zeros(0, np.int32)] * count
        every = np.arange(1, self.items.n_items + 1, dtype=np.int32)
        filters = self._filter("allow", allow, count)
        if all(numbers is filters[0] for numbers in filters):
            return [np.setdiff1d(every, filters[0])] * count if filters else []
        return [np.setdiff1d(every, numbers) for numbers in filters]

    def _times(
        self,
        named: list[list[str]],
        ids: list[Int[np.ndarray, " _"]],
        timestamps: Sequence[Sequence[int]] | None,
    ) -> Int[np.ndarray, " N"] | None:
        if timestamps is None:
            return None
        message = (
            "timestamps must have one entry for each interaction of each history: whole seconds since 1970"
        )
        try:
            if [len(t) for t in timestamps] != [len(h) for h in named]:
                raise DataError(message)
            whole = [np.asarray(t, np.float64) for t in timestamps]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{message}; {error}") from None
        for t in whole:
            if not (np.isfinite(t).all() and (np.abs(t) < 2.0**62).all() and (np.diff(t) >= 0).all()):
                raise DataError(f"{message}, oldest first; got {t[:5].tolist()}")
        present = [np.asarray(t, np.int64)[i > 0] for t, i in zip(timestamps, ids, strict=True)]
        # Only intervals within a history matter, so each counts from its own first interaction.
        flat = np.concatenate(
            [*(t - t.min(initial=np.iinfo(np.int64).max) for t in present), np.zeros(1, np.int64)]
        )
        return np.minimum(flat, np.iinfo(np.int32).max).astype(np.int32)

    def _answer(
        self, best: Int[np.ndarray, " K"], scores: Float[np.ndarray, " K"], unknown: list[str], popular: bool
    ) -> Recommendation:
        real = best > 0
        indices = best[real] - 1
        titles = self.items.item_titles
        return Recommendation(
            items=[self.items.item_ids[i] for i in indices],
            titles=None if titles is None else [titles[i] for i in indices],
            scores=[float(score) for score in scores[real]],
            unknown=unknown,
            popular=popular,
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset, np.ndarray))


def _requests(histories: Any) -> list[list[str]]:
    """Histories as lists of text; ids may be of any type that has the text of an id."""
    message = "histories must be a list of lists of item ids, one list per user"
    if isinstance(histories, (str, bytes)) or not isinstance(histories, Iterable):
        raise DataError(f"{message}; got {histories!r}")
    named = []
    for history in histories:
        if isinstance(history, (str, bytes)) or not isinstance(history, Iterable):
            raise DataError(f"{message}; got {history!r} as a history")
        items = list(history)
        bad = next(
            (item for item in items if item is None or isinstance(item, (bytes, list, tuple, dict))), False
        )
        if bad is not False:
            raise DataError(f"{message}; got {bad!r} as an item id")
        named.append([str(item) for item in items])
    return named


def save_catalogue(dataset: SequenceDataset, run: Path, item_counts: Num[np.ndarray, " V1"]) -> None:
    """Save the items of ``dataset`` in the run directory, so that the run answers without the interactions.

    The directory appears whole or not at all: a process may be killed while it writes.

    Args:
      dataset: of the run.
      run: its directory.
      item_counts: int[V+1], training interactions of each item, whose order answers empty histories.
    """
    write_atomically(run / ITEM_COUNTS, lambda file: np.save(file, np.asarray(item_counts, np.int64)))
    if (run / CATALOGUE / "meta.json").exists():
        return
    items_only = dataclasses.replace(
        dataset,
        items=np.zeros(0, np.int32),
        offsets=np.zeros(1, np.int64),
        user_ids=(),
        timestamps=None,
        meta={"name": dataset.name, "source_fingerprint": dataset.fingerprint},
        check_content=True,
    )
    unfinished = run / f"{CATALOGUE}.unfinished"
    for leftover in (unfinished, run / CATALOGUE):
        if leftover.exists():
            shutil.rmtree(leftover)
    save_dataset(items_only, unfinished)
    unfinished.rename(run / CATALOGUE)
