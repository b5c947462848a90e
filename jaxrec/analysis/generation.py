"""Generated sequences against the held-out last items of each user, step by step.

A split that holds out G items of each user (``--split.strategy leave-last-n --split.n G``) asks for more than one next item:
those of the next G steps. Two histories answer step s: the model's *own*, with the items that it generated before, and
the *true* one, with the items that came. An item occurs once in a sequence, so that a target which was generated before its
step is no candidate there any more: it was found early, and counts as missed after own items. Against the true history with
the same targets missed ("early missed"), what the own one loses is the price of feeding back predictions. A list of the G
best items of step 1, without feeding anything back, is the control of the whole sequence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.beyond_accuracy import coverage, gini
from jaxrec.analysis.figures import COLOURS, from_zero
from jaxrec.analysis.tables import mean_and_deviation
from jaxrec.config import RunConfig
from jaxrec.data.splits import EvaluationCases
from jaxrec.errors import ConfigError
from jaxrec.evaluation.histories import Histories, histories_of
from jaxrec.evaluation.metrics import MISSED, metric_values, over_seeds
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.evaluation.seen import SeenItems, seen_items
from jaxrec.runs import Run
from jaxrec.serving.generation import GREEDY, GenerationConfig, cache_obstacle, generate


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationQuality:
    """Quality of generated sequences; C cases, G steps, S seeds.

    Attributes:
      steps: G.
      cases: C.
      by_step: {measure: float64[S, G]}; see `step_measures`.
      whole: {measure: float64[S]}; see `sequence_measures`.
      values: {measure: float64[S, C]}, measures of each case for paired tests: "own K", "true K" and "true K, early missed"
        (means over the steps of NDCG@K), "recall" and "list recall".
      read_again: reason for which every step reads the whole history again, or None.
    """

    steps: int
    cases: int
    by_step: dict[str, np.ndarray]
    whole: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    read_again: str | None

    def to_dict(self) -> dict[str, Any]:
        """Mean, deviation and value of each seed: of every step under "by_step", of whole sequences under "whole"."""
        return {
            "steps": self.steps,
            "cases": self.cases,
            "by_step": {
                name: [over_seeds([{"": float(x)} for x in step])[""] for step in values.T]
                for name, values in self.by_step.items()
            },
            "whole": over_seeds(
                [
                    {name: float(values[seed]) for name, values in self.whole.items()}
                    for seed in range(len(next(iter(self.whole.values()))))
                ]
            ),
            "read_again": self.read_again,
        }

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the table of steps."""
        header = ["measure", *(f"step {step}" for step in range(1, self.steps + 1))]
        return header, [
            [name, *(mean_and_deviation(step) for step in values.T)] for name, values in self.by_step.items()
        ]

    def whole_rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the table of whole sequences."""
        return ["whole sequence", "value"], [
            [name, mean_and_deviation(values)] for name, values in self.whole.items()
        ]


def generation_quality(
    run: Run,
    steps: int,
    config: GenerationConfig = GREEDY,
    split: str = "test",
    k: int = 10,
) -> GenerationQuality:
    """Measure the sequences that a run's models generate for the held-out items of each user.

    Args:
      run: trained on a split that holds out at least ``steps`` items, in order.
      steps: G.
      config: how items are chosen; greedy or sample.
      split: "valid" or "test".
      k: list length of HR and NDCG.

    Raises:
      ConfigError: no user has so many held-out items, or ``config`` is a beam search.
    """
    setup = run.setup
    if config.method == "beam":
        raise ConfigError(
            "--steps of evaluate follows one sequence: expected --generation.method greedy or sample, got beam; "
            "choose one of them"
        )
    cases = first_targets(setup.split.cases(split), steps)
    items = np.asarray(setup.dataset.items)
    histories = histories_of(cases, items, setup.timestamps)
    seen = seen_items(cases, items)
    by_step, whole, values, reason = [], [], [], None
    for seed in run.seeds:
        ranker = run.ranker(seed)
        reason = cache_obstacle(ranker, config)
        outcome = _Outcome.of(ranker, histories, cases, seen, config, run.config)
        by_step.append(step_measures(outcome, setup.split.item_counts, k))
        whole.append(sequence_measures(outcome, ranker.n_items))
        values.append(_case_values(outcome, k))
    return GenerationQuality(steps, len(cases), _stacked(by_step), _stacked(whole), _stacked(values), reason)


def first_targets(cases: EvaluationCases, steps: int) -> EvaluationCases:
    """Cases with at least ``steps`` targets, cut to their first ``steps``.

    Raises:
      ConfigError: there is none.
    """
    sizes = np.diff(cases.target_offsets)
    rows = np.flatnonzero(sizes >= steps)
    if steps < 1 or not len(rows):
        raise ConfigError(
            f"--steps must be from 1 to the number of held-out items of a user, at most {sizes.max(initial=0)} in this "
            f"run's split; got {steps}: train with --split.strategy leave-last-n --split.n {max(steps, 1)}"
        )
    place = np.asarray(cases.target_offsets)[rows][:, None] + np.arange(steps)
    return EvaluationCases(
        np.asarray(cases.users)[rows],
        np.asarray(cases.history_starts)[rows],
        np.asarray(cases.history_stops)[rows],
        np.asarray(cases.targets)[place].reshape(-1),
        np.arange(len(rows) + 1, dtype=np.int64) * steps,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Outcome:
    """Sequences that one model generated for C cases.

    Attributes:
      items: int32[C, G], generated items, 0 = none.
      targets: int32[C, G], held-out items.
      own_ranks: int32[C, G], ranks of the targets after the model's own items.
      true_ranks: int32[C, G], after the true ones.
      entropies: float32[C, G], nats.
      one_list: int32[C, G], the G best items of the first step.
      seen: items of the histories.
    """

    items: np.ndarray
    targets: np.ndarray
    own_ranks: np.ndarray
    true_ranks: np.ndarray
    entropies: np.ndarray
    one_list: np.ndarray
    seen: SeenItems

    @classmethod
    def of(
        cls,
        ranker: EncoderRanker,
        histories: Histories,
        cases: EvaluationCases,
        seen: SeenItems,
        config: GenerationConfig,
        options: RunConfig,
    ) -> _Outcome:
        """Generate along own and along true items, with the options of the run."""
        remove_seen = options.evaluation.remove_seen
        targets = cases.targets.reshape(len(cases), -1)
        steps, exclude = targets.shape[1], seen if remove_seen else None
        own, true = (
            generate(
                ranker,
                histories,
                steps,
                config,
                exclude=exclude,
                repeats=not remove_seen,
                targets=targets,
                forced=forced,
                divisor=options.objective.temperature,
            )
            for forced in (False, True)
        )
        assert own.ranks is not None
        assert true.ranks is not None
        length = min(steps, ranker.n_items)
        one_list = ranker.top_k(histories, length, exclude).items
        return cls(own.items[:, 0], targets, own.ranks, true.ranks, own.entropies[:, 0], one_list, seen)


def step_measures(outcome: Any, item_counts: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Measures of each step, float64[G], means over cases.

    "own HR@k" and "own NDCG@k" rank the step's target after the model's own items, "true ..." after the true ones. "early"
    is the share of targets that are no candidates of their step, since they were generated before, and "true ..., early
    missed" counts these as missed after the true items too, which makes it comparable with "own ...". "exact" is the share
    of generated items that are the target of their step. "popularity" is the mean number of training interactions of
    generated items, "target popularity" of targets. "repetition" is the share of generated items that were in the history or
    generated before, "target repetition" the same of targets. "entropy" is that of the model's distribution over candidates,
    in nats; "coverage" the share of the catalogue that some user gets at this step.
    """
    items, targets, counts = outcome.items, outcome.targets, np.asarray(item_counts, np.float64)
    measures = {}
    without_early = _early_missed(outcome)
    for name, ranks, ending in (
        ("own", outcome.own_ranks, ""),
        ("true", outcome.true_ranks, ""),
        ("true", without_early, ", early missed"),
    ):
        for metric in (f"HR@{k}", f"NDCG@{k}"):
            values = np.array([metric_values(step, metric).mean() for step in ranks.T])
            measures[f"{name} {metric}{ending}"] = values
    measures["early"] = (without_early != outcome.true_ranks).mean(axis=0)
    real = items > 0
    number = np.maximum(real.sum(axis=0), 1)
    return {
        **measures,
        "exact": (items == targets).mean(axis=0),
        "popularity": (counts[items] * real).sum(axis=0) / number,
        "target popularity": counts[targets].mean(axis=0),
        "repetition": (repeated(items, outcome.seen) & real).sum(axis=0) / number,
        "target repetition": repeated(targets, outcome.seen).mean(axis=0),
        "entropy": outcome.entropies.astype(np.float64).mean(axis=0),
        "coverage": np.array([coverage(step[:, None], len(counts) - 1) for step in items.T]),
    }


