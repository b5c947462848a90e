"""E6: does a vector for each user help, what do new users get, and does depth make all users alike?

    python -m experiments.revisited.personalisation
    python -m experiments.revisited.personalisation --data s3rec_data.zip:LastFM --patience 10 --out runs/personal-lastfm

A share of the users takes no part in training: they are ranked apart, as new users without a vector. The others are ranked
by leave-one-out, with their own vector and, to see what it contributes, as if they were new. All variants have the same
budget; nothing is tuned. `jaxrec.analysis.personalisation` compares the lists of users with similar histories with their
futures and measures effective ranks. Writes ``experiments/results/personalisation_<dataset>.{md,json,png}``; an
interrupted study resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments.differences import difference_table, paired_differences
from experiments.record import RESULTS, command_line, dataset_line, split_line, write_record
from experiments.variants import SharedSettings, Variant, plan_line, study
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.personalisation import (
    Personalisation,
    RanksByStep,
    personalisation_figure,
    ranks_by_step,
    run_personalisation,
)
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import EvaluationCases
from jaxrec.data.stretches import ranges
from jaxrec.evaluation.histories import RankingCases, ranking_cases
from jaxrec.evaluation.metrics import metric_values
from jaxrec.presets import sasrec
from jaxrec.runs import Run

METRIC = "NDCG@10"


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare vectors of users.

    Attributes:
      swap: probability of stochastic swapping.
      new_users: share of the users that take no part in training.
      depths: layers, of the model without vectors and with added ones.
    """

    swap: float = 0.5
    new_users: float = 0.2
    depths: tuple[int, ...] = (1, 2, 4)
    out: str = "runs/personalisation"


def variants(options: Options) -> list[Variant]:
    """No vectors first; each way of using one, with swapping; added ones without; then other depths."""
    swapped = {"user_swap": options.swap}
    others = [depth for depth in options.depths if depth != sasrec().encoder.layers]
    return [
        Variant("none", {}),
        Variant("added", {"encoder": {"user": "added"}}),
        Variant("added, swapped", {"encoder": {"user": "added", **swapped}}),
        Variant("prefix, swapped", {"encoder": {"user": "prefix", **swapped}}),
        Variant("film, swapped", {"encoder": {"user": "film", **swapped}}),
        *(Variant(f"none, {depth} layers", {"encoder": {"layers": depth}}) for depth in others),
        *(
            Variant(
                f"added, swapped, {depth} layers", {"encoder": {"user": "added", "layers": depth, **swapped}}
            )
            for depth in others
        ),
    ]


class Divided(NamedTuple):
    """A log with some users set apart.

    Attributes:
      training: dataset of the users who take part in training.
      new: the others: all but the last item of each as the history, the last as the target.
    """

    training: SequenceDataset
    new: RankingCases


def divide(dataset: SequenceDataset, share: float, remove_seen: bool = True) -> Divided:
    """Set a share of the users apart, drawn with a fixed seed."""
    apart = np.zeros(dataset.n_users, bool)
    chosen = np.random.default_rng(0).permutation(dataset.n_users)[: round(share * dataset.n_users)]
    apart[chosen] = True
    offsets, lengths = np.asarray(dataset.offsets), np.asarray(dataset.lengths)
    kept = np.flatnonzero(~apart)
    index = ranges(offsets[:-1][kept], lengths[kept])
    training = dataclasses.replace(
        dataset,
        items=np.asarray(dataset.items)[index],
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[kept])]),
        user_ids=[str(dataset.user_ids[int(user)]) for user in kept],
        timestamps=None if dataset.timestamps is None else np.asarray(dataset.timestamps)[index],
        meta={"name": dataset.name},
    )
    new = np.flatnonzero(apart & (lengths > 1))
    stops = offsets[1:][new] - 1
    cases = EvaluationCases(
        users=np.full(len(new), -1, np.int32),
        history_starts=offsets[:-1][new],
        history_stops=stops,
        targets=np.asarray(dataset.items)[stops],
        target_offsets=np.arange(len(new) + 1, dtype=np.int64),
    )
    return Divided(training, ranking_cases(cases, np.asarray(dataset.items), None, remove_seen))


class Measured(NamedTuple):
    """Figures of one variant.

    Attributes:
      warm: of the users of training.
      new: float64[S, E], the metric of each new user.
      course: effective ranks by step, of the first seed.
    """

    warm: Personalisation
    new: np.ndarray
    course: RanksByStep


def measure(options: Options, chosen: list[Variant], divided: Divided) -> dict[str, Measured]:
    """{variant: figures} of the trained variants."""
    out = {}
    for variant in chosen:
        run = Run(Path(options.out) / variant.name.replace(" ", "-"), divided.training)
        ranks = [run.ranker(seed).rank(divided.new) for seed in run.seeds]
        new = np.stack([metric_values(each, METRIC, divided.new.target_offsets) for each in ranks])
        out[variant.name] = Measured(
            run_personalisation(run, "test", metric=METRIC), new, ranks_by_step(run, seeds=1)
        )
    return out


