"""E4: items from their users. A next-user model and its ensemble with the next-item model, and a consistency loss.

    python -m experiments.revisited.duality
    JAXREC_DATA=path/to/archives python -m experiments.revisited.duality --data lastfm --out runs/duality-lastfm

The log needs times; those of S3-Rec's archive (``s3rec_data.zip:LastFM``) have none, the same log of ``--data lastfm`` has.

Next-item models without and with the consistency loss (`jaxrec.tasks.consistency`) train with the same budget and seeds. A
next-user model trains on the transposed log (`jaxrec.data.transposed`), is ranked alone, with and without the popularity of
items, and is joined to the next-item model by a weight that validation chooses. Everything is compared with the next-item
model, paired over users and seeds, with Holm's correction over all of these comparisons together. Writes
``experiments/results/duality_<dataset>.{md,json,png}``; an interrupted study resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.record import RESULTS, command_line, dataset_line, split_line, write_record
from experiments.variants import SharedSettings, Variant, plan_line, study, train_once
from jaxrec.analysis.compare import Comparison, RunRanks, compare_runs, saved_ranks
from jaxrec.analysis.duality import ENSEMBLE, NEXT_ITEM, NEXT_USER, Duality, draw_coverage, measure_duality
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.groups import breakdown, draw_groups, popularity_groups
from jaxrec.analysis.significance import holm
from jaxrec.analysis.tables import to_markdown
from jaxrec.data import split_dataset, transposed
from jaxrec.data.dataset import SequenceDataset
from jaxrec.runs import Run
from jaxrec.tasks import ConsistencyConfig

METRICS = ("HR@10", "NDCG@10")
#: Name of the next-user model with Bayes' rule, and of its ensemble.
BAYES, BAYES_ENSEMBLE = f"{NEXT_USER}, popularity", f"{ENSEMBLE}, popularity"


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Measure duality of users and items.

    Attributes:
      weights: of the consistency loss, with the item fixed.
      others: sides that are fixed in the further variants, at the middle one of the weights.
      last: newest users of an item, of the transposed log.
    """

    weights: tuple[float, ...] = (0.01, 0.1, 1.0)
    others: tuple[str, ...] = ("users", "none")
    last: int = 50
    out: str = "runs/duality"


