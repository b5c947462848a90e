"""Training-free baselines, ranked by the same code as every model: the numbers to exceed.

Popularity, popularity of the last days, a first-order Markov chain, item-based nearest neighbours, and walks on the
transition graph. All count interactions of the training part only, and all order items without any evidence by their
training count, so that a list is never filled by item numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy import sparse
from tqdm import tqdm

from jaxrec.data.splits import Split
from jaxrec.data.stretches import ranges
from jaxrec.evaluation.config import Baseline, EvaluationConfig
from jaxrec.evaluation.evaluate import Evaluation, evaluate_cases
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.popularity import Popularity, dense_order
from jaxrec.evaluation.ranker import ScoreRanker
from jaxrec.evaluation.tie_order import tie_seed

SECONDS_PER_DAY = 86_400
#: Time after which baselines show how far they are.
PATIENCE_SECONDS = 5
#: Whole numbers below are exact in float32.
_EXACT = 1 << 24
#: Entries of a product of sparse matrices that are in memory together, at most.
_ENTRIES_AT_ONCE = 1 << 24
#: Neighbours with those as similar as the last, in multiples of the neighbours asked for, at most.
_MOST_EQUAL = 10
#: Multiplications of a dense product that take as long as one of a sparse product (measured on two cores).
_DENSE_SPEED = 400


class RecentPopularity:
    """Score = training interactions of an item in a window of days; equal counts by popularity.

    The window ends with the training part, as in temporal evaluation, or with the newest interaction of each history,
    as leave-one-out evaluation needs, whose questions lie at different times. The time of the question is never read.

    Args:
      items: int32[N], training interactions.
      timestamps: int[N], their times in seconds, on the clock of the histories.
      n_items: V.
      days: length of the window.
      end: "training" or "history".
    """

    def __init__(
        self,
        items: Int[np.ndarray, " N"],
        timestamps: Integer[np.ndarray, " N"],
        n_items: int,
        days: float = 7.0,
        end: Literal["training", "history"] = "training",
    ):
        self.n_items, self.end = n_items, end
        self._seconds = int(days * SECONDS_PER_DAY)
        order = np.argsort(timestamps, kind="stable")
        self._items, self._times = np.asarray(items)[order], np.asarray(timestamps)[order]
        self.order = dense_order(np.bincount(items, minlength=n_items + 1))

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], from the time of the newest interaction of each history."""
        counts, row_of = self._counts(histories)
        return _by_count(counts, self.order)[row_of]

    def evidence(self, histories: Histories) -> sparse.csr_matrix:
        """int64[R, V+1], sparse: see `jaxrec.evaluation.evidence.EvidenceScorer`."""
        counts, row_of = self._counts(histories)
        return _count_keys(counts, self.order)[row_of]

    def _counts(self, histories: Histories) -> tuple[sparse.csr_matrix, Int[np.ndarray, " R"]]:
        """Counts in the window of each distinct moment, and the moment of each history."""
        last = self._times[-1] if len(self._times) else 0
        ends = np.full(len(histories), last, np.int64)
        if self.end == "history":
            present = histories.lengths > 0
            times = np.asarray(histories.timestamps[np.maximum(histories.stops - 1, 0)], np.int64)
            ends = np.where(present, times, last)
        moments, row_of = np.unique(ends, return_inverse=True)
        counts = self._in_windows(
            np.searchsorted(self._times, moments - self._seconds, side="right"),
            np.searchsorted(self._times, moments, side="right"),
        )
        return counts, row_of.reshape(-1)

    def _in_windows(self, starts: Int[np.ndarray, " M"], stops: Int[np.ndarray, " M"]) -> sparse.csr_matrix:
        """Interactions of each item in windows of the log in order of time: float64[M, V+1], sparse.

        Each window is the one before it with what came in and what went out, since windows hold the same interactions over
        and over: laid side by side they would take as many times the memory of a week.
        """
        width = self.n_items + 1
        now, first, last = np.zeros(width, np.int64), 0, 0
        columns, values, ends = [np.zeros(0, np.int64)], [np.zeros(0)], np.zeros(len(starts) + 1, np.int64)
        for row, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            for change, sign in ((slice(max(start, last), stop), 1), (slice(first, min(start, last)), -1)):
                np.add.at(now, self._items[change], sign)
            first, last = start, stop
            columns.append(np.flatnonzero(now))
            values.append(now[columns[-1]].astype(np.float64))
            ends[row + 1] = ends[row] + len(columns[-1])
        flat = (np.concatenate(values), np.concatenate(columns), ends)
        return sparse.csr_matrix(flat, shape=(len(starts), width))


