"""Exact lists over items that are composed of codes, without a vector per item.

The score of an item is a sum of partial scores, one per code: ``score(h, i) = sum_c P_c[code_c(i)]`` with
``P_c[k] = h · T_c[k]`` (PQTopK: Petrov, Macdonald & Tonellotto, RecSys 2024, arXiv 2408.09992). P has C K numbers per
history, so that scoring an item takes C additions in place of D multiplications, and the catalogue is C small integers per
item.

"prune" looks at few items (RecJPQPrune, arXiv 2505.00560): codes are taken from the best partial score downwards, and the
items that have them are scored. An item that has none of the codes taken so far scores at most the sum of the best partial
scores that are left; when this bound is below the last item of the list, the list is complete. Where the bound stays high
for long, all items are scored after all. Sums are in the order of the codes, and rounding is monotone, so that both ways
give the same scores to the bit, and the same lists.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.errors import DataError
from jaxrec.evaluation.ranking import TopK, check_list_length, score_table, top_k
from jaxrec.evaluation.seen import SeenItems, as_seen
from jaxrec.evaluation.tie_order import tie_keys

#: Scores of one piece: 16 MiB of float32; larger ones leave the cache, and take several times as long an item.
_SCORES = 1 << 22
#: Items that "prune" scores at a time, and the share of the catalogue after which it scores all.
_LEAST_ITEMS, _GIVE_UP = 4096, 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class ComposedTable:
    """Items 1..V as codes.

    Attributes:
      codes: uint8 or uint16 [V, C], codes 0..K-1 of the items 1..V (one less than in the parameters).
      tables: float32[C, K, W].
      side_by_side: rows lie side by side (product codes) or are added.
      bias: float32[V], or None for no bias.
      tie_seed: order of items with equal scores (`jaxrec.evaluation.tie_order`).
    """

    codes: np.ndarray
    tables: np.ndarray
    side_by_side: bool
    bias: np.ndarray | None = None
    tie_seed: int = 0

    @property
    def n_items(self) -> int:
        """V."""
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, tables and bias."""
        return self.codes.nbytes + self.tables.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def partial_scores(self, states: Float[np.ndarray, "E D"]) -> Float[np.ndarray, "E C K"]:
        """Compute P float32[E, C, K] of states.

        Raises:
          DataError: the states have another width than the items.
        """
        count, _, width = self.tables.shape
        expected = count * width if self.side_by_side else width
        if states.ndim != 2 or states.shape[1] != expected:
            raise DataError(f"states must be [rows, {expected}] to match the items, got shape {states.shape}")
        return np.asarray(
            _partial_scores(jnp.asarray(states, jnp.float32), self._device[1], self.side_by_side)
        )

    def scores(self, partial: Float[np.ndarray, "E C K"]) -> Float[Array, "E V1"]:
        """Scores float32[E, V+1] of all items from partial scores; column 0 belongs to no item."""
        return _sums(jnp.asarray(partial), *self._device[::2])

    def top_k(
        self,
        states: Float[np.ndarray, "E D"],
        k: int,
        seen: SeenItems | None = None,
        method: Literal["sum", "prune"] = "sum",
    ) -> TopK:
        """Find the k best items of each row, best first, as `jaxrec.evaluation.ranking.top_k` does for vectors.

        Args:
          states: float32[E, D].
          k: length of the lists, 1 to V.
          seen: items that are no candidates.
          method: "sum" scores every item, "prune" the items that may enter the list; the lists are the same.

        Raises:
          ConfigError: ``k`` is below 1 or above what the catalogue holds.
          DataError: the states have another width than the items.
        """
        check_list_length(k, self.n_items)
        seen = as_seen(seen, len(states), self.n_items)
        partial = self.partial_scores(np.asarray(states))
        scores, items = np.full((len(states), k), -np.inf, np.float32), np.zeros((len(states), k), np.int32)
        rows = np.arange(len(states))
        if method == "prune":
            left = []
            for row in rows:
                removed = seen.items[seen.offsets[row] : seen.offsets[row + 1]]
                best = self._pruned(partial[row], k, removed)
                if best is None:
                    left.append(row)
                else:
                    scores[row, : len(best[0])], items[row, : len(best[1])] = best
            rows = np.array(left, np.int64)
        table = score_table(self.n_items, tie_seed=self.tie_seed)
        step = max(1, _SCORES // (self.n_items + 1))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            scores[part], items[part] = top_k(self.scores(partial[part]), table, k, seen.select(part))
        return TopK(scores, items)

    @functools.cached_property
    def _device(self) -> tuple[Array, Array, Array | None]:
        """Codes [C, V+1], tables and bias [V+1] as the programs read them."""
        columns = np.concatenate([np.zeros((1, self.codes.shape[1]), self.codes.dtype), self.codes]).T
        bias = None if self.bias is None else jnp.asarray(np.append(np.float32(0), self.bias))
        return jnp.asarray(np.ascontiguousarray(columns)), jnp.asarray(self.tables), bias

    @functools.cached_property
    def _lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Items of each code: zero-based items int32[C, V] by code, and where each code begins, int64[C, K+1]."""
        order = np.stack([np.argsort(column, kind="stable") for column in self.codes.T]).astype(np.int32)
        size = self.tables.shape[1]
        counts = np.stack([np.bincount(column, minlength=size) for column in self.codes.T])
        return order, np.concatenate(
            [np.zeros((len(counts), 1), np.int64), np.cumsum(counts, axis=1)], axis=1
        )

    @functools.cached_property
    def _columns(self) -> np.ndarray:
        """The codes by column."""
        return np.ascontiguousarray(self.codes.T)

    def _exact(
        self, partial: Float[np.ndarray, "C K"], items: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """Scores of some zero-based items, summed as `scores` does."""
        total = partial[0][self._columns[0][items]]
        for column in range(1, len(partial)):
            total = total + partial[column][self._columns[column][items]]
        return total if self.bias is None else total + self.bias[items]

    def _pruned(
        self, partial: Float[np.ndarray, "C K"], k: int, removed: Int[np.ndarray, " n"]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and items of one list, or None where too many items would have to be scored."""
        lists, starts = self._lists
        order = np.argsort(-partial, axis=1, kind="stable")
        ranked = np.take_along_axis(partial, order, axis=1)
        size, largest = partial.shape[1], np.float32(0) if self.bias is None else self.bias.max()
        step = max(1, round(size * _LEAST_ITEMS / self.n_items))
        place = np.zeros(len(partial), np.int64)  # codes taken of each table
        best, threshold, looked = np.zeros(0, np.int64), np.float32(-np.inf), 0
        while True:
            ahead = np.minimum(place + step, size)
            # The table whose next codes lower the bound the most.
            drop = (
                ranked[np.arange(len(place)), place]
                - ranked[np.arange(len(place)), np.minimum(ahead, size - 1)]
            )
            column = int(drop.argmax())
            taken = order[column, place[column] : ahead[column]]
            pieces = [lists[column, starts[column, code] : starts[column, code + 1]] for code in taken]
            found = np.concatenate(pieces)
            looked += len(found)
            if looked > _GIVE_UP * self.n_items:
                return None
            found = found[self._exact(partial, found) >= threshold]
            best = np.union1d(best, found[~np.isin(found + 1, removed)])
            scores = self._exact(partial, best)
            if len(best) >= k:
                threshold = np.partition(scores, len(best) - k)[len(best) - k]
                best, scores = best[scores >= threshold], scores[scores >= threshold]
            place[column] = ahead[column]
            if place[column] == size:  # every item has a code of this table
                break
            bound = ranked[0, place[0]]
            for other in range(1, len(place)):
                bound = bound + ranked[other, place[other]]
            if len(best) >= k and bound + largest < threshold:
                break
        first = np.lexsort((tie_keys(best + 1, self.tie_seed), -scores))[:k]
        return scores[first], (best[first] + 1).astype(np.int32)


@functools.partial(jax.jit, static_argnames="side_by_side")
def _partial_scores(states: Array, tables: Array, side_by_side: bool) -> Array:
    parts = states.reshape(len(states), len(tables), -1) if side_by_side else states
    equation = "ecw,ckw->eck" if side_by_side else "ew,ckw->eck"
    return jnp.einsum(equation, parts, tables, precision=lax.Precision.HIGHEST)


@jax.jit
def _sums(partial: Array, codes: Array, bias: Array | None) -> Array:
    total = partial[:, 0][:, codes[0]]
    for column in range(1, partial.shape[1]):
        total = total + partial[:, column][:, codes[column]]
    return total if bias is None else total + bias[None]
