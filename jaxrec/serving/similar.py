"""Items close to an item in the item table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.encode import rounded_up
from jaxrec.evaluation.ranking import CandidateTable, candidate_table, top_k
from jaxrec.nn.item_table import EuclideanItemTable, ItemTable
from jaxrec.serving.lists import LEAST_K, STEP
from jaxrec.serving.recommender import Recommender


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The items closest to one.

    Attributes:
      item: original id.
      title: its title, or None.
      items: original ids, closest first, without the item itself.
      titles: their titles, or None.
      scores: float32, cosine of the item vectors; for encoders that score by distances minus the squared distance.
    """

    item: str
    title: str | None
    items: list[str]
    titles: list[str] | None
    scores: list[float]


class SimilarItems:
    """The closest items by cosine or, for encoders that score by distances, by distance.

    Args:
      recommender: of a finished run.
    """

    def __init__(self, recommender: Recommender):
        self.recommender = recommender

    @functools.cached_property
    def _points(self) -> tuple[np.ndarray, CandidateTable]:
        """float32[V+1, D], the items as queries, and as candidates."""
        recommender = self.recommender
        table = recommender.encoder.item_table(recommender.params)
        n_items = recommender.items.n_items
        if isinstance(table, EuclideanItemTable):
            points = np.asarray(jnp.asarray(table.item_states(), jnp.float32))[: n_items + 1]
            candidates: ItemTable = EuclideanItemTable.of_points(jnp.asarray(points))
        else:
            vectors = np.asarray(jnp.asarray(table.vectors, jnp.float32))[: n_items + 1]
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            points = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
            candidates = ItemTable(jnp.asarray(points))
        old = recommender.ranker.table
        return points, candidate_table(candidates, item_chunk=old.item_chunk, tie_seed=old.tie_seed)

    def of(self, items: Sequence[Any], k: int = 10) -> list[Neighbours]:
        """Find the ``k`` closest items of each of ``items``.

        Args:
          items: original ids.
          k: length of the lists, 1 to V - 1.

        Raises:
          DataError: an id is unknown.
          ConfigError: ``k`` is out of its range.
        """
        catalogue = self.recommender.items
        most = catalogue.n_items - 1
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
            raise ConfigError(
                f"k must be an integer from 1 to {most}, the other items of the catalogue, got {k!r}"
            )
        numbers = catalogue.item_indices(items)
        for item, number in zip(items, numbers, strict=True):
            if not number:
                raise DataError(f"item must be an id of the catalogue, got {str(item)!r}")
        if not len(numbers):
            return []
        points, table = self._points
        padded = np.pad(numbers, (0, rounded_up(len(numbers), STEP) - len(numbers)), mode="edge")
        length = min(LEAST_K * rounded_up(-(-k // LEAST_K), STEP), catalogue.n_items)
        lists = top_k(points[padded], table, length, padded[:, None])
        squared = table.largest[1] > 0
        answers = []
        for row, number in enumerate(numbers):
            best, scores = lists.items[row, :k], lists.scores[row, :k]
            if squared:
                scores = np.minimum(scores - np.sum(points[number] ** 2), 0)
            titles = catalogue.item_titles
            answers.append(
                Neighbours(
                    str(catalogue.item_ids[number - 1]),
                    None if titles is None else titles[number - 1],
                    [str(catalogue.item_ids[item - 1]) for item in best],
                    None if titles is None else [titles[item - 1] for item in best],
                    [float(score) for score in scores],
                )
            )
        return answers
