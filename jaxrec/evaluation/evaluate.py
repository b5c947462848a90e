"""Evaluate a ranker on the cases of a split: rank, average."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.splits import EvaluationCases
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.histories import RankingCases, distinct_targets, histories_of
from jaxrec.evaluation.metrics import metric_values, ranking_metrics
from jaxrec.evaluation.ranker import Ranker
from jaxrec.evaluation.seen import repeated_targets, seen_items
from jaxrec.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Ranks of every target, from which every metric, test and plot is made.

    Attributes:
      ranks: int32[T], 1 = best.
      target_offsets: int64[E+1], case e has ``ranks[target_offsets[e]:target_offsets[e+1]]``.
      users: int32[E], index of the user of each case.
      targets: int32[T].
      metrics: means over cases.
      counts: what was evaluated and what was left out: cases, targets, users without targets, targets unseen
        in training, targets in the history of their case, and those of them that are missed as seen items.
      protocol: what each number means: candidates, seen items, ties.
    """

    ranks: Int[np.ndarray, " T"]
    target_offsets: Int[np.ndarray, " E1"]
    users: Int[np.ndarray, " E"]
    targets: Int[np.ndarray, " T"]
    metrics: dict[str, float]
    counts: dict[str, int]
    protocol: str

    def values(self, metric: str) -> Float[np.ndarray, " E"]:
        """float64[E], one metric of every case, such as ``values("NDCG@10")``."""
        return metric_values(self.ranks, metric, self.target_offsets)

    def at(self, ks: Sequence[int]) -> Evaluation:
        """The same ranks with the metrics of other cutoffs."""
        return dataclasses.replace(self, metrics=ranking_metrics(self.ranks, ks, self.target_offsets))

    def save(self, path: str | Path, meta: dict[str, Any] | None = None) -> None:
        """Write ranks and ``meta`` (dataset fingerprint, split, seed, ...) to one ``.npz`` file."""
        text = json.dumps(
            {**(meta or {}), "metrics": self.metrics, "counts": self.counts, "protocol": self.protocol},
            sort_keys=True,
        )
        write_atomically(
            Path(path),
            lambda file: np.savez_compressed(
                file,
                ranks=self.ranks,
                target_offsets=self.target_offsets,
                users=self.users,
                targets=self.targets,
                meta=np.asarray(text),
            ),
        )

    @classmethod
    def load(cls, path: str | Path) -> tuple[Evaluation, dict[str, Any]]:
        """An evaluation that `save` wrote, and the ``meta`` that was given to it.

        Raises:
          DataError: the file is not one that `save` wrote.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(str(arrays.pop("meta")))
            own = {name: meta.pop(name) for name in ("metrics", "counts", "protocol")}
            return cls(**arrays, **own), meta
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path}: expected per-user ranks that a run saved (.npz), got {error}; "
                "give the ranks of a finished run"
            ) from error


_TIES = "ties: fixed pseudo-random order of items"
FULL_PROTOCOL = f"full corpus; seen items removed, targets among them missed; {_TIES}"
SEEN_KEPT_PROTOCOL = f"full corpus; seen items kept; {_TIES}"


def evaluate_cases(
    ranker: Ranker,
    cases: EvaluationCases,
    items: Any,
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    *,
    timestamps: Any = None,
    known_items: Bool[np.ndarray, " V1"] | None = None,
) -> Evaluation:
    """Rank every target of every case among all items.

    Args:
      ranker: the model or baseline.
      cases: of a split.
      items: int32[N], the log that the cases point into.
      config: cutoffs, and whether seen items are candidates.
      timestamps: see `jaxrec.evaluation.histories.Histories`.
      known_items: bool[V+1], which items occur in training; with it, targets that never do are counted.
        (They are ranked like all others; the split has an option to leave them out.)

    Raises:
      ConfigError: a cutoff below 1 or above the catalogue.
      DataError: no case with a target is left.
      NonFiniteError: the model diverged.
    """
    check_cutoffs(config.ks, ranker.n_items)
    cases, counts = usable_cases(cases, known_items)
    ranks, repeated = rank_cases(ranker, cases, items, timestamps, config.remove_seen)
    counts |= repeat_counts(repeated, config.remove_seen)
    return evaluation_of(ranks, cases, counts, ks=config.ks, remove_seen=config.remove_seen)


def rank_cases(
    ranker: Ranker, cases: EvaluationCases, items: Any, timestamps: Any, remove_seen: bool
) -> tuple[Int[np.ndarray, " T"], int]:
    """Ranks of the targets of cases that each have one, int32[T], and the number of targets in their own history."""
    seen = seen_items(cases, np.asarray(items))
    repeated = int(repeated_targets(seen, cases.targets, cases.target_offsets).sum())
    exclude = seen if remove_seen else None
    histories = histories_of(cases, items, timestamps)
    return ranker.rank(RankingCases(histories, cases.targets, cases.target_offsets, exclude)), repeated


def repeat_counts(repeated: int, remove_seen: bool) -> dict[str, int]:
    """Counts of targets that are in their own history, and of those that are missed for it."""
    return {"targets_in_history": repeated, "targets_missed_as_seen": repeated if remove_seen else 0}


def evaluation_of(
    ranks: Int[np.ndarray, " T"],
    cases: EvaluationCases,
    counts: dict[str, int],
    *,
    ks: Sequence[int],
    remove_seen: bool,
) -> Evaluation:
    """An `Evaluation` of ranks that were computed."""
    return Evaluation(
        ranks=ranks,
        target_offsets=np.asarray(cases.target_offsets, np.int64),
        users=np.asarray(cases.users, np.int32),
        targets=np.asarray(cases.targets, np.int32),
        metrics=ranking_metrics(ranks, ks, cases.target_offsets),
        counts=counts,
        protocol=FULL_PROTOCOL if remove_seen else SEEN_KEPT_PROTOCOL,
    )


def check_cutoffs(ks: Sequence[int], n_items: int) -> None:
    """Reject cutoffs that no list can have."""
    for k in ks:
        if not 1 <= k <= n_items:
            raise ConfigError(f"ks must be cutoffs from 1 to the catalogue's {n_items} items, got {k}")


def usable_cases(
    cases: EvaluationCases, known_items: Bool[np.ndarray, " V1"] | None = None
) -> tuple[EvaluationCases, dict[str, int]]:
    """Cases that have a target, each target once (`distinct_targets`), and counts of what they are and what was left out."""
    cases = distinct_targets(cases)
    offsets = np.asarray(cases.target_offsets, np.int64)
    sizes = np.diff(offsets)
    rows = np.flatnonzero(sizes)
    targets = np.asarray(cases.targets, np.int32)
    counts = {"cases": len(rows), "targets": len(targets), "users_without_targets": int((sizes == 0).sum())}
    if known_items is not None:
        counts["targets_unseen_in_training"] = int((~np.asarray(known_items, bool)[targets]).sum())
    if not len(rows):
        raise DataError(
            f"cases must have a target to rank, got {len(sizes)} cases and none has one: hold out more"
        )
    selected = cases.select(rows)
    counts["cases_with_empty_history"] = int((selected.history_stops <= selected.history_starts).sum())
    return selected, counts