class MarkovChain:
    """Score = number of times an item came directly after the last item in training; equal counts by popularity.

    So items that never followed the last one come after those that did, in the order of popularity.

    Args:
      items: int32[N], the log.
      starts: int64[U]; the training part of a user is ``items[start:stop]``.
      stops: int64[U].
      n_items: V.
    """

    def __init__(
        self,
        items: Int[np.ndarray, " N"],
        starts: Integer[np.ndarray, " U"],
        stops: Integer[np.ndarray, " U"],
        n_items: int,
    ):
        self.n_items = n_items
        lengths = np.maximum(np.asarray(stops) - np.asarray(starts), 0)
        counts = np.bincount(items[ranges(starts, lengths)], minlength=n_items + 1)
        self.order = dense_order(counts)
        self._counts = transition_counts(items, starts, stops, n_items)

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], from the newest item of each history."""
        distinct, row_of = np.unique(histories.last_items(), return_inverse=True)
        return _by_count(self._counts[distinct], self.order)[row_of.reshape(-1)]

    def evidence(self, histories: Histories) -> sparse.csr_matrix:
        """int64[R, V+1], sparse: see `jaxrec.evaluation.evidence.EvidenceScorer`."""
        return _count_keys(self._counts[histories.last_items()], self.order)


class ItemKNN:
    """Score = similarity to the last items, the newest weighing most; items without any by popularity.

    The similarity of two items is the cosine of their sets of training users (Sarwar et al., WWW 2001; Deshpande and
    Karypis, TOIS 2004), 0 to itself, and each item has its most similar ``neighbours`` only, with all that are as
    similar as the last of them; where that makes more than ten times as many, as among the items that only one user of
    the whole catalogue had, those as similar as the last are left out. The d-th newest item has the weight 1 / d.

    Args:
      items: int32[N], the log.
      starts: int64[U]; the training part of a user is ``items[start:stop]``.
      stops: int64[U].
      n_items: V.
      neighbours: similar items per item.
      last: number of newest items of a history that count.
    """

    def __init__(
        self,
        items: Int[np.ndarray, " N"],
        starts: Integer[np.ndarray, " U"],
        stops: Integer[np.ndarray, " U"],
        n_items: int,
        neighbours: int = 200,
        last: int = 10,
    ):
        self.n_items, self.last = n_items, last
        lengths = np.maximum(np.asarray(stops) - np.asarray(starts), 0)
        users, of_users = np.repeat(np.arange(len(lengths)), lengths), items[ranges(starts, lengths)]
        self.order = dense_order(np.bincount(of_users, minlength=n_items + 1))
        matrix = sparse.csr_matrix(
            (np.ones(len(users), np.float32), (users, of_users)), shape=(len(lengths), n_items + 1)
        )
        matrix.data[:] = 1.0  # an item counts once per user
        self._similarity = _cosine_neighbours(matrix, neighbours)

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], from the newest ``last`` items of each history."""
        return _over_popularity(self.evidence(histories), self.order)

    def evidence(self, histories: Histories) -> sparse.csr_matrix:
        """float32[R, V+1], sparse: see `jaxrec.evaluation.evidence.EvidenceScorer`."""
        weights = _newest(histories, self.n_items, 1.0 / np.arange(1, self.last + 1))
        return _positive(weights @ self._similarity)


