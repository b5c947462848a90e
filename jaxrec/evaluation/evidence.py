"""Ranks of scorers that tell few items apart: the others stand in one order, so that they need no scores one by one.

A baseline knows something of hundreds of items after a history, and orders a catalogue of any length below them by
popularity. The rank of a target follows from those items, from the excluded ones and from its place in that order, without
the scores of all items for every history; it is the rank that `jaxrec.evaluation.ranking.rank_targets` finds in those.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from scipy import sparse

from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.seen import SeenItems
from jaxrec.evaluation.tie_order import tie_keys


@runtime_checkable
class EvidenceScorer(Protocol):
    """A scorer with evidence for some items of each history, and one order of all others below them."""

    @property
    def n_items(self) -> int:
        """V."""

    @property
    def order(self) -> np.ndarray:
        """int64[V+1], larger is better: of items without evidence."""

    def evidence(self, histories: Histories) -> sparse.csr_matrix:
        """[R, V+1], sparse: positive numbers in the order of the scores; an item without an entry has no evidence."""


def places(order: Int[np.ndarray, " V1"], tie_seed: int) -> Int[np.ndarray, " V1"]:
    """int64[V+1], the number of items before each in the order alone; equal ones go by `tie_keys`, and item 0 comes last."""
    keys = tie_keys(np.arange(len(order)), tie_seed)
    ordered = np.lexsort((keys, -order))
    place = np.empty(len(order), np.int64)
    place[np.concatenate([ordered[ordered > 0], [0]])] = np.arange(len(order))
    return place


def rank_by_evidence(
    evidence: sparse.csr_matrix,
    place: Int[np.ndarray, " V1"],
    targets: Int[np.ndarray, " R"],
    seen: SeenItems,
    tie_seed: int,
) -> Int[np.ndarray, " R"]:
    """Rank one target per row among the items that the row does not exclude: int64[R], 1 = best.

    Args:
      evidence: [R, V+1]; see `EvidenceScorer`.
      place: see `places`.
      targets: ids 1..V; the rank of one that is excluded means nothing.
      seen: excluded items of each row.
      tie_seed: see `jaxrec.evaluation.tie_order`.
    """
    n_rows, width = evidence.shape
    evidence = evidence.tocsr()
    evidence.sum_duplicates()  # and the columns of a row in order
    rows = np.repeat(np.arange(n_rows, dtype=np.int64), np.diff(evidence.indptr))
    columns, values = evidence.indices.astype(np.int64), evidence.data
    codes = rows * width + columns

    gone_rows, gone_items = seen.distinct(width - 1)
    removed = np.unique(gone_rows * width + gone_items)
    held, at = _find(codes, removed)
    among = columns > 0
    among[at[held]] = False

    targets = np.asarray(targets, np.int64)
    known, at = _find(codes, np.arange(n_rows) * width + targets)
    own = np.zeros(n_rows, values.dtype)
    own[known] = values[at[known]]
    # Without evidence, every candidate with it is better.
    of_row = own[rows]
    better = values > of_row
    equal = np.flatnonzero(values == of_row)
    better[equal] = tie_keys(columns[equal], tie_seed) < tie_keys(targets[rows[equal]], tie_seed)
    ahead = np.bincount(rows[better & among], minlength=n_rows)

    before = place[columns] < place[targets[rows]]
    gone = removed[~held]  # neither counted with the evidence
    gone_rows, gone_items = np.divmod(gone, width)
    gone_before = place[gone_items] < place[targets[gone_rows]]
    missing = np.bincount(rows[before & (columns > 0)], minlength=n_rows)
    missing += np.bincount(gone_rows[gone_before], minlength=n_rows)
    return 1 + ahead + np.where(known, 0, place[targets] - missing)


def _find(
    codes: Int[np.ndarray, " S"], wanted: Int[np.ndarray, " W"]
) -> tuple[np.ndarray, Int[np.ndarray, " W"]]:
    """Whether each wanted number is among ascending ones, bool[W], and where: int64[W]."""
    at = np.searchsorted(codes, wanted)
    found = at < len(codes)
    found[found] = codes[at[found]] == wanted[found]
    return found, at