def _early_missed(outcome: Any) -> np.ndarray:
    """int32[C, G], ranks after true items of those targets that are candidates after own items, too."""
    return np.where(outcome.own_ranks == MISSED, MISSED, outcome.true_ranks)


def repeated(sequences: np.ndarray, seen: SeenItems) -> np.ndarray:
    """bool[C, G], whether each item is in its history or earlier in its sequence int32[C, G]."""
    out = np.zeros(sequences.shape, bool)
    width = np.int64(max(sequences.max(initial=0), seen.items.max(initial=0))) + 1
    rows = np.arange(len(sequences), dtype=np.int64)
    known = np.unique(seen.row_numbers() * width + seen.items)
    for step in range(sequences.shape[1]):
        keys = rows * width + sequences[:, step]
        earlier = (sequences[:, :step] == sequences[:, step : step + 1]).any(axis=1)
        out[:, step] = np.isin(keys, known) | earlier
    return out


def recall(sequences: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64[C], share of the distinct targets int32[C, G] that occur in a sequence int32[C, N]."""
    found = (targets[:, :, None] == sequences[:, None, :]).any(axis=2)
    first = np.ones(targets.shape, bool)
    for step in range(1, targets.shape[1]):
        first[:, step] = ~(targets[:, :step] == targets[:, step : step + 1]).any(axis=1)
    return (found & first).sum(axis=1) / first.sum(axis=1)


def sequence_measures(outcome: Any, n_items: int) -> dict[str, float]:
    """Measures of whole sequences, means over cases.

    "recall" is the share of a user's held-out items that were generated, at any step, and "list recall" that of the list of
    the G best items of the first step. "distinct" is the share of generated items that are the first of their kind in
    the sequence, "coverage" and "gini" are of all generated items.
    """
    items = outcome.items
    nothing = SeenItems(np.zeros(len(items) + 1, np.int64), np.zeros(0, np.int32))
    real = items > 0
    return {
        "recall": float(recall(items, outcome.targets).mean()),
        "list recall": float(recall(outcome.one_list, outcome.targets).mean()),
        "distinct": float((real & ~repeated(items, nothing)).sum() / max(real.sum(), 1)),
        "coverage": coverage(items, n_items),
        "gini": gini(items, n_items),
    }


def _case_values(outcome: _Outcome, k: int) -> dict[str, np.ndarray]:
    def mean_of(ranks: np.ndarray) -> np.ndarray:
        return np.mean([metric_values(step, f"NDCG@{k}") for step in ranks.T], axis=0)

    return {
        f"own {k}": mean_of(outcome.own_ranks),
        f"true {k}": mean_of(outcome.true_ranks),
        f"true {k}, early missed": mean_of(_early_missed(outcome)),
        "recall": recall(outcome.items, outcome.targets),
        "list recall": recall(outcome.one_list, outcome.targets),
    }


def _stacked(seeds: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(seed[name], np.float64) for seed in seeds]) for name in seeds[0]}


def generation_figure(qualities: dict[str, GenerationQuality], metric: str = "HR@10") -> Figure:
    """Draw a metric by step after own and after true items, for each model."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, quality), colour in zip(qualities.items(), COLOURS * (1 + len(qualities)), strict=False):
        steps = np.arange(1, quality.steps + 1)
        for kind, style in (("true", "--"), ("own", "-")):
            values = quality.by_step[f"{kind} {metric}"]
            axes.plot(steps, values.mean(axis=0), style, color=colour, label=f"{name}, {kind} items")
    axes.set(xlabel="step", ylabel=metric)
    axes.set_xticks(sorted({step for quality in qualities.values() for step in range(1, quality.steps + 1)}))
    from_zero(axes)
    axes.legend(frameon=False, fontsize="small")
    return figure
