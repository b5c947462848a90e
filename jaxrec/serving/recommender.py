"""Recommendations from a run directory, for users that training never saw, in original ids."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
        k: int = 10,
        *,
        remove_seen: bool | None = None,
        timestamps: Sequence[Sequence[int]] | None = None,
    ) -> list[Recommendation]:
        """The k best next items for each history.

        Args:
          histories: original item ids, oldest first; one history per user. Unknown ids are ignored and named in the
            answer; a history without any known id gets the most popular items, and its answer says so.
          k: length of the lists.
          remove_seen: leave out the items of the history itself; None = as the run was evaluated.
          timestamps: seconds since 1970 of each interaction, for models with time-interval attention.

        Raises:
          ConfigError: ``k`` is below 1 or above the catalogue.
          DataError: a history is a string rather than a list of ids, or timestamps do not fit the histories or are needed.
        """
        if isinstance(histories, str) or any(isinstance(history, str) for history in histories):
            raise DataError("histories must be a list of lists of item ids, one list a user; got a string")
        if not 1 <= k <= self.items.n_items:
            raise ConfigError(f"k must be from 1 to the catalogue's {self.items.n_items} items, got {k}")
        if timestamps is None and self.needs_times:
            raise DataError(
                "this model needs the time of each interaction (positions 'time-interval'): give timestamps=, a list of "
                "seconds since 1970 for each history"
            )
        named = [[str(item) for item in history] for history in histories]
        ids = [self.items.item_indices(history) for history in named]
        times = self._times(named, ids, timestamps)
        known = [numbers[numbers > 0] for numbers in ids]
        offsets = np.concatenate([[0], np.cumsum([len(numbers) for numbers in known])]).astype(np.int64)
        log = np.concatenate([*known, np.zeros(1, np.int32)]).astype(np.int32)
        known_histories = Histories(log, offsets[:-1], offsets[1:], times)
        remove = self.config.evaluation.remove_seen if remove_seen is None else remove_seen
        exclude = SeenItems(offsets, log[:-1]) if remove else None
        scores, best = self.ranker.top_k(known_histories, k, exclude)
        return [
            self._answer(
                best[row],
                scores[row],
                [name for name, i in zip(named[row], ids[row], strict=True) if i == 0],
                self.ranker.item_counts is not None and not len(known[row]),
            )
            for row in range(len(named))
        ]

    def _times(
        self, named: list[list[str]], ids: list[np.ndarray], timestamps: Sequence[Sequence[int]] | None
    ) -> np.ndarray | None:
        if timestamps is None:
            return None
        if [len(t) for t in timestamps] != [len(h) for h in named]:
            raise DataError("timestamps must have one entry for each interaction of each history")
        kept = [np.asarray(t, np.int64)[i > 0] for t, i in zip(timestamps, ids, strict=True)]
        # Only intervals within a history matter, so each counts from its own first interaction.
        flat = np.concatenate(
            [*(t - t.min(initial=np.iinfo(np.int64).max) for t in kept), np.zeros(1, np.int64)]
        )
        return np.minimum(flat, np.iinfo(np.int32).max).astype(np.int32)

    def _answer(
        self, best: np.ndarray, scores: np.ndarray, unknown: list[str], popular: bool
    ) -> Recommendation:
        real = best > 0
        chosen = best[real] - 1
        titles = self.items.item_titles
        return Recommendation(
            items=[self.items.item_ids[i] for i in chosen],
            titles=None if titles is None else [titles[i] for i in chosen],
            scores=[float(score) for score in scores[real]],
            unknown=unknown,
            popular=popular,
        )


def save_catalogue(dataset: SequenceDataset, run: Path, item_counts: np.ndarray) -> None:
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
