"""Candidate sets of published evaluation protocols, and the effect of each choice on the metrics of one model.

``full`` (all items, seen ones removed) is the project's protocol. The others exist so that old tables can be compared,
and so that a report can print the effect of each choice alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrec.analysis.tables import check_free, write_tables
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.evaluate import check_cutoffs
from jaxrec.evaluation.histories import Histories, distinct_targets
from jaxrec.evaluation.metrics import DEFAULT_KS, ranking_metrics
from jaxrec.evaluation.ranking import CandidateTable, candidate_table, rank_targets
from jaxrec.evaluation.seen import SeenItems, as_seen, seen_items
from jaxrec.evaluation.tie_order import tie_keys
from jaxrec.nn.item_table import ItemTable
from jaxrec.runs import Run

#: Distributions of sampled negatives.
SAMPLERS: tuple[Literal["uniform", "popularity"], ...] = ("uniform", "popularity")
#: Candidate vectors gathered at once by the sampled protocol, as float32 numbers.
_GATHERED = 1 << 23
#: Marks, rows by items, held at once while negatives are drawn.
_MARKED = 1 << 23


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The candidates of a ranking.

    Attributes:
      kind: "full", or "sampled": the target among ``negatives`` drawn items (He et al., WWW 2017; Kang and
        McAuley, 2018). Sampled metrics are not comparable with full ones, nor consistent with them (Krichene
        and Rendle, KDD 2020).
      seen: full ranking: "remove" the items of the history; "keep" them; "zero": give them score 0 and let
        them compete, as the code of S3-Rec and its descendants does (a seen target scores 0 too).
      rank_padding: item 0 is a candidate, as in that code.
      sampler: sampled: "uniform", or "popularity": in proportion to training counts.
      negatives: sampled: number of negatives, all different, none of them seen or the target.
      seed: sampled: of the draw.
    """

    kind: Literal["full", "sampled"] = "full"
    seen: Literal["remove", "keep", "zero"] = "remove"
    rank_padding: bool = False
    sampler: Literal["uniform", "popularity"] = "uniform"
    negatives: int = 99
    seed: int = 0

    def __post_init__(self) -> None:
        for field, allowed in (
            ("kind", ("full", "sampled")),
            ("seen", ("remove", "keep", "zero")),
            ("sampler", SAMPLERS),
        ):
            if getattr(self, field) not in allowed:
                raise ConfigError(
                    f"candidates.{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}"
                )
        if self.negatives < 1:
            raise ConfigError(f"candidates.negatives must be at least 1, got {self.negatives}")

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.kind == "sampled":
            return f"sampled: {self.negatives} {self.sampler} negatives, seed {self.seed}"
        seen = {"remove": "seen items removed", "keep": "seen items kept", "zero": "seen items score 0"}[
            self.seen
        ]
        return f"full corpus; {seen}" + ("; padding rankable" if self.rank_padding else "")


#: One choice changed at a time, then the old protocols as they were.
FULL_CORPUS = (
    Candidates(),
    Candidates(seen="keep"),
    Candidates(seen="zero"),
    Candidates(rank_padding=True),
    Candidates(seen="zero", rank_padding=True),
)
SIDE_BY_SIDE = (
    *FULL_CORPUS,
    Candidates("sampled", negatives=99),
    Candidates("sampled", negatives=99, sampler="popularity"),
    Candidates("sampled", negatives=999),
)


def with_negatives(numbers: Sequence[int]) -> tuple[Candidates, ...]:
    """The protocols of the full corpus, then each number of negatives, uniform and by popularity; empty = `SIDE_BY_SIDE`.

    Raises:
      ConfigError: a number is below 1.
    """
    if any(number < 1 for number in numbers):
        raise ConfigError(f"--negatives must be numbers of at least 1, got {' '.join(map(str, numbers))}")
    sampled = [
        Candidates("sampled", negatives=number, sampler=sampler)
        for number in dict.fromkeys(numbers)
        for sampler in SAMPLERS
    ]
    return (*FULL_CORPUS, *sampled) if sampled else SIDE_BY_SIDE