class TransitionGraph:
    """Score = chance of a walk from the last items on the graph of training transitions; others by popularity.

    A training-free heuristic after TGH (Han et al., arXiv 2605.07125), which collects items within a few hops of the
    last one or two items and orders them by text features and edge weights. Items need no text here: the weight of an
    edge is log(1 + its count), a walk takes an edge in proportion to its weight, and the score adds the chances after
    1, 2, ... ``hops`` steps, each further step and each older start counting ``decay`` times as much.

    Args:
      items: int32[N], the log.
      starts: int64[U]; the training part of a user is ``items[start:stop]``.
      stops: int64[U].
      n_items: V.
      hops: steps of the walk.
      last: number of newest items of a history from which walks start.
      decay: weight of a step or start relative to the one before.
      edges: strongest edges kept per item, with all that are as strong as the last of them.
    """

    def __init__(
        self,
        items: Int[np.ndarray, " N"],
        starts: Integer[np.ndarray, " U"],
        stops: Integer[np.ndarray, " U"],
        n_items: int,
        *,
        hops: int = 2,
        last: int = 2,
        decay: float = 0.3,
        edges: int = 100,
    ):
        self.n_items, self.hops, self.last, self.decay = n_items, hops, last, decay
        lengths = np.maximum(np.asarray(stops) - np.asarray(starts), 0)
        self.order = dense_order(np.bincount(items[ranges(starts, lengths)], minlength=n_items + 1))
        weights = transition_counts(items, starts, stops, n_items)
        weights.data = np.log1p(weights.data)
        weights = _strongest(weights, edges)
        totals = np.asarray(weights.sum(axis=1)).reshape(-1)
        self._steps = (sparse.diags(1.0 / np.where(totals > 0, totals, 1.0)) @ weights).tocsr()

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], from the newest ``last`` items of each history."""
        return _over_popularity(self.evidence(histories), self.order)

    def evidence(self, histories: Histories) -> sparse.csr_matrix:
        """float32[R, V+1], sparse: see `jaxrec.evaluation.evidence.EvidenceScorer`."""
        weights = _newest(histories, self.n_items, self.decay ** np.arange(self.last))
        # Histories share last items: each is walked from once.
        sources = np.unique(weights.indices)
        reached = step = self._steps[sources]
        for hop in range(1, self.hops):
            step = step @ self._steps
            reached = reached + self.decay**hop * step
        return _positive(weights[:, sources] @ reached)


def transition_counts(
    items: Int[np.ndarray, " N"],
    starts: Integer[np.ndarray, " U"],
    stops: Integer[np.ndarray, " U"],
    n_items: int,
) -> sparse.csr_matrix:
    """Count how often item j directly follows item i in the training part: float64[V+1, V+1], sparse.

    Args:
      items: int32[N], the log.
      starts: int64[U]; the training part of a user is ``items[start:stop]``.
      stops: int64[U].
      n_items: V.
    """
    first = ranges(starts, np.maximum(np.asarray(stops) - np.asarray(starts) - 1, 0))
    pairs = (items[first], items[first + 1])
    counts = sparse.csr_matrix((np.ones(len(first)), pairs), shape=(n_items + 1, n_items + 1))
    counts.sum_duplicates()
    return counts


def _newest(histories: Histories, n_items: int, weights: np.ndarray) -> sparse.csr_matrix:
    """float64[R, V+1], sparse: the sum of ``weights[d]`` over the d-th newest interactions of each history."""
    starts, stops = np.asarray(histories.starts, np.int64), np.asarray(histories.stops, np.int64)
    sizes = np.minimum(stops - starts, len(weights))
    rows = np.repeat(np.arange(len(sizes)), sizes)
    index = ranges(stops - sizes, sizes)
    age = np.repeat(stops, sizes) - 1 - index
    items = np.asarray(histories.items[index]) if len(index) else np.zeros(0, np.int64)
    return sparse.csr_matrix((weights[age], (rows, items)), shape=(len(sizes), n_items + 1))


def _positive(evidence: sparse.csr_matrix) -> sparse.csr_matrix:
    """float32, sparse: the entries that are positive in float32."""
    evidence = evidence.tocsr().astype(np.float32)
    evidence.eliminate_zeros()
    return evidence


def _over_popularity(evidence: sparse.csr_matrix, popularity: np.ndarray) -> np.ndarray:
    """float32[R, V+1]: positive evidence as it is, and below it the order of popularity."""
    scores = evidence.toarray()
    below = (popularity - popularity.max() - 1).astype(np.float32)
    return np.where(scores > 0, scores, below)


def _count_keys(counts: sparse.csr_matrix, popularity: np.ndarray) -> sparse.csr_matrix:
    """int64[R, V+1], sparse: whole numbers in the order of positive counts, and of popularity where those are equal."""
    keys = counts.tocsr().astype(np.int64)
    keys.data = keys.data * (int(popularity.max()) + 1) + popularity[keys.indices]
    return keys


def _by_count(counts: sparse.csr_matrix, popularity: np.ndarray) -> np.ndarray:
    """float32[R, V+1]: whole numbers in the order of the counts of a row, and of popularity where those are equal."""
    counts = counts.tocsr()
    counts.sum_duplicates()
    n_rows, width = counts.shape
    step = int(popularity.max()) + 1
    if (counts.data.max(initial=0) + 1) * step < _EXACT:
        dense = counts.toarray()
        dense *= step
        dense += popularity[None]
        return dense.astype(np.float32)
    scores = np.repeat(popularity.astype(np.float32)[None], n_rows, axis=0)
    rows = np.repeat(np.arange(n_rows), np.diff(counts.indptr))
    order = np.lexsort((popularity[counts.indices], counts.data, rows))
    keys = np.stack([rows, counts.data.astype(np.int64), popularity[counts.indices]])[:, order]
    changes = np.ones(len(order), bool)
    changes[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    place = np.cumsum(changes)
    before = np.concatenate([[0], place])[counts.indptr[:-1]]
    scores[rows[order], counts.indices[order]] = place - before[rows[order]] + width
    return scores


def _cosine_neighbours(matrix: sparse.csr_matrix, neighbours: int) -> sparse.csr_matrix:
    """float32[V+1, V+1], sparse: cosine of the columns of a binary matrix [U, V+1], strongest of each row, diagonal 0."""
    users, width = matrix.shape
    norms = np.sqrt(np.maximum(np.asarray(matrix.sum(axis=0)).reshape(-1), 1.0))
    by_item = matrix.T.tocsr()
    sparse_cost = float((np.diff(matrix.indptr).astype(np.float64) ** 2).sum()) * _DENSE_SPEED
    dense = None
    if users * width * width < sparse_cost and users * width < 1 << 28:
        dense = matrix.toarray()
    # Each block of a sparse product passes over all V columns once, so blocks are as long as their entries allow.
    if dense is None:
        entries = np.minimum(by_item @ np.diff(matrix.indptr).astype(np.float64), width)
    else:
        entries = np.full(width, width, np.float64)
    blocks = []
    for start, stop in _blocks(entries, _ENTRIES_AT_ONCE):
        rows = by_item[start:stop]
        product = rows @ matrix if dense is None else dense[:, start:stop].T @ dense
        common = sparse.csr_matrix(product)
        row_of = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr)) + start
        common.data = (common.data / (norms[row_of] * norms[common.indices])).astype(np.float32)
        common.data[row_of == common.indices] = 0.0
        common.eliminate_zeros()
        blocks.append(_strongest(common, neighbours, _MOST_EQUAL * neighbours))
    return sparse.vstack(blocks, format="csr")


def _blocks(sizes: Float[np.ndarray, " E"], most: int) -> list[tuple[int, int]]:
    """Bounds of blocks of adjacent rows whose sizes add up to ``most`` at most, or of a single row with more."""
    ends = np.cumsum(sizes)
    bounds, start, before = [], 0, 0.0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        bounds.append((start, stop))
        start, before = stop, float(ends[stop - 1])
    return bounds


def _strongest(matrix: sparse.csr_matrix, most: int, bound: float = np.inf) -> sparse.csr_matrix:
    """The ``most`` largest entries of each row, with all entries as large as the last of them.

    Where that makes more than ``bound``, none as large as the last is kept: no choice among equal ones is the better one.
    """
    matrix = matrix.tocsr()
    sizes = np.diff(matrix.indptr)
    least = np.full(len(sizes), -np.inf)
    for row in np.flatnonzero(sizes > most):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        least[row] = np.partition(values, len(values) - most)[len(values) - most]
        if len(values) > bound and np.count_nonzero(values >= least[row]) > bound:
            least[row] = np.nextafter(least[row], np.inf, dtype=values.dtype)
    matrix.data[matrix.data < np.repeat(least, sizes)] = 0.0
    matrix.eliminate_zeros()
    return matrix


def evaluate_baselines(
    split: Split,
    part: Literal["valid", "test"] = "test",
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    fingerprint: str = "",
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Evaluate baselines, fitted to the training part and ranked like a model.

    Args:
      split: the dataset and its cases.
      part: held-out part.
      config: which of them, cutoffs, and whether seen items are candidates.
      fingerprint: which fixes the order of items with equal scores; "" = that of the dataset.
      progress: show on standard error which one is ranked, where all take more than seconds.
    """
    found = {}
    names = [name for name in get_args(Baseline) if name in config.baselines]
    cases, times = split.cases(part), relative_seconds(split.dataset.timestamps)
    with tqdm(
        names, "baselines", disable=not progress, leave=False, file=sys.stderr, delay=PATIENCE_SECONDS
    ) as bar:
        for asked in bar:
            bar.set_postfix_str(asked, refresh=bar.format_dict["elapsed"] >= PATIENCE_SECONDS)
            for name, ranker in baseline_rankers(split, fingerprint, (asked,)).items():
                found[name] = evaluate_cases(
                    ranker,
                    cases,
                    split.dataset.items,
                    config,
                    timestamps=times,
                    known_items=split.item_counts > 0,
                )
    return found


