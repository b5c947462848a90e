"""Rankers: the one interface from histories to ranks of targets and to lists of items."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from jaxrec.data.batches import BatchConfig
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import ApplyFn, EncodingOptions, Forward, encode_histories
from jaxrec.evaluation.evidence import EvidenceScorer, places, rank_by_evidence
from jaxrec.evaluation.histories import Histories, RankingCases
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.popularity import Popularity
from jaxrec.evaluation.ranking import (
    ROW_CHUNK,
    CandidateTable,
    TopK,
    candidate_table,
    check_targets,
    rank_targets,
    score_table,
    top_k,
)
from jaxrec.evaluation.seen import SeenItems, as_seen
from jaxrec.evaluation.tie_order import tie_seed

#: Scores of histories that a scorer computes together, at most: 512 MiB of float32.
SCORES_AT_ONCE = 1 << 27


class Ranker(Protocol):
    """Anything that ranks all V items after a history."""

    @property
    def n_items(self) -> int:
        """V."""

    def rank(self, cases: RankingCases) -> np.ndarray:
        """int32[T], the rank of every target among all items that its case does not exclude; 1 = best."""

    def top_k(self, histories: Histories, k: int, exclude: SeenItems | None = None) -> TopK:
        """The k best items of each history that ``exclude`` does not name, best first."""


@dataclasses.dataclass(frozen=True, eq=False)
class RankingData:
    """Data that a ranker takes from the dataset.

    Attributes:
      fingerprint: of the dataset, which fixes the order of items with equal scores; "" = any order.
      item_counts: int[V+1], training interactions of each item, or None.
      resident: whether the log goes to the device (see `EncodingOptions`).
    """

    fingerprint: str = ""
    item_counts: Shaped[np.ndarray, " V1"] | None = None
    resident: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderRanker:
    """An encoder: the score of an item is the product of the history's last state with the item's vector.

    Attributes:
      forward: ``(params, batch, query_positions) -> hidden``; see `jaxrec.evaluation.encode.ApplyFn`.
      params: parameters of one seed.
      table: the items, ready for scoring.
      encoding: how histories become states.
      item_counts: int[V+1], training interactions of each item: their order answers empty histories, of which
        the encoder knows nothing. None = by the biases of the items alone.
      row_chunk: rows scored at a time.
    """

    forward: ApplyFn
    params: Any
    table: CandidateTable
    encoding: EncodingOptions
    item_counts: Shaped[np.ndarray, " V1"] | None = None
    row_chunk: int = ROW_CHUNK

    @classmethod
    def build(
        cls,
        forward: Forward,
        params: Any,
        batches: BatchConfig,
        config: EvaluationConfig,
        data: RankingData,
    ) -> EncoderRanker:
        """Build a ranker of an encoder's parameters, on the mesh on which the encoder's tables lie.

        Args:
          forward: the encoder, and the mask under which it reads histories.
          params: of one seed.
          batches: maximum length and position origin of the histories.
          config: sizes of the pieces in which histories are encoded and items scored.
          data: of the dataset.

        Raises:
          NonFiniteError: the item table holds NaN or infinity.
        """
        seed = tie_seed(data.fingerprint) if data.fingerprint else 0
        items = forward.encoder.item_table(params)
        table = candidate_table(items, item_chunk=config.item_chunk, tie_seed=seed)
        tokens = max(config.tokens_per_batch, batches.max_length)
        token = None
        if forward.query_token is not None:
            token = forward.encoder.spec.n_items + 1 + forward.query_token
        encoding = EncodingOptions(batches.max_length, batches.position_origin, tokens, data.resident, token)
        return cls(forward, params, table, encoding, data.item_counts)

    @property
    def n_items(self) -> int:
        """V."""
        return self.table.n_items

    @property
    def mesh(self) -> Mesh | None:
        """Devices on which the ranker computes, or None for a single one."""
        return self.table.mesh

    def encode(self, histories: Histories) -> Float[Array, "E D"]:
        """float32[E, D], the state that scores the next item of each history."""
        return encode_histories(self.forward, self.params, histories, self.encoding, self.mesh)

    def rank(self, cases: RankingCases) -> Int[np.ndarray, " T"]:
        """int32[T], exact ranks over the whole catalogue; see `jaxrec.evaluation.ranking.rank_targets`."""
        hidden, exclude, rows = self.encode(cases.histories), cases.exclude, cases.case_of_target
        # Cases with none and cases with several may have as many targets as there are cases.
        if not np.array_equal(rows, np.arange(len(cases))):
            hidden, exclude = hidden[rows], None if exclude is None else exclude.select(rows)
        ranks = rank_targets(hidden, self.table, cases.targets, exclude, row_chunk=self.row_chunk)
        empty = np.flatnonzero(cases.histories.lengths[rows] == 0)
        if len(empty) and self._popular is not None:
            removed = None if exclude is None else exclude.select(empty)
            histories = cases.histories.select(rows[empty])
            alone = RankingCases(histories, cases.targets[empty], np.arange(len(empty) + 1), removed)
            ranks[empty] = self._popular.rank(alone)
        return ranks

    def top_k(self, histories: Histories, k: int, exclude: SeenItems | None = None) -> TopK:
        """Exact lists over the whole catalogue; see `jaxrec.evaluation.ranking.top_k`.

        The scores of lists for empty histories are training counts.
        """
        lists = top_k(self.encode(histories), self.table, k, exclude, row_chunk=self.row_chunk)
        empty = np.flatnonzero(histories.lengths == 0)
        if len(empty) and self._popular is not None and self.item_counts is not None:
            removed = None if exclude is None else exclude.select(empty)
            items = self._popular.top_k(histories.select(empty), k, removed).items
            lists.items[empty] = items
            lists.scores[empty] = np.where(items > 0, self.item_counts[items], -np.inf)
        return lists

    @property
    def _popular(self) -> ScoreRanker | None:
        if self.item_counts is None:
            return None
        return ScoreRanker(Popularity(self.item_counts), tie_seed=self.table.tie_seed)


class Scorer(Protocol):
    """Scores of all items after a history, computed outside the encoder."""

    @property
    def n_items(self) -> int:
        """V."""

    def scores(self, histories: Histories) -> np.ndarray:
        """float32[R, V+1]; column 0 belongs to no item."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreRanker:
    """A scorer, such as a baseline: its scores are ranked by the code that ranks those of encoders.

    Attributes:
      scorer: scores of all items.
      row_chunk: histories scored at a time, fewer where the catalogue is so large that their scores are more than
        `SCORES_AT_ONCE`; they are in memory together.
      item_chunk: items ranked at a time; 0 = automatic.
      tie_seed: order of items with equal scores.
    """

    scorer: Scorer
    row_chunk: int = ROW_CHUNK
    item_chunk: int = 0
    tie_seed: int = 0

    @property
    def n_items(self) -> int:
        """V."""
        return self.scorer.n_items

    def rank(self, cases: RankingCases) -> Int[np.ndarray, " T"]:
        """int32[T], exact ranks over the whole catalogue; of an `EvidenceScorer` without the scores of all items."""
        if isinstance(self.scorer, EvidenceScorer):
            return self._rank_by_evidence(self.scorer, cases)
        table, rows_of = (
            score_table(self.n_items, item_chunk=self.item_chunk, tie_seed=self.tie_seed),
            cases.case_of_target,
        )
        ranks = np.empty(len(cases.targets), np.int32)
        for part in row_parts(len(ranks), self.n_items, self.row_chunk):
            rows = rows_of[part]
            exclude = None if cases.exclude is None else cases.exclude.select(rows)
            scores = self.scorer.scores(cases.histories.select(rows))
            ranks[part] = rank_targets(scores, table, cases.targets[part], exclude)
        return ranks

    def _rank_by_evidence(self, scorer: EvidenceScorer, cases: RankingCases) -> Int[np.ndarray, " T"]:
        rows_of, place = cases.case_of_target, places(scorer.order, self.tie_seed)
        check_targets(cases.targets, self.n_items)
        ranks = np.empty(len(cases.targets), np.int32)
        for part in row_parts(len(ranks), self.n_items, self.row_chunk):
            rows, targets = rows_of[part], cases.targets[part]
            exclude = None if cases.exclude is None else cases.exclude.select(rows)
            seen = as_seen(exclude, len(rows), self.n_items)
            evidence = scorer.evidence(cases.histories.select(rows))
            ranks[part] = rank_by_evidence(evidence, place, targets, seen, self.tie_seed)
            ranks[part[seen.holds(targets)]] = MISSED
        return ranks

    def top_k(self, histories: Histories, k: int, exclude: SeenItems | None = None) -> TopK:
        """Exact lists over the whole catalogue."""
        table = score_table(self.n_items, item_chunk=self.item_chunk, tie_seed=self.tie_seed)
        scores, items = np.empty((len(histories), k), np.float32), np.empty((len(histories), k), np.int32)
        for rows in row_parts(len(histories), self.n_items, self.row_chunk):
            removed = None if exclude is None else exclude.select(rows)
            scores[rows], items[rows] = top_k(self.scorer.scores(histories.select(rows)), table, k, removed)
        return TopK(scores, items)


def row_parts(n_rows: int, n_items: int, most: int = ROW_CHUNK) -> list[Int[np.ndarray, " R"]]:
    """Rows in parts of ``most`` or fewer, whose scores of all items are at most `SCORES_AT_ONCE` (or those of one row)."""
    size = max(1, min(most, SCORES_AT_ONCE // (n_items + 1)))
    return [np.arange(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