def protocol_ranks(
    protocol: Candidates,
    hidden: Any,
    table: ItemTable | CandidateTable,
    targets: np.ndarray,
    seen: Any,
    item_counts: np.ndarray | None = None,
) -> np.ndarray:
    """Rank each target under a protocol: int32[E].

    Args:
      protocol: the candidates.
      hidden: float32[E, D].
      table: the items. To let a mask token compete as in old code, append its vector as one more item.
      targets: int32[E].
      seen: items of each history (`jaxrec.evaluation.seen.seen_items`), or as `rank_targets` takes them.
      item_counts: int[V+1], training interactions of each item, for the popularity sampler.

    Raises:
      ConfigError: the popularity sampler without ``item_counts``.
      DataError: fewer unseen items than negatives.
    """
    items = candidate_table(table)
    targets = np.asarray(targets, np.int32)
    if protocol.kind == "full":
        rule: Literal["remove", "zero"] = "zero" if protocol.seen == "zero" else "remove"
        removed = None if protocol.seen == "keep" else seen
        return rank_targets(
            hidden, items, targets, removed, seen_rule=rule, rank_padding=protocol.rank_padding
        )
    history = as_seen(seen, len(targets), items.n_items)
    weights = _weights(protocol, items.n_items, item_counts)
    negatives = sample_negatives(protocol.negatives, targets, history, weights, seed=protocol.seed)
    return rank_among(hidden, items, targets, negatives)


def _weights(protocol: Candidates, n_items: int, item_counts: np.ndarray | None) -> np.ndarray:
    """Sampling weight of each item: float64[V+1]."""
    weights = np.ones(n_items + 1) if protocol.sampler == "uniform" else None
    if weights is None:
        if item_counts is None:
            raise ConfigError("candidates.sampler='popularity' needs item_counts (int[V+1]), got None")
        weights = np.asarray(item_counts, np.float64).copy()
    weights[0] = 0
    return weights


def fewest_negatives(
    protocol: Candidates, targets: np.ndarray, seen: SeenItems, item_counts: np.ndarray
) -> int:
    """The least number of negatives that the sampler of a protocol has for a row: items of a weight, not seen, no target.

    Args:
      protocol: the candidates.
      targets: int32[E].
      seen: items of each history.
      item_counts: int[V+1], training interactions of each item.
    """
    weights = _weights(protocol, len(item_counts) - 1, item_counts)
    rows = np.concatenate([seen.row_numbers(), np.arange(len(targets))])
    taken = np.unique(rows * len(weights) + np.concatenate([seen.items, targets]))
    drawable = weights > 0
    own = taken[drawable[taken % len(weights)]] // len(weights)
    return int(drawable.sum()) - int(np.bincount(own, minlength=1).max())


