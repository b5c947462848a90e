"""Recommendations from a run directory, for users that training never saw, in original ids."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from jaxrec.data.dataset import SequenceDataset, save_dataset
from jaxrec.errors import DataError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.seen import SeenItems
from jaxrec.files import write_atomically
from jaxrec.runs import ITEM_COUNTS, Run
from jaxrec.serving.generation import GREEDY, GenerationConfig, generate
from jaxrec.serving.lists import Lists
from jaxrec.serving.requests import (
    MOST_REMOVED,
    Prepared,
    Request,
    RequestReader,
    is_wide,
    one_per_history,
    requests_of,
)
from jaxrec.serving.sequences import GeneratedSequence, sequence_of
from jaxrec.training.run_directory import CATALOGUE
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
      known_user: whether the model has a vector of the user that was named, so that the list is that user's own; None for
        a model that does not read whose history it is.
    """

    items: list[str]
    titles: list[str] | None
    scores: list[float]
    unknown: list[str]
    popular: bool = False
    known_user: bool | None = None


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
        self.needs_users = self.config.encoder.needs_users
        self.lists = Lists(self.ranker)
        self._reader = RequestReader(
            self.items, self.config.evaluation.remove_seen, self.needs_times, self.needs_users
        )

    @property
    def params(self) -> Params:
        """Parameters of the model."""
        return self.ranker.params

    @classmethod
    def load(cls, run: str | Path, seed: int | None = None, data: str = "") -> Recommender:
        """The model of a run directory; see `Recommender`.

        Args:
          run: the directory.
          seed: which of its models; None = the first.
          data: where the run's dataset is now; "" = where its configuration says. It is read where a call needs it.
        """
        return cls(Run(run, source=data), seed)

    def recommend(  # noqa: PLR0913 - a keyword for each field of a request
        self,
        histories: Sequence[Iterable[Any]],
        k: int | Sequence[int] = 10,
        *,
        remove_seen: bool | Sequence[bool] | None = None,
        timestamps: Sequence[Sequence[int]] | None = None,
        exclude: Iterable[Any] = (),
        allow: Iterable[Any] | None = None,
        exclude_attributes: Iterable[Any] = (),
        allow_attributes: Iterable[Any] | None = None,
        user: Any = None,
    ) -> list[Recommendation]:
        """Recommend the best next items for each history; ``k`` and every filter may differ per history.

        Args:
          histories: original item ids, oldest first; one history per user. Unknown ids are ignored and named in the
            answer; a history without any known id gets the most popular items, and its answer says so.
          k: length of the lists, one number or one per history.
          remove_seen: leave out the items of the history itself, one value or one per history; None = as the run was
            evaluated.
          timestamps: seconds since 1970 of each interaction, for models whose positions are times.
          exclude: ids that are no candidates: a list for all histories, or a list of lists, one per history.
          allow: the only candidates, likewise; a list is shorter than ``k`` where fewer are left.
          exclude_attributes: items with one of these attributes are no candidates, likewise.
          allow_attributes: only items with one of these attributes are candidates, likewise.
          user: original id of the user, one per history, for models that read whose history it is (``encoder.user``);
            None, or an id that training did not have, is answered as a new user.

        Raises:
          ConfigError: ``k`` is no integer from 1 to the catalogue.
          DataError: an argument is not of this form, timestamps are needed, or a filter has an unknown name.
        """
        requests = requests_of(
            histories,
            k=k,
            remove_seen=remove_seen,
            timestamps=timestamps,
            exclude=exclude,
            allow=allow,
            exclude_attributes=exclude_attributes,
            allow_attributes=allow_attributes,
            user=user,
        )
        return self.answer(requests)

    def generate(
        self,
        histories: Sequence[Iterable[Any]],
        steps: int,
        config: GenerationConfig = GREEDY,
        *,
        repeats: bool | Sequence[bool] | None = None,
        **options: Any,
    ) -> list[GeneratedSequence]:
        """Generate a sequence of next items after each history; see `jaxrec.serving.generation`.

        Args:
          histories: as in `recommend`.
          steps: items to generate.
          config: how they are chosen.
          repeats: whether an item may come again in the sequence, one value or one per history; None = where items of the
            history may.
          **options: ``remove_seen``, ``timestamps``, ``user`` and the filters of `recommend`, which hold at every step. What
            is generated has the time of the newest interaction.

        Raises:
          ConfigError: ``steps`` is below 1, or options that cannot work for this model.
          DataError: as in `recommend`.
        """
        requests = requests_of(histories, k=1, **options)
        prepared = self.prepare(requests)
        if not prepared:
            return []
        read = histories_of_requests(prepared)
        default = self.config.evaluation.remove_seen
        again = one_per_history("repeats", repeats, len(requests))
        if not all(each is None or isinstance(each, (bool, np.bool_)) for each in again):
            raise DataError(
                f"repeats must be True or False, or one of them per history, got {repeats!r}: None = where items of the "
                "history may"
            )
        seen = [default if request.remove_seen is None else request.remove_seen for request in requests]
        allowed = [not removed if each is None else each for each, removed in zip(again, seen, strict=True)]
        generated = generate(
            self.ranker,
            read,
            steps,
            config,
            exclude=_Removed(self, prepared),
            repeats=allowed,
            divisor=self.config.objective.temperature,
        )
        known = self.ranker.item_counts is not None
        return [
            sequence_of(generated, row, self.items, request.unknown, known and not len(request.known))
            for row, request in enumerate(prepared)
        ]

    def answer(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Answer requests that may differ in every field, in one batch; see `recommend`."""
        return self.answer_prepared(self.prepare(requests))

    def prepare(self, requests: Sequence[Request]) -> list[Prepared]:
        """Check requests and look their ids up; raises as `recommend` does."""
        return self._reader.read(requests)

    def answer_prepared(self, prepared: Sequence[Prepared]) -> list[Recommendation]:
        """Answer requests that `prepare` checked."""
        if not prepared:
            return []
        wide = self._wide(prepared)
        few = sum(
            request.allowed is not None and not many for request, many in zip(prepared, wide, strict=True)
        )
        if len(prepared) > 1 and few * self.items.n_items > MOST_REMOVED:
            half = len(prepared) // 2
            return [*self.answer_prepared(prepared[:half]), *self.answer_prepared(prepared[half:])]
        removed, allowed = self.filters(prepared)
        lists = self.lists.top_k_among(
            histories_of_requests(prepared), max(request.k for request in prepared), removed, allowed
        )
        return [
            self._answer(
                lists.items[row, : request.k],
                lists.scores[row, : request.k],
                request.unknown,
                self.ranker.item_counts is not None and not len(request.known),
                self._knows(request.user) if self.needs_users else None,
            )
            for row, request in enumerate(prepared)
        ]

    def knows(self, user: Any) -> bool | None:
        """Whether the model has a vector of the user with this original id; None for a model that reads no users."""
        if not self.needs_users:
            return None
        return self._knows(self.prepare([Request((), 1, timestamps=(), user=user)])[0].user)

    def _knows(self, user: int) -> bool:
        """Whether the model has a trained vector of the user with this index."""
        marks = self.params.get("users", {}).get("known")
        return user >= 0 and (marks is None or bool(marks[user] > 0))

    def removed(self, prepared: Sequence[Prepared]) -> SeenItems:
        """Items that are no candidates of each request: those removed, and all but those allowed."""
        parts = []
        for request in prepared:
            part = request.removed
            if request.allowed is not None:
                candidate = np.zeros(self.items.n_items + 1, bool)
                candidate[request.allowed] = True
                candidate[part] = False
                part = np.flatnonzero(~candidate[1:]) + 1
            parts.append(part.astype(np.int32))
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return SeenItems(offsets, np.concatenate([*parts, np.zeros(0, np.int32)]))

    def filters(self, prepared: Sequence[Prepared]) -> tuple[SeenItems, list[np.ndarray | None]]:
        """Items that are no candidates of each request and, where those would be many, all its candidates instead."""
        wide = self._wide(prepared)
        allowed = [request.allowed if many else None for request, many in zip(prepared, wide, strict=True)]
        rest = [
            request._replace(allowed=None) if many else request
            for request, many in zip(prepared, wide, strict=True)
        ]
        return self.removed(rest), allowed

    def _wide(self, prepared: Sequence[Prepared]) -> list[bool]:
        """Whether the allowed items of each request leave out many, for it alone or for all that share them."""
        uses = Counter(id(request.allowed) for request in prepared)
        return [
            request.allowed is not None
            and is_wide(self.items.n_items - len(request.allowed), uses[id(request.allowed)])
            for request in prepared
        ]

    def _answer(
        self,
        best: Int[np.ndarray, " K"],
        scores: Float[np.ndarray, " K"],
        unknown: list[str],
        popular: bool,
        known_user: bool | None,
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
            known_user=known_user,
        )


class _Removed(SeenItems):
    """`Recommender.removed`, listed where it is needed: beside few allowed items it is a whole catalogue for each request.

    Args:
      recommender: that prepared the requests.
      prepared: the requests.
    """

    _recommender: Recommender
    _prepared: Sequence[Prepared]

    def __init__(self, recommender: Recommender, prepared: Sequence[Prepared]):
        # The base class is frozen.
        object.__setattr__(self, "_recommender", recommender)
        object.__setattr__(self, "_prepared", prepared)

    @functools.cached_property
    def _all(self) -> SeenItems:
        return self._recommender.removed(self._prepared)

    @property
    def offsets(self) -> Int[np.ndarray, " E1"]:  # type: ignore[override]
        return self._all.offsets

    @property
    def items(self) -> Int[np.ndarray, " S"]:  # type: ignore[override]
        return self._all.items

    def __len__(self) -> int:
        return len(self._prepared)

    def select(self, rows: Int[np.ndarray, " R"]) -> SeenItems:
        return self._recommender.removed([self._prepared[row] for row in rows])

    def bounds(self) -> None:
        """Requests that were prepared name items of the catalogue alone."""


def histories_of_requests(prepared: Sequence[Prepared]) -> Histories:
    """The known items of requests as histories in one log."""
    offsets = np.concatenate([[0], np.cumsum([len(request.known) for request in prepared])]).astype(np.int64)
    log = np.concatenate([*(request.known for request in prepared), np.zeros(1, np.int32)])
    times = None
    if prepared and prepared[0].times is not None:
        times = np.concatenate([*(request.times for request in prepared), np.zeros(1, np.int32)])  # type: ignore[list-item]
    users = np.array([request.user for request in prepared], np.int32)
    return Histories(log.astype(np.int32), offsets[:-1], offsets[1:], times, users)


def save_catalogue(
    dataset: SequenceDataset, run: Path, item_counts: Num[np.ndarray, " V1"], with_users: bool = False
) -> None:
    """Save the items of ``dataset`` in the run directory, so that the run answers without the interactions.

    The directory appears whole or not at all: a process may be killed while it writes.

    Args:
      dataset: of the run.
      run: its directory.
      item_counts: int[V+1], training interactions of each item, whose order answers empty histories.
      with_users: save the ids of the users, too, for a model that reads whose history it is.
    """
    content = io.BytesIO()
    np.save(content, np.asarray(item_counts, np.int64))
    # NumPy does not read what follows an array.
    write_atomically(run / ITEM_COUNTS, content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    if (run / CATALOGUE / "meta.json").exists():
        return
    user_ids = dataset.user_ids if with_users else ()
    items_only = dataclasses.replace(
        dataset,
        items=np.zeros(0, np.int32),
        offsets=np.zeros(len(user_ids) + 1, np.int64),
        user_ids=user_ids,
        timestamps=None,
        item_vectors=None,  # the checkpoint has them
        meta={
            "name": dataset.name,
            "source_fingerprint": dataset.fingerprint,
            "users": dataset.n_users,
            **({"vector_width": dataset.vector_width} if dataset.vector_width else {}),
        },
        check_content=True,
    )
    unfinished = run / f"{CATALOGUE}.unfinished"
    for leftover in (unfinished, run / CATALOGUE):
        if leftover.exists():
            shutil.rmtree(leftover)
    save_dataset(items_only, unfinished)
    unfinished.rename(run / CATALOGUE)
