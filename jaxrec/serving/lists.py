"""Lists of the best items for calls of any size, in few compiled programs.

A program is compiled for every shape: number of histories, rows, places in a row, length of the lists, removed items.
Up to `REQUESTS` histories are a call whose every size is rounded up to one of a few (1, 8 and 64 histories; 16, 128,
1024, ... places of a list), so that a day of mixed requests compiles a handful. Larger calls are rounded up to powers of
two, and packed and scored as in the evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxrec.data.packing import MAX_SEGMENTS
from jaxrec.evaluation import parallel
from jaxrec.evaluation.encode import rounded_up
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.evaluation.ranking import LEAST_EXCLUDED, TopK, rank_targets, top_k
from jaxrec.evaluation.seen import SeenItems
from jaxrec.evaluation.tie_order import tie_keys

#: Histories of the largest call whose sizes are rounded up coarsely.
REQUESTS = 64
#: Steps between sizes of small calls: histories and rows, removed items of a tile.
STEP, REMOVED_STEP = 8, 16
#: Least length of a list that a program is compiled for.
LEAST_K = 16


class Lists:
    """The best items after histories, from the ranker that evaluates.

    Args:
      ranker: of a trained encoder.
    """

    def __init__(self, ranker: EncoderRanker):
        self.ranker = ranker

    @functools.cached_property
    def _small(self) -> EncoderRanker:
        """The ranker with coarse sizes; one batch holds the rows of any small call, filled on the host."""
        encoding = self.ranker.encoding
        tokens = REQUESTS * encoding.max_length * parallel.workers(waiting=1)
        encoding = dataclasses.replace(
            encoding,
            resident=False,
            tokens_per_batch=max(encoding.tokens_per_batch, tokens),
            size_step=STEP,
        )
        table = dataclasses.replace(self.ranker.table, size_step=REMOVED_STEP)
        return dataclasses.replace(self.ranker, encoding=encoding, table=table)

    @functools.cached_property
    def popular(self) -> np.ndarray | None:
        """int32[V], items by training interactions, most first; equal ones by tie key. None where no counts are known."""
        counts = self.ranker.item_counts
        if counts is None:
            return None
        keys = tie_keys(np.arange(1, len(counts)), self.ranker.table.tie_seed)
        return (np.lexsort((keys, -np.asarray(counts[1:], np.int64))) + 1).astype(np.int32)

    def without(self, items: np.ndarray) -> Lists:
        """The same for a catalogue without some items, whatever their number: their bias is -inf.

        Args:
          items: int32[n], items that are no candidates of any history.
        """
        if not len(items):
            return self
        candidates = np.ones(self.ranker.n_items + 1, bool)
        candidates[np.asarray(items, np.int32)] = False
        return self._among(candidates)

    def _among(self, candidates: np.ndarray) -> Lists:
        """The same for the items where ``candidates``, bool[V+1], is true."""
        table = self.ranker.table
        real = np.zeros(table.bias.shape, bool)
        real[: len(candidates)] = candidates
        bias = jnp.where(real, table.bias, jnp.float32(-np.inf))
        lists = Lists(dataclasses.replace(self.ranker, table=dataclasses.replace(table, bias=bias)))
        if self.popular is not None:
            lists.popular = self.popular[candidates[self.popular]]
        return lists

    def warm_up(self, with_times: bool = False) -> None:
        """Compile the programs of calls of up to `REQUESTS` histories, lists of up to 128 items and usual filters.

        Args:
          with_times: the model reads the time of each interaction.
        """
        encoding = self.ranker.encoding
        token = encoding.max_length - encoding.longest_history
        size = 1
        while size <= REQUESTS:
            # Histories that are packed into 1, 8, ... rows; fewer than ``size`` where the rows hold no more.
            for rows in (rows for rows in (1, STEP, REQUESTS) if rows <= size):
                count = min(size, rows * min(MAX_SEGMENTS, encoding.max_length // (1 + token)))
                length = rows * encoding.max_length // count - token
                self.states(_equal_histories(count, length, with_times))
            short = _equal_histories(size, 1, with_times)
            for k in (LEAST_K, LEAST_K * STEP):
                for step in range(3):
                    count = LEAST_EXCLUDED * REMOVED_STEP**step
                    offsets = np.where(np.arange(size + 1) > 0, count, 0).astype(np.int64)
                    removed = SeenItems(offsets, np.ones(count, np.int32))
                    self.top_k(short, min(k, self.ranker.n_items), removed)
            size *= STEP

    def top_k(self, histories: Histories, k: int, removed: SeenItems) -> TopK:
        """Find the k best items of each history, best first, as `EncoderRanker.top_k` does.

        Args:
          histories: E histories in one log on the host.
          k: length of the lists, 1 to V.
          removed: items that are no candidates.
        """
        lengths = histories.lengths
        scores = np.full((len(histories), k), -np.inf, np.float32)
        items = np.zeros((len(histories), k), np.int32)
        full = np.arange(len(histories)) if self.popular is None else np.flatnonzero(lengths > 0)
        if len(full):
            best = self._encoded(histories.select(full), k, removed.select(full))
            scores[full], items[full] = best
        if self.popular is not None and len(full) < len(histories):
            for row in np.flatnonzero(lengths == 0):
                without = removed.items[removed.offsets[row] : removed.offsets[row + 1]]
                scores[row], items[row] = self._popular_list(k, without)
        return TopK(scores, items)

    def top_k_among(
        self, histories: Histories, k: int, removed: SeenItems, allowed: Sequence[np.ndarray | None]
    ) -> TopK:
        """Find lists as `top_k` does, where some histories have only candidates.

        To remove all other items one by one would take a hundred times as long in a catalogue of a million. Histories
        with equal candidates are answered together.

        Args:
          histories: E histories in one log on the host.
          k: length of the lists, 1 to V.
          removed: items that are no candidates.
          allowed: int32[a], the only candidates of each history, or None for all.
        """
        groups: dict[bytes | None, list[int]] = {}
        names: dict[int, bytes | None] = {id(None): None}
        for row, items in enumerate(allowed):
            if id(items) not in names:  # histories that share an array would copy it once for each
                names[id(items)] = np.asarray(items).tobytes()
            groups.setdefault(names[id(items)], []).append(row)
        best = TopK(
            np.full((len(histories), k), -np.inf, np.float32), np.zeros((len(histories), k), np.int32)
        )
        for rows in groups.values():
            lists, items = self, allowed[rows[0]]
            if items is not None:
                candidates = np.zeros(self.ranker.n_items + 1, bool)
                candidates[items] = True
                lists = self._among(candidates)
            where = np.array(rows)
            part = lists.top_k(histories.select(where), k, removed.select(where))
            best.scores[where], best.items[where] = part.scores, part.items
        return best

    def states(self, histories: Histories) -> np.ndarray:
        """float32[E, D], the state that scores the next item of each history."""
        padded, ranker = self._padded(histories)
        return np.asarray(ranker.encode(padded))[: len(histories)]

    def score_and_rank(self, histories: Histories, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Score and rank of one item after each history, whatever the history holds: float32[E] and int32[E]."""
        padded, ranker = self._padded(histories)
        hidden = np.asarray(ranker.encode(padded))
        ranks = rank_targets(hidden, ranker.table, np.full(len(hidden), item), row_chunk=ranker.row_chunk)
        table = ranker.table
        assert table.vectors is not None
        scores = hidden @ np.asarray(table.vectors[item]) + np.asarray(table.bias[item])
        return scores[: len(histories)], ranks[: len(histories)]

    def _padded(self, histories: Histories) -> tuple[Histories, EncoderRanker]:
        """The histories and empty ones, up to one of few numbers, and the ranker for that number."""
        count = len(histories)
        compact = histories.compact(self.ranker.encoding.longest_history)
        if count <= REQUESTS:
            size = rounded_up(count, STEP)
            ranker = self._small
            encoding = dataclasses.replace(ranker.encoding, least_slots=size)
            ranker = dataclasses.replace(ranker, encoding=encoding)
        else:
            size, ranker = rounded_up(count), self.ranker
        # A log on the device has a size that programs depend on.
        compact = _padded_log(compact)
        nothing = np.zeros(size - count, np.int64)
        users = compact.users
        if users is not None:
            users = np.concatenate([users, nothing.astype(np.int32)])
        starts, stops = (np.concatenate([part, nothing]) for part in (compact.starts, compact.stops))
        return dataclasses.replace(compact, starts=starts, stops=stops, users=users), ranker

    def _encoded(self, histories: Histories, k: int, removed: SeenItems) -> tuple[np.ndarray, np.ndarray]:
        padded, ranker = self._padded(histories)
        length = k
        if len(histories) <= REQUESTS:
            length = LEAST_K * rounded_up(-(-k // LEAST_K), STEP)
        end = np.full(len(padded) - len(histories), removed.offsets[-1], np.int64)
        states = np.array(ranker.encode(padded))
        # Zero states would give all items one score, and ties are slow to order.
        states[len(histories) :] = states[0]
        lists = top_k(
            states,
            ranker.table,
            min(length, ranker.n_items),
            SeenItems(np.concatenate([removed.offsets, end]), removed.items),
            row_chunk=ranker.row_chunk,
        )
        return lists.scores[: len(histories), :k], lists.items[: len(histories), :k]

    def _popular_list(self, k: int, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, counts = self.popular, self.ranker.item_counts
        assert order is not None
        assert counts is not None
        first = order[: k + len(without)]
        kept = first[~np.isin(first, without)][:k]
        items = np.pad(kept, (0, k - len(kept)))
        return np.where(items > 0, counts[items], -np.inf).astype(np.float32), items


def _padded_log(histories: Histories) -> Histories:
    """The same histories in a log whose length is a power of two."""
    extra = rounded_up(len(histories.items)) - len(histories.items)
    times = histories.timestamps
    return dataclasses.replace(
        histories,
        items=np.pad(histories.items, (0, extra)),
        timestamps=None if times is None else np.pad(times, (0, extra)),
    )


def _equal_histories(count: int, length: int, with_times: bool) -> Histories:
    """Histories of one item, again and again."""
    offsets = np.arange(count + 1, dtype=np.int64) * length
    times = np.zeros(count * length, np.int32) if with_times else None
    return Histories(np.ones(count * length, np.int32), offsets[:-1], offsets[1:], times)