def sample_negatives(
    negatives: int, targets: np.ndarray, seen: SeenItems, weights: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Draw different items for each row, neither seen nor the target, by weight: int32[E, negatives].

    Many rows are drawn at once, and drawn again where taken; a row that is still short after some rounds (a
    user who has seen nearly everything) is drawn by the Gumbel method, which has the same distribution.

    Raises:
      DataError: a row has fewer items to draw from than ``negatives``.
    """
    targets = np.asarray(targets)
    drawable = int((weights > 0).sum())
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(weights / weights.sum())
    samples = np.empty((len(targets), negatives), np.int32)
    size = max(1, _MARKED // len(weights))
    for start in range(0, len(targets), size):
        rows = np.arange(start, min(start + size, len(targets)))
        part = seen.select(rows)
        excluded = np.zeros((len(rows), len(weights)), bool)
        excluded[:, weights == 0] = True
        excluded[part.row_numbers(), part.items] = True
        excluded[np.arange(len(rows)), targets[rows]] = True
        left = len(weights) - excluded.sum(axis=1)
        if left.min() < negatives:
            raise DataError(
                f"candidates.negatives={negatives} exceeds the unseen items of row {start + int(left.argmin())}: "
                f"{int(left.min())} of {drawable}; draw fewer or rank all items"
            )
        samples[rows] = _draw(negatives, excluded, cumulative, weights, rng)
    return samples


def _draw(
    negatives: int,
    excluded: np.ndarray,
    cumulative: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """int64[R, negatives] of items that are not taken bool[R, V+1], which is changed."""
    samples = np.zeros((len(excluded), negatives), np.int64)
    # Who drew an item last; never read before it is written.
    holder = np.empty(excluded.shape, np.int32)
    unchanged = excluded.copy()
    rows, slots = (part.reshape(-1) for part in np.indices(samples.shape))
    for _ in range(20):
        if not len(rows):
            return samples
        items = np.searchsorted(cumulative, rng.random(len(rows)), side="right").clip(1, len(weights) - 1)
        holder[rows, items] = slots
        fresh = (holder[rows, items] == slots) & ~excluded[rows, items]
        samples[rows[fresh], slots[fresh]] = items[fresh]
        excluded[rows[fresh], items[fresh]] = True
        rows, slots = rows[~fresh], slots[~fresh]
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    for row in np.unique(rows):
        keys = np.where(unchanged[row], -np.inf, log_weights + rng.gumbel(size=len(weights)))
        samples[row] = np.argsort(-keys, kind="stable")[:negatives]
    return samples


def rank_among(
    hidden: Any, table: ItemTable | CandidateTable, targets: np.ndarray, negatives: np.ndarray
) -> np.ndarray:
    """Rank each target among itself and its row of negatives int32[E, n], ties as in full ranking: int32[E]."""
    items = candidate_table(table)
    if items.vectors is None:
        raise ConfigError("table must have item vectors to rank among drawn negatives, got scores")
    candidates = np.concatenate([np.asarray(targets, np.int32)[:, None], negatives.astype(np.int32)], axis=1)
    size = max(1, min(_GATHERED // (candidates.shape[1] * items.vectors.shape[1]), 512, len(targets)))
    ranks = np.empty(len(targets), np.int32)
    for start in range(0, len(targets), size):
        rows = np.arange(start, min(start + size, len(targets)))
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        states = jnp.take(jnp.asarray(hidden, jnp.float32), padded, axis=0)
        ranks[rows] = np.asarray(
            _rank_first(states, items.vectors, items.bias, candidates[padded], items.tie_seed)
        )[: len(rows)]
    return ranks


@partial(jax.jit, static_argnames="seed")
def _rank_first(hidden: Array, vectors: Array, bias: Array, candidates: Array, seed: int) -> Array:
    """int32[R]: the rank of the first candidate of each row among all of them."""
    scores = lax.dot_general(
        jnp.take(vectors, candidates, axis=0, mode="clip"),
        hidden,
        (((2,), (1,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST,
    ) + jnp.take(bias, candidates, mode="clip")
    keys, target_scores = tie_keys(candidates, seed, jnp), scores[:, :1]
    ahead = (scores > target_scores) | ((scores == target_scores) & (keys < keys[:, :1]))
    return 1 + ahead.sum(axis=1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class ProtocolRow:
    """Result of one protocol: name, ranks int32[E], metrics, and differences to the metrics of the first protocol."""

    name: str
    ranks: np.ndarray
    metrics: dict[str, float]
    difference: dict[str, float]


def side_by_side(
    hidden: Any,
    table: ItemTable | CandidateTable,
    targets: np.ndarray,
    seen: Any,
    item_counts: np.ndarray,
    protocols: Sequence[Candidates] = SIDE_BY_SIDE,
    ks: Sequence[int] = DEFAULT_KS,
    target_offsets: np.ndarray | None = None,
) -> list[ProtocolRow]:
    """Rank the targets of one model under several protocols.

    Args:
      hidden: float[E, D], states of the model.
      table: its items.
      targets: int[E], ids 1..V.
      seen: items of each history; see `jaxrec.evaluation.ranking.rank_targets`.
      item_counts: int[V+1], training interactions of each item, for negatives drawn by popularity.
      protocols: candidate sets; differences are to the first.
      ks: cutoffs.
      target_offsets: cases of several targets; see `jaxrec.evaluation.metrics.metric_values`.
    """
    items = candidate_table(table)
    rows: list[ProtocolRow] = []
    for protocol in protocols:
        ranks = protocol_ranks(protocol, hidden, items, targets, seen, item_counts)
        metrics = ranking_metrics(ranks, ks, target_offsets)
        first = rows[0].metrics if rows else metrics
        rows.append(ProtocolRow(protocol.name, ranks, metrics, {m: metrics[m] - first[m] for m in metrics}))
    return rows


@dataclasses.dataclass(frozen=True)
class ProtocolStudy:
    """One model under several protocols.

    Attributes:
      results: for each protocol its name, metrics (mean over seeds), and the difference to the first, which is the
        project's own.
      seeds: number of models of each mean.
      targets: number of targets.
      repeated: those of them that are in the history of their own case.
      omitted: names of protocols that draw more negatives than some user has unseen items.
      ks: cutoffs of HR and NDCG in the table; empty = 10, or the longest where the run has no list of 10.
    """

    results: list[dict[str, Any]]
    seeds: int
    targets: int
    repeated: int
    omitted: tuple[str, ...] = ()
    ks: tuple[int, ...] = ()

    @property
    def note(self) -> str:
        """Targets that their own history holds and the protocols that miss them, and what was omitted; empty without any."""
        lines = []
        if self.repeated:
            lines.append(
                f"{self.repeated:,} of {self.targets:,} targets ({self.repeated / self.targets:.1%}) are in the history of "
                "their own case: protocols that remove seen items count them as missed"
            )
        if self.omitted:
            lines.append(
                f"left out, since a user has too few unseen items to draw: {'; '.join(self.omitted)}"
            )
        return "\n".join(lines)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table: value and, in brackets, the effect of the choice."""
        first = self.results[0]["metrics"]
        lengths = [int(name.removeprefix("HR@")) for name in first if name.startswith("HR@")]
        shown = self.ks or (10 if 10 in lengths else max(lengths),)
        names = [f"{metric}@{k}" for k in shown for metric in ("HR", "NDCG")] + ["MRR"]
        rows = [
            [row["protocol"], *(f"{row['metrics'][n]:.4f} ({row['difference'][n]:+.4f})" for n in names)]
            for row in self.results
        ]
        return ["protocol", *names], rows


def protocols(
    run: str | Path,
    split: str = "test",
    dataset: SequenceDataset | None = None,
    out: str | Path | None = None,
    negatives: Sequence[int] = (),
    ks: Sequence[int] = (),
) -> ProtocolStudy:
    """Evaluate one run under every protocol in use, one choice changed at a time.

    Args:
      run: run directory.
      split: "test" or "valid".
      dataset: see `Run`.
      out: directory for ``protocols.md`` and ``protocols.tex``; None writes nothing.
      negatives: numbers of sampled negatives, each drawn uniformly and by popularity; empty = those of `SIDE_BY_SIDE`.
      ks: cutoffs of the metrics, all in the table; empty = those of the run.

    Raises:
      ConfigError: a number of negatives or a cutoff is out of range.
    """
    if out is not None:
        check_free(out, ("protocols.md", "protocols.tex"))
    planned = with_negatives(negatives)
    opened = Run(run, dataset)
    check_cutoffs(ks, opened.setup.dataset.n_items)
    setup, cases = opened.setup, distinct_targets(opened.setup.split.cases(split))
    rows_of_target = np.repeat(np.arange(len(cases.users)), np.diff(cases.target_offsets))
    seen = seen_items(cases, setup.dataset.items).select(rows_of_target)
    counts = setup.split.item_counts
    candidates = [
        protocol
        for protocol in planned
        if protocol.kind == "full"
        or protocol.negatives <= fewest_negatives(protocol, cases.targets, seen, counts)
    ]
    omitted = tuple(protocol.name for protocol in planned if protocol not in candidates)
    by_seed = []
    for seed in opened.seeds:
        ranker = opened.ranker(seed)
        histories = Histories(
            setup.dataset.items, cases.history_starts, cases.history_stops, setup.timestamps, cases.users
        )
        hidden = ranker.encode(histories)[rows_of_target]
        by_seed.append(
            side_by_side(
                hidden,
                ranker.table,
                cases.targets,
                seen,
                counts,
                protocols=candidates,
                ks=ks or opened.config.evaluation.ks,
                target_offsets=cases.target_offsets,
            )
        )
    results = []
    for rows in zip(*by_seed, strict=True):
        means = {name: float(np.mean([row.metrics[name] for row in rows])) for name in rows[0].metrics}
        changes = {name: float(np.mean([row.difference[name] for row in rows])) for name in rows[0].metrics}
        results.append({"protocol": rows[0].name, "metrics": means, "difference": changes})
    repeated = int(cases.repeated(setup.dataset.items).sum())
    study = ProtocolStudy(results, len(by_seed), len(cases.targets), repeated, omitted, tuple(ks))
    if out is not None:
        write_tables(out, "protocols", [study.rows()], notes=study.note.splitlines())
    return study
