"""Leave-one-out explanations: how the score of an item changes without each interaction of the history."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxrec.errors import DataError
from jaxrec.evaluation.histories import Histories
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.requests import Prepared, Request, item_list


@dataclasses.dataclass(frozen=True)
class Reason:
    """One interaction of the history.

    Attributes:
      place: index in the history as it was given.
      item: original id.
      title: its title, or None.
      change: score with the whole history minus score without this interaction; positive = it speaks for the item.
      rank_without: rank of the explained item without this interaction.
    """

    place: int
    item: str
    title: str | None
    change: float
    rank_without: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The effect of each interaction on an item.

    Attributes:
      item: original id of the explained item.
      title: its title, or None.
      score: with the whole history.
      rank: of the item among all items, seen ones not removed.
      reasons: the interactions that the model reads, oldest first; older ones than its longest history have no effect.
      unknown: ids of the history that are not in the catalogue; they were ignored.
    """

    item: str
    title: str | None
    score: float
    rank: int
    reasons: list[Reason]
    unknown: list[str]


def explain(
    recommender: Recommender,
    history: Iterable[Any],
    item: Any = None,
    timestamps: Sequence[int] | None = None,
    user: Any = None,
) -> Explanation:
    """Score an item with the history and without each of its interactions, in one batch.

    The effects are exact: each is the difference of two scores of the model, not an attention weight or a gradient. They
    need not add up to the score. Without its only interaction a history is empty, and the score is the item's bias.

    Args:
      recommender: of a finished run.
      history: original item ids, oldest first; unknown ones are ignored.
      item: original id of the item to explain; None = the first of the recommended list.
      timestamps: seconds since 1970 of each interaction, for models whose positions are times.
      user: original id of the user, for models that read whose history it is.

    Raises:
      DataError: no item of the history is known, ``item`` is not in the catalogue, or there is none and the list is empty.
    """
    history = item_list(history)
    request = recommender.prepare([Request(history, 1, timestamps=timestamps, user=user)])[0]
    known = request.known
    if not len(known):
        raise DataError(
            "history must hold an item of the catalogue to be explained, got none: such histories get the most popular "
            "items, which no interaction moved"
        )
    if item is None:
        best = recommender.answer_prepared([request])[0].items
        if not best:
            raise DataError(
                f"history holds all {recommender.items.n_items} items of the catalogue, and the run removes seen items, so "
                "that the list is empty: name the item to explain (--item, in Python item=)"
            )
        target = int(recommender.items.item_indices(best)[0])
    else:
        target = int(recommender.items.item_indices([item])[0])
        if not target:
            raise DataError(f"item must be an id of the catalogue, got {str(item)!r}")
    read = np.arange(max(0, len(known) - recommender.ranker.encoding.longest_history), len(known))
    scores, ranks = recommender.lists.score_and_rank(_with_and_without(request, read), target)
    items, titles = recommender.items.item_ids, recommender.items.item_titles
    places = np.flatnonzero(recommender.items.item_indices(history))
    reasons = [
        Reason(
            int(places[index]),
            str(items[known[index] - 1]),
            None if titles is None else titles[known[index] - 1],
            float(scores[0] - scores[row]),
            int(ranks[row]),
        )
        for row, index in enumerate(read, start=1)
    ]
    title = None if titles is None else titles[target - 1]
    return Explanation(
        str(items[target - 1]), title, float(scores[0]), int(ranks[0]), reasons, request.unknown
    )


def _with_and_without(request: Prepared, read: np.ndarray) -> Histories:
    """The whole history, then the history without each of the interactions ``read``."""
    known, times = request.known, request.times
    whole = np.arange(len(known))
    index = np.concatenate([whole, *(np.delete(whole, left_out) for left_out in read)])
    lengths = np.concatenate([[len(known)], np.full(len(read), len(known) - 1)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pad = np.zeros(1, np.int32)  # a log is never empty
    log = np.concatenate([known[index], pad]).astype(np.int32)
    flat = None if times is None else np.concatenate([times[index], pad]).astype(np.int32)
    return Histories(log, offsets[:-1], offsets[1:], flat, np.full(len(lengths), request.user, np.int32))