def variants(options: Options) -> list[Variant]:
    """The next-item model first, then the consistency loss by weight and by the side that is fixed."""
    by_weight = [
        Variant(f"consistency {weight:g}", {"task": ConsistencyConfig(weight=weight)})
        for weight in options.weights
    ]
    middle = options.weights[len(options.weights) // 2] if options.weights else 0.1
    by_side = [
        Variant(
            f"consistency {middle:g}, {side} fixed"
            if side != "none"
            else f"consistency {middle:g}, none fixed",
            {"task": ConsistencyConfig(weight=middle, stop=side)},  # type: ignore[arg-type]
        )
        for side in options.others
    ]
    return [Variant(NEXT_ITEM, {}), *by_weight, *by_side]


def next_user_run(options: Options, reverse: SequenceDataset) -> Run:
    """Train the next-user model on the transposed log, unless it is there."""
    folder = Path(options.out) / "next-user"
    train_once(reverse, options.base(), folder)
    return Run(folder, reverse)


def main(options: Options) -> None:
    """Train, rank, compare, and write the record."""
    every = variants(options)
    asked = options.chosen(every)
    chosen = [each for each in every if each in asked or each is every[0]]
    dataset = options.load()
    # Before the hours of training: a log without times cannot be transposed.
    reverse = transposed(split_dataset(dataset, options.base().split), options.last)
    out = Path(options.out)
    trained = study(options.base(), chosen, dataset, out)
    runs = {each.name: Run(out / each.name.replace(" ", "-"), dataset) for each in chosen}
    users = next_user_run(options, reverse)
    sides = {
        popularity: measure_duality(runs[NEXT_ITEM], users, popularity=popularity)
        for popularity in (0.0, 1.0)
    }
    ranks = [saved_ranks(name, run.ranks("test")) for name, run in runs.items()]
    for popularity, names in ((0.0, (NEXT_USER, ENSEMBLE)), (1.0, (BAYES, BAYES_ENSEMBLE))):
        pair = sides[popularity].ranks((NEXT_USER, ENSEMBLE))
        ranks += [dataclasses.replace(each, name=name) for each, name in zip(pair, names, strict=True)]
    missing = [each.name for each in every if each not in chosen]
    trained["plan"] = {**options.plan(every), "left_out": missing}
    record(options, trained, ranks, sides, users)


def over_all(comparison: Comparison) -> Comparison:
    """Correct over the comparisons on all metrics together."""
    rows = comparison.differences
    corrected = holm([row.p_bootstrap for row in rows])
    changed = [dataclasses.replace(row, p_holm=float(p)) for row, p in zip(rows, corrected, strict=True)]
    return dataclasses.replace(comparison, differences=changed)


def record(
    options: Options,
    trained: dict[str, Any],
    ranks: list[RunRanks],
    sides: dict[float, Duality],
    users: Run,
) -> None:
    """Write tables, figure and everything measured."""
    plain = sides[0.0]
    name = f"duality_{trained['dataset']['name'].lower().replace(' ', '-')}"
    comparison = over_all(compare_runs(ranks, METRICS, same_models={ENSEMBLE, BAYES_ENSEMBLE}))
    own = users.results
    results, differences = comparison.result_rows(), comparison.difference_rows()
    weights = [
        f"{label}: {', '.join(f'{weight:g}' for weight in sides[popularity].weights)}"
        for popularity, label in ((0.0, ENSEMBLE), (1.0, BAYES_ENSEMBLE))
    ]
    curve = to_markdown(
        ["weight", f"validation {plain.metric}", "with popularity"],
        [
            [f"{weight:g}", *(np.mean([curve[weight] for curve in each.curves]) for each in sides.values())]
            for weight in plain.curves[0]
        ],
    )
    seconds = {row["name"]: row["timing"]["training_seconds"] for row in trained["variants"]}
    seconds["next user"] = own["timing"]["training_seconds"]
    write_record(
        name,
        {
            **{
                key: trained[key]
                for key in (
                    "plan",
                    "dataset",
                    "split",
                    "protocol",
                    "seeds",
                    "baselines",
                    "versions",
                    "hardware",
                )
            },
            "trained": [
                {key: row[key] for key in ("name", "metrics", "valid_metrics", "timing", "training")}
                for row in trained["variants"]
            ],
            "next_user": {key: own[key] for key in ("dataset", "split", "metrics", "timing", "training")},
            "sides": {f"popularity {popularity:g}": each.to_dict() for popularity, each in sides.items()},
            "values": comparison.values,
            "differences": [dataclasses.asdict(each) for each in comparison.differences],
            "by_popularity": {
                each.name: [group.to_dict() for group in groups]
                for each, groups in zip(ranks, by_popularity(ranks, plain), strict=True)
            },
        },
        title=f"Users and items from both sides on {trained['dataset']['name']}",
        command=command_line("experiments.revisited.duality"),
        body=[
            *filter(None, [plan_line(trained["plan"])]),
            f"{dataset_line(trained['dataset'])} {split_line(trained['split'])}; {trained['protocol']}. Seeds "
            f"{trained['seeds']}. Nothing was tuned but the weights of the ensembles, by validation.",
            to_markdown(*results),
            to_markdown(*differences),
            "p Holm corrects p (users and seeds) for all comparisons of both metrics together. Detectable: the smallest "
            "difference that these users and seeds show in four of five cases at the 5 % level.",
            f"Weights of the next-user model that validation chose for each seed. {'; '.join(weights)}.",
            curve,
            f"Sequences of users, at most {options.last} each:",
            to_markdown(*plain.coverage.rows()),
            "The next-user model on its own task, the last user of each item among all users: "
            + ", ".join(f"{metric} {own['metrics'][metric]['mean']:.4f}" for metric in METRICS)
            + "; popularity of users: "
            + ", ".join(f"{own['baselines']['popularity'][metric]:.4f}" for metric in METRICS)
            + ".",
            "Seconds of training, all seeds: "
            + ", ".join(f"{label} {value:.0f}" for label, value in seconds.items())
            + ".",
        ],
    )
    save_figure(figure(ranks, plain), RESULTS / f"{name}.png")


def by_popularity(ranks: list[RunRanks], side: Duality) -> list[list[Any]]:
    """NDCG@10 by popularity of the target, of each model, without groups that have no case."""
    first = ranks[0].evaluations[0]
    targets = first.targets[first.target_offsets[:-1]]
    groups, names = popularity_groups(targets, side.split.item_counts)
    tables = [breakdown(each.values("NDCG@10").mean(axis=0), groups, names) for each in ranks]
    return [[group for group in rows if group.cases > 1] for rows in tables]


def figure(ranks: list[RunRanks], side: Duality) -> Figure:
    """Coverage of the sequences of users, and accuracy by popularity of the target."""
    drawn = Figure(figsize=(12.5, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    draw_coverage(left, side.coverage)
    rows = {each.name: groups for each, groups in zip(ranks, by_popularity(ranks, side), strict=True)}
    shown = {name: rows[name] for name in (NEXT_ITEM, NEXT_USER, BAYES, ENSEMBLE, BAYES_ENSEMBLE)}
    consistent = [name for name in rows if name.startswith("consistency")]
    draw_groups(
        right,
        {**shown, **{name: rows[name] for name in consistent[-2:]}},
        "NDCG@10",
        "popularity of the target",
    )
    return drawn


if __name__ == "__main__":
    main(tyro.cli(Options))
