"""An approximate index of the item vectors (usearch), and its recall against the exact lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.errors import ConfigError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranking import TopK
from jaxrec.evaluation.seen import SeenItems
from jaxrec.files import write_atomically
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.vectors import item_vectors, user_vectors


class ApproximateIndex:
    """A graph of the item vectors (HNSW), searched by inner product. The scores of what it finds are exact.

    Args:
      recommender: of a finished run.
      connectivity: edges of an item; more = better recall, more memory.
      effort: candidates that a search looks at; more = better recall, slower.
      threads: that build the graph; with more than one, two graphs of the same items differ, and so does their recall.

    Raises:
      ConfigError: the extra ``usearch`` is not installed.
    """

    def __init__(self, recommender: Recommender, connectivity: int = 16, effort: int = 128, threads: int = 1):
        try:
            from usearch.index import Index
        except ImportError:
            raise ConfigError("an approximate index needs usearch: pip install 'jaxrec[usearch]'") from None
        self.recommender, self.vectors = recommender, item_vectors(recommender)
        self.index: Any = Index(
            ndim=self.vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=connectivity,
            expansion_add=max(128, effort),
            expansion_search=effort,
        )
        keys = np.arange(1, len(self.vectors) + 1, dtype=np.uint64)
        self.index.add(keys, self.vectors, threads=threads)

    def top_k(self, histories: Histories, k: int, removed: SeenItems) -> TopK:
        """Find about the k best items of each history, best first; see `jaxrec.serving.lists.Lists.top_k`.

        Args:
          histories: E histories.
          k: length of the lists.
          removed: items that are no candidates; the search looks for as many items more.
        """
        queries = user_vectors(self.recommender, histories)
        most = int(np.diff(removed.offsets).max(initial=0))
        matches = self.index.search(queries, min(k + most, len(self.vectors)))
        found = np.asarray(matches.keys, np.int64).reshape(len(queries), -1)
        # A search may find fewer; the places after them hold no keys.
        counts = np.asarray(getattr(matches, "counts", len(matches.keys))).reshape(-1)
        items, scores = np.zeros((len(queries), k), np.int32), np.full((len(queries), k), -np.inf, np.float32)
        for row, (keys, count) in enumerate(zip(found, counts, strict=True)):
            without = removed.items[removed.offsets[row] : removed.offsets[row + 1]]
            kept = keys[:count]
            kept = kept[~np.isin(kept, without)]
            exact = self.vectors[kept - 1] @ queries[row]
            order = np.argsort(-exact, kind="stable")[:k]
            items[row, : len(order)], scores[row, : len(order)] = kept[order], exact[order]
        return TopK(scores, items)

    def recall(self, histories: Histories, k: int, removed: SeenItems) -> float:
        """Measure the share of the exact lists that the approximate ones have, over histories that are not empty."""
        full = np.flatnonzero(histories.lengths > 0)
        histories, removed = histories.select(full), removed.select(full)
        exact = self.recommender.lists.top_k(histories, k, removed).items
        near = self.top_k(histories, k, removed).items
        hits = sum(len(np.intersect1d(a[a > 0], b)) for a, b in zip(exact, near, strict=True))
        return hits / max(1, int((exact > 0).sum()))

    def save(self, file: str | Path) -> None:
        """Write the index as usearch reads it (``usearch.index.Index.restore``); keys are the rows of items.npy plus one."""
        buffer = self.index.save()
        write_atomically(Path(file), lambda out: out.write(buffer))
