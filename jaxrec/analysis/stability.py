"""Robustness of recommendations to perturbed histories: perturb, recommend again, compare lists.

Perturbed histories depend on the data and a seed alone, so all models get the same ones and can be compared case by
case (`compare_stability`): of several runs the interactions are edited that all of them read. The candidates remain those
of the unperturbed history.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.compare import seed_notes
from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.significance import Effect, holm, paired_bootstrap
from jaxrec.analysis.tables import check_free, mean_and_deviation, write_tables
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.stretches import ranges
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.histories import Histories, RankingCases, ranking_cases
from jaxrec.evaluation.metrics import MISSED, metric_values, over_seeds
from jaxrec.evaluation.ranker import Ranker
from jaxrec.evaluation.ranking import check_list_length
from jaxrec.runs import Run, run_names


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A small change of every history.

    Attributes:
      edit: "drop" an interaction; "replace" its item by another, uniformly drawn one; "swap" it with the one
        before (the first with the one after); "insert" a uniformly drawn item, after the newest interaction
        or before a random one; "shuffle" the items of several, whose times remain in order.
      where: the "last" interaction, or a "random" one; for a shuffle "all" interactions or "all-but-last".
      rate: share of the history's interactions that are edited, rounded to at least one; 0 = exactly one.
      seed: of the draws.
    """

    edit: Literal["drop", "replace", "swap", "insert", "shuffle"]
    where: Literal["last", "random", "all", "all-but-last"] = "last"
    rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        places = ("all", "all-but-last") if self.edit == "shuffle" else ("last", "random")
        if self.edit not in ("drop", "replace", "swap", "insert", "shuffle") or self.where not in places:
            raise ConfigError(
                "perturbation must be drop, replace, swap or insert of the last or a random interaction, or shuffle of "
                f"all or all-but-last interactions, got edit={self.edit!r}, where={self.where!r}"
            )
        if not 0.0 <= self.rate < 1.0:
            raise ConfigError(f"perturbation.rate must be in [0, 1), got {self.rate}")

    @property
    def name(self) -> str:
        """Such as "drop last" or "replace random 20%", with the seed unless it is 0."""
        rate = f" {100 * self.rate:g}%" if self.rate else ""
        return f"{self.edit} {self.where}{rate}" + (f", seed {self.seed}" if self.seed else "")


#: Each edit of the last and of a random interaction, then rising noise.
DEFAULT_PERTURBATIONS = (
    *(
        Perturbation(edit, where)
        for where in ("last", "random")
        for edit in ("drop", "replace", "swap", "insert")
    ),  # type: ignore[arg-type]
    *(Perturbation("replace", "random", rate) for rate in (0.1, 0.2, 0.4)),
)


def perturb(
    histories: Histories, perturbation: Perturbation, n_items: int, newest: int | None = None
) -> Histories:
    """Apply an edit to every history; one of a single interaction is never emptied, an empty one remains empty.

    Args:
      histories: one after the other in a log of their own (`Histories.compact`).
      perturbation: the edit.
      n_items: V, the range of replacements and insertions.
      newest: interactions at the end of each history that the edit sees; None = all.
    """
    if newest is not None:
        edited = perturb(histories.compact(newest), perturbation, n_items)
        untouched = histories.stops - np.minimum(histories.lengths, newest)
        return _joined(dataclasses.replace(histories, stops=untouched), edited)
    rng = np.random.default_rng(perturbation.seed)
    lengths = histories.lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = ranges(np.zeros(len(lengths), np.int64), lengths)
    if perturbation.edit == "shuffle":
        draw = rng.random(len(owner))
        if perturbation.where == "all-but-last":
            draw[position == lengths[owner] - 1] = 1.0  # above every draw
        return dataclasses.replace(histories, items=np.asarray(histories.items)[np.lexsort((draw, owner))])
    edits = np.minimum(np.maximum(np.rint(perturbation.rate * lengths).astype(np.int64), 1), lengths)
    if perturbation.edit == "drop":
        edits = np.minimum(edits, np.maximum(lengths - 1, 0))
    draw = -position if perturbation.where == "last" else rng.random(len(owner))
    order = np.lexsort((draw, owner))
    selected = np.zeros(len(owner), bool)
    selected[order] = position < edits[owner]  # the n-th in the order of a history has the position n in it
    items, key = np.array(histories.items, np.int64), position.astype(np.float64)
    times = histories.timestamps
    if perturbation.edit == "drop":
        owner, items, key = owner[~selected], items[~selected], key[~selected]
        times = None if times is None else times[~selected]
    elif perturbation.edit == "replace":
        other = rng.integers(1, max(n_items, 2), int(selected.sum()))
        items[selected] = np.minimum(other + (other >= items[selected]), n_items)
    elif perturbation.edit == "swap":
        key[selected] += np.where(position[selected] == 0, 1.5, -1.5)
    else:
        where = key[selected] + (0.5 if perturbation.where == "last" else -0.5)
        owner = np.concatenate([owner, owner[selected]])
        items = np.concatenate([items, rng.integers(1, n_items + 1, len(where))])
        key = np.concatenate([key, where])
        times = None if times is None else np.concatenate([times, times[selected]])
    order = np.lexsort((key, owner))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(owner, minlength=len(lengths)))])
    if times is not None and perturbation.edit != "swap":  # a swap exchanges the items, time stays in order
        times = times[order]
    return Histories(items[order].astype(np.int32), offsets[:-1], offsets[1:], times, histories.users)