def comparisons(measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """Paired differences with seeds nested, corrected over all of them (Holm).

    Of each variant and the first: the metric of users of training, and of new users. Of each variant with vectors: users of
    training as new ones less themselves. Of each variant and the first: the similarity of lists, over pairs of users.
    """
    reference, first = next(iter(measured.items()))
    pairs: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name, each in list(measured.items())[1:]:
        pairs.append((f"{name} less {reference}, {METRIC}", first.warm.own, each.warm.own))
        pairs.append((f"{name} less {reference}, {METRIC} of new users", first.new, each.new))
        pairs.append((f"{name} less {reference}, list similarity", first.warm.lists, each.warm.lists))
    new = [
        (f"{name}: as new users less as themselves, {METRIC}", each.warm.own, each.warm.new)
        for name, each in measured.items()
        if each.warm.new is not None
    ]
    return paired_differences([*pairs, *new], same_models={name for name, _, _ in new})


def tables(trained: dict[str, Any], measured: dict[str, Measured]) -> list[str]:
    """Metrics, similarities and ranks of all variants, and the pairs of the first."""
    header = ["variant", "parameters", "HR@10", METRIC, f"{METRIC}, new users", f"{METRIC}, as new users"]
    rows = []
    for row in trained["variants"]:
        each = measured[row["name"]]
        withheld = None if each.warm.new is None else mean_and_deviation(each.warm.new.mean(axis=1))
        values = [mean_and_deviation(x.mean(axis=1)) for x in (each.warm.own, each.new)]
        hits = mean_and_deviation(row["metrics"]["HR@10"]["values"])
        rows.append([row["name"], f"{row['training']['parameters']:,}", hits, *values, withheld])
    similar = [
        [name, each.warm.lists.mean(), *each.warm.whole_rows()[1][0][:3]] for name, each in measured.items()
    ]
    first = next(iter(measured.values())).warm
    groups = [name for name, _ in first.groups]
    by_group = [
        [name, *(each.warm.lists[:, mask].mean() for _, mask in each.warm.groups)]
        for name, each in measured.items()
    ]
    header_of_groups, rows_of_groups = first.rows()
    ranks = [
        [
            name,
            ", ".join(f"{rank:.1f}" for rank in each.warm.state_ranks.mean(axis=0)),
            f"{each.warm.table_rank.mean():.1f}",
        ]
        for name, each in measured.items()
    ]
    return [
        to_markdown(header, rows),
        "Pairs of users, each with the one of the most similar history and a random one, by the similarity of histories "
        "(lists are those of the first variant):",
        to_markdown(header_of_groups, rows_of_groups, digits=3),
        "Similarity of lists by that of histories:",
        to_markdown(["variant", *groups], by_group, digits=3),
        "Similarity of all pairs; the difference between pairs with and without a common future, at histories as similar; "
        "and the similarity of the lists for one history when it is another user's, or a new user's:",
        to_markdown(
            ["variant", "list similarity", "common future", "another user", "new user"], similar, digits=3
        ),
        "Effective rank of the states that score the next items, layer by layer and at the end, and of the items:",
        to_markdown(["variant", "states", "items"], ranks),
    ]


def record(
    options: Options, trained: dict[str, Any], measured: dict[str, Measured], divided: Divided
) -> None:
    """Write tables, figure and everything measured."""
    dataset = divided.training.name
    name = f"personalisation_{dataset.lower().replace(' ', '-')}"
    tests = comparisons(measured)
    plan = options.plan(variants(options))
    result = {
        "plan": plan,
        **{key: trained[key] for key in ("dataset", "split", "protocol", "seeds", "versions", "hardware")},
        "new_users": len(divided.new),
        "trained": [
            {key: row[key] for key in ("name", "metrics", "training")} for row in trained["variants"]
        ],
        "personalisation": {name: each.warm.to_dict() for name, each in measured.items()},
        f"{METRIC} of new users": {name: each.new.mean(axis=1).tolist() for name, each in measured.items()},
        "ranks_by_step": {name: each.course.to_dict() for name, each in measured.items()},
        "differences": tests,
    }
    body = [
        plan_line(plan),
        f"{dataset_line(trained['dataset'])} {split_line(trained['split'])}; {trained['protocol']}. "
        f"Seeds {trained['seeds']}. {len(divided.new):,} further users take no part in training and are ranked as "
        "new ones, without a vector; those with one are also ranked as if they were new. Nothing was tuned; "
        "stopping was chosen on validation.",
        *tables(trained, measured),
        "Paired over users (for the similarity of lists over pairs of users, which share users, so that these intervals are "
        "somewhat narrow) with seeds nested:",
        difference_table(tests),
        f"![Similarities and effective ranks]({name}.png)",
    ]
    write_record(
        name,
        result,
        title=f"Vectors of users on {dataset}",
        command=command_line("experiments.revisited.personalisation"),
        body=[part for part in body if part],
    )
    results = {name: each.warm for name, each in measured.items()}
    courses = {name: each.course for name, each in measured.items()}
    save_figure(personalisation_figure(results, courses), RESULTS / f"{name}.png")


def main(options: Options) -> None:
    """Train, measure, and write the record."""
    base = options.base({"training": {"checkpoint_seconds": 15.0, "keep_checkpoints": 40}})
    chosen = options.chosen(variants(options))
    divided = divide(options.load(), options.new_users, base.evaluation.remove_seen)
    trained = study(base, chosen, divided.training, Path(options.out))
    record(options, trained, measure(options, chosen, divided), divided)


if __name__ == "__main__":
    main(tyro.cli(Options))