def baseline_rankers(
    split: Split, fingerprint: str = "", names: Sequence[Baseline] = EvaluationConfig.baselines
) -> dict[str, ScoreRanker]:
    """Rankers of baselines, fitted to the training part of ``split``.

    Args:
      split: the split; without timestamps there is no recent popularity.
      fingerprint: see `evaluate_baselines`.
      names: which of them. The window of "popularity-7d" ends with the training part of a temporal split, and otherwise with
        the newest interaction of each history.
    """
    dataset = split.dataset
    log = (np.asarray(dataset.items), split.train_starts, split.train_stops, dataset.n_items)

    def recent() -> RecentPopularity:
        times = np.asarray(relative_seconds(dataset.timestamps))
        training = ranges(split.train_starts, np.maximum(split.train_stops - split.train_starts, 0))
        end: Literal["training", "history"] = "training" if split.strategy == "temporal" else "history"
        return RecentPopularity(log[0][training], times[training], dataset.n_items, 7, end)

    builders: dict[str, Callable[[], Any]] = {
        "popularity": lambda: Popularity(split.item_counts),
        **({} if dataset.timestamps is None else {"popularity-7d": recent}),
        "markov": lambda: MarkovChain(*log),
        "item-knn": lambda: ItemKNN(*log),
        "graph": lambda: TransitionGraph(*log),
    }
    seed = tie_seed(fingerprint or split.dataset.fingerprint)
    return {name: ScoreRanker(build(), tie_seed=seed) for name, build in builders.items() if name in names}


def relative_seconds(timestamps: Any) -> np.ndarray | None:
    """int64[N], seconds since the first event of a log, or None without times."""
    return None if timestamps is None else np.asarray(timestamps, np.int64) - int(np.min(timestamps))