def _joined(older: Histories, newer: Histories) -> Histories:
    """Each history of ``older`` with that of ``newer`` after it."""
    older = older.compact(int(older.lengths.max(initial=0)))
    owner = np.concatenate([np.repeat(np.arange(len(part)), part.lengths) for part in (older, newer)])
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(older.lengths + newer.lengths)])
    items, times = (
        None if log is None else np.concatenate([log, added])[order]
        for log, added in ((older.items, newer.items), (older.timestamps, newer.timestamps))
    )
    return Histories(items, offsets[:-1], offsets[1:], times, newer.users)


def rank_biased_overlap(a: np.ndarray, b: np.ndarray, p: float = 0.9) -> np.ndarray:
    """Compute the rank-biased overlap of lists, which weighs early places more: float64[E], 1 = the same list.

    The extrapolated form for lists of the same length K (Webber, Moffat and Zobel, TOIS 2010, equation 32):
    X_K / K * p^K + (1 - p) / p * sum over d = 1..K of X_d / d * p^d, with X_d the overlap of the first d
    places. Where both lists end before K, K is the length of the longer one; two empty lists are the same.

    Args:
      a: int32[E, K], items, 0 = none.
      b: int32[E, K], the other lists.
      p: persistence: the chance that a reader goes on to the next place.
    """
    if not 0.0 < p < 1.0:
        raise ConfigError(f"p must be between 0 and 1, got {p}")
    count, length = a.shape
    row, one, other = _shared(a, b)
    # A shared item counts from the later of its two places on.
    shared = np.bincount(row * length + np.maximum(one, other), minlength=count * length)
    overlap = shared.reshape(count, length).cumsum(axis=1)
    depth = np.arange(1, length + 1)
    agreement = overlap / depth
    # Beyond both lists it stays as it is, which gives the value of the shorter K.
    end = np.maximum((a > 0).sum(axis=1), (b > 0).sum(axis=1))
    last = np.where(
        end > 0, np.take_along_axis(agreement, np.maximum(end - 1, 0)[:, None], axis=1)[:, 0], 1.0
    )
    agreement = np.where(depth[None] > end[:, None], last[:, None], agreement)
    return agreement[:, -1] * p**length + (1 - p) / p * (agreement * p ** depth[None]).sum(axis=1)


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the Jaccard index of lists int32[E, K] (0 = none): float64[E], 1 where both are empty."""
    shared = np.bincount(_shared(a, b)[0], minlength=len(a))
    union = (a > 0).sum(axis=1) + (b > 0).sum(axis=1) - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def _shared(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, place in ``a`` and place in ``b`` of each item of both lists; a list has an item once.

    Sorted rather than compared place by place, which would take memory for K * K pairs of places of each row.
    """
    span = max(int(a.max(initial=0)), int(b.max(initial=0))) + 1
    rows = [np.nonzero(lists > 0) for lists in (a, b)]
    keys = [row * span + lists[row, place] for lists, (row, place) in zip((a, b), rows, strict=True)]
    _, first, second = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    return rows[0][0][first], rows[0][1][first], rows[1][1][second]


@dataclasses.dataclass(frozen=True)
class Stability:
    """Effect of one perturbation on the lists and ranks of S models of one run.

    Attributes:
      perturbation: the edit.
      overlap: float64[S, E], rank-biased overlap of the lists before and after.
      jaccard: float64[S, E], Jaccard index of the first k items before and after.
      ranks, ranks_before: int32[S, T], ranks of the targets after and before.
      target_offsets: int64[E+1].
      k: length of the lists.
      users: int[E], the user of each case; None = one each.
    """

    perturbation: Perturbation
    overlap: np.ndarray
    jaccard: np.ndarray
    ranks: np.ndarray
    ranks_before: np.ndarray
    target_offsets: np.ndarray
    k: int
    users: np.ndarray | None = None

    @property
    def n_users(self) -> int:
        """Number of users of the cases."""
        return self.overlap.shape[1] if self.users is None else len(np.unique(self.users))

    def change(self, metric: str) -> np.ndarray:
        """float64[S, E]: a metric after minus before, such as ``change("NDCG@10")``."""
        return np.stack(
            [
                metric_values(after, metric, self.target_offsets)
                - metric_values(before, metric, self.target_offsets)
                for after, before in zip(self.ranks, self.ranks_before, strict=True)
            ]
        )

    def by_seed(self) -> dict[str, list[float]]:
        """Means over cases for each seed; the rank change is the median of |after - before|, in places.

        Targets that are no candidates, as seen items, have no rank to change; without any other it is NaN.
        """
        moved = np.abs(self.ranks.astype(np.float64) - self.ranks_before)
        candidates = (self.ranks != MISSED) & (self.ranks_before != MISSED)
        changes = [
            float(np.median(own[real])) if real.any() else float("nan")
            for own, real in zip(moved, candidates, strict=True)
        ]
        return {
            f"rank_biased_overlap@{self.k}": self.overlap.mean(axis=1).tolist(),
            f"jaccard@{self.k}": self.jaccard.mean(axis=1).tolist(),
            "median_rank_change": changes,
            f"HR@{self.k} change": self.change(f"HR@{self.k}").mean(axis=1).tolist(),
            f"NDCG@{self.k} change": self.change(f"NDCG@{self.k}").mean(axis=1).tolist(),
        }

    def summary(self) -> dict[str, dict[str, Any]]:
        """Mean, sd and values over seeds of each measure of `by_seed`."""
        values = self.by_seed()
        return over_seeds(
            [dict(zip(values, seed, strict=True)) for seed in zip(*values.values(), strict=True)]
        )


def measure_stability(
    rankers: Sequence[Ranker],
    cases: RankingCases,
    max_length: int,
    k: int = 10,
    perturbations: Sequence[Perturbation] = DEFAULT_PERTURBATIONS,
    persistence: float = 0.9,
    newest: int | None = None,
) -> list[Stability]:
    """Compare lists and ranks of the models of one run before and after each perturbation.

    Args:
      rankers: one model per seed.
      cases: histories and targets; their candidates remain those of the unperturbed history.
      max_length: interactions of a history that the models read.
      k: length of the lists.
      perturbations: the edits.
      persistence: p of the rank-biased overlap.
      newest: of those interactions so many are edited; None = all. Models that read more or less than others get the same
        edits only within what all of them read.
    """
    histories = cases.histories.compact(max_length)

    def answers(histories: Histories) -> list[tuple[np.ndarray, np.ndarray]]:
        edited = dataclasses.replace(cases, histories=histories)
        return [(ranker.top_k(histories, k, cases.exclude).items, ranker.rank(edited)) for ranker in rankers]

    before = answers(histories)
    results = []
    for perturbation in perturbations:
        after = answers(perturb(histories, perturbation, rankers[0].n_items, newest))
        pairs = [(old, new) for (old, _), (new, _) in zip(before, after, strict=True)]
        results.append(
            Stability(
                perturbation,
                overlap=np.stack([rank_biased_overlap(old, new, persistence) for old, new in pairs]),
                jaccard=np.stack([jaccard(old, new) for old, new in pairs]),
                ranks=np.stack([ranks for _, ranks in after]),
                ranks_before=np.stack([ranks for _, ranks in before]),
                target_offsets=np.asarray(cases.target_offsets, np.int64),
                k=k,
                users=histories.users,
            )
        )
    return results


def run_stability(run: Run, split: str, k: int, newest: int | None = None) -> list[Stability]:
    """Measure the stability of every seed of a run on "test" or "valid"; see `measure_stability`.

    Seen items are removed, or kept, as in the run's evaluation.
    """
    setup, remove_seen = run.setup, run.config.evaluation.remove_seen
    cases = ranking_cases(setup.split.cases(split), setup.dataset.items, setup.timestamps, remove_seen)
    rankers = [run.ranker(seed) for seed in run.seeds]
    return measure_stability(rankers, cases, rankers[0].encoding.longest_history, k, newest=newest)


def compare_stability(
    a: Sequence[Stability], b: Sequence[Stability], measure: Literal["overlap", "jaccard"] = "overlap"
) -> dict[str, Effect]:
    """Compare run B with run A, paired over cases with seeds nested: {perturbation: effect on the measure, B - A}.

    Args:
      a: results of run A.
      b: results of run B under the same perturbations.
      measure: the similarity of lists to compare.

    Raises:
      ConfigError: the perturbations differ.
    """
    names = [stability.perturbation.name for stability in a]
    if [stability.perturbation for stability in a] != [stability.perturbation for stability in b]:
        raise ConfigError(
            f"a and b must be measured under the same perturbations, got {names} and "
            f"{[stability.perturbation.name for stability in b]} (or other seeds)"
        )
    return {
        x.perturbation.name: paired_bootstrap(getattr(x, measure), getattr(y, measure), users=x.users)
        for x, y in zip(a, b, strict=True)
    }


def stability_figure(runs: Mapping[str, Sequence[Stability]]) -> Figure:
    """Draw the overlap of lists by perturbation, one line per run, with 95 % intervals over users and seeds.

    A single user has no spread, and so no interval.

    Args:
      runs: {run: its results}, under the same perturbations.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names: list[str] = []
    k = 0
    for number, (run, results) in enumerate(runs.items()):
        names, k = [stability.perturbation.name for stability in results], results[0].k
        mean, spread = np.array([row.overlap.mean() for row in results]), None
        if all(row.n_users > 1 for row in results):
            # Against a model that never moves: the interval of the mean itself, over users and seeds.
            intervals = [
                paired_bootstrap(0 * row.overlap, row.overlap, users=row.users, resamples=2000)
                for row in results
            ]
            _, low, high = np.array([effect[:3] for effect in intervals]).T
            spread = np.maximum([mean - low, high - mean], 0)  # equal values differ by rounding
        place = np.arange(len(results)) + 0.08 * (number - (len(runs) - 1) / 2)
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(place, mean, yerr=spread, fmt="o-", capsize=3, label=run, color=colour)
    axes.set_xticks(np.arange(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_ylabel(f"rank-biased overlap of the first {k}")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8)
    return figure


@dataclasses.dataclass(frozen=True)
class StabilityStudy:
    """Stability of several runs under the same perturbations.

    Attributes:
      runs: {run: one `Stability` per perturbation}, over all seeds of the run.
      effects: {run: {perturbation: difference in rank-biased overlap to the first run}}, for all runs but the first.
    """

    runs: dict[str, list[Stability]]
    effects: dict[str, dict[str, Effect]]

    def corrected(self) -> dict[str, dict[str, float]]:
        """The p-values of `effects` corrected by Holm over all runs and perturbations."""
        pairs = [(run, edit) for run, effects in self.effects.items() for edit in effects]
        p_values = holm([self.effects[run][edit].p_value for run, edit in pairs])
        corrected: dict[str, dict[str, float]] = {run: {} for run in self.effects}
        for (run, edit), p_value in zip(pairs, p_values, strict=True):
            corrected[run][edit] = float(p_value)
        return corrected

    def to_dict(self) -> dict[str, Any]:
        """Plain values: {"runs": summaries over seeds, "effects": effects with the corrected p-value}."""
        corrected = self.corrected()
        summaries = {
            run: {stability.perturbation.name: stability.summary() for stability in results}
            for run, results in self.runs.items()
        }
        effects = {
            run: {
                edit: {**effect._asdict(), "p_holm": corrected[run][edit]} for edit, effect in by_edit.items()
            }
            for run, by_edit in self.effects.items()
        }
        return {"runs": summaries, "effects": effects}

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of a table: mean ± standard deviation over seeds."""
        header, rows = [], []
        for run, results in self.runs.items():
            for stability in results:
                values = stability.by_seed()
                header = ["run", "perturbation", *values]
                rows.append([run, stability.perturbation.name, *map(mean_and_deviation, values.values())])
        return header, rows

    def effect_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: rank-biased overlap of each run minus that of the first, over users and seeds."""
        base = next(iter(self.runs))
        corrected = self.corrected()
        rows = [
            [
                f"{run} - {base}",
                edit,
                f"{effect.difference:+.4f}",
                f"[{effect.low:+.4f}, {effect.high:+.4f}]",
                f"{effect.p_value:.4f}",
                f"{corrected[run][edit]:.4f}",
            ]
            for run, effects in self.effects.items()
            for edit, effect in effects.items()
        ]
        header = ["rank-biased overlap", "perturbation", "difference", "95% interval", "p (users and seeds)"]
        return [*header, "p Holm"], rows

    def tables(self) -> list[tuple[list[str], list[list[Any]]]]:
        """Both tables, or the first alone for one run."""
        return [self.rows(), self.effect_rows()] if self.effects else [self.rows()]

    def notes(self) -> list[str]:
        """The test of the differences, and runs of one or few seeds; nothing for one run."""
        if not self.effects:
            return []
        count = sum(len(effects) for effects in self.effects.values())
        caption = (
            "Intervals and p come from a paired bootstrap over users and seeds; p Holm corrects that p for all "
            f"{count} comparisons."
        )
        return [caption, *seed_notes({run: len(results[0].overlap) for run, results in self.runs.items()})]


def stability(
    runs: Sequence[str | Path],
    split: str = "test",
    k: int = 10,
    out: str | Path | None = None,
    dataset: SequenceDataset | None = None,
) -> StabilityStudy:
    """Measure how lists and ranks of all seeds change when histories are perturbed, paired between runs.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      split: "test" or "valid".
      k: length of the lists.
      out: directory for ``stability.md``, ``stability.tex`` and ``stability.png``; None writes nothing.
      dataset: see `Run`.

    Raises:
      ConfigError: ``k`` is below 1 or above the catalogue.
      DataError: runs of different datasets, splits or rules of seen items.
    """
    if out is not None:
        check_free(out, ("stability.md", "stability.tex", "stability.png"))
    if not runs:
        raise DataError("runs must hold at least one run directory, got none")
    opened = {name: Run(run, dataset) for name, run in zip(run_names(runs), runs, strict=True)}
    first = next(iter(opened.values()))
    check_list_length(k, first.setup.dataset.n_items, "-k")
    for name, run in opened.items():
        for label, a, b in (
            ("dataset", first.setup.dataset.fingerprint, run.setup.dataset.fingerprint),
            ("split", dict(first.setup.split.options), dict(run.setup.split.options)),
            (
                "--evaluation.remove-seen",
                first.config.evaluation.remove_seen,
                run.config.evaluation.remove_seen,
            ),
        ):
            if a != b:
                raise DataError(
                    f"runs must have the same {label}, but that of {name} differs from that of the first"
                )
    # A model that appends a token reads an interaction less.
    newest = min(
        run.config.batches.max_length - (run.task.query_token is not None) for run in opened.values()
    )
    measured = {name: run_stability(opened.pop(name), split, k, newest) for name in list(opened)}
    base, *others = measured
    effects = {name: compare_stability(measured[base], measured[name]) for name in others}
    study = StabilityStudy(measured, effects)
    if out is not None:
        figures = {"stability.png": stability_figure(measured)}
        write_tables(out, "stability", study.tables(), figures, study.notes())
    return study
