r"""Chance alone in MIQ-Attn's protocol: about a thousand users drawn anew for each column of a table.

    jaxrec train --data ml-1m_sasrec.txt.gz --preset sasrec-ml1m --batches.batch-size 32 --seeds 2 \
        --training.epochs 4 --training.evaluate-every 4 --workdir runs/null
    python -m experiments.miq.sampled_users runs/null

The printed hit rates of Table 2 on MovieLens 1M are multiples of 1/1000, and those on Beauty fit another number of
users below 1,000 in each column: a column rests on about 1,000 users, and on other users than its neighbour. Here
both columns are the same model: two seeds of one run, with no difference by construction but for the seed. Columns
are drawn many times, and the record counts how often they differ by as much as the printed table: for one column
against SASRec, and for the best of the table's four. "Other users" draws them anew for each column, "same users" once
for both, which is what a paired protocol would do.

A model that is better than the printed one has larger steps. A draw therefore sets the values of a random part of the
users to zero, so that the mean is that of the printed SASRec; its gains among hits stay. The share is 1 where the
model is not better.

Nothing is trained: the ranks are those that the run saved. Writes
``experiments/results/miq-sampled-users_<dataset>.{md,json,png}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.miq.table2 import METRICS, PRINTED
from experiments.record import RESULTS, command_line, dataset_line, named_data, split_line, write_record
from jaxrec.analysis.figures import COLOURS, save_figure
from jaxrec.analysis.tables import to_markdown
from jaxrec.runs import Run


@dataclasses.dataclass(frozen=True)
class Options:
    """Count how often chance gives the printed gaps.

    Attributes:
      run: directory of a finished run with at least two seeds.
      users: users of a column.
      draws: tables drawn.
      seed: of the draws.
      items: catalogue whose printed table is used, 3416 (MovieLens 1M) or 57289 (Beauty); 0 = the run's.
    """

    run: Annotated[Path, tyro.conf.Positional]
    users: int = 1_000
    draws: int = 10_000
    seed: int = 0
    items: int = 0


def drawn_columns(
    values: np.ndarray, users: int, columns: int, share: float, paired: bool, generator: np.random.Generator
) -> np.ndarray:
    """Means of the columns of one table, float64[columns]: each a random seed of the model on drawn users.

    Args:
      values: float64[S, U], a metric of every user for each seed.
      users: of a column, without replacement.
      columns: of the table; the first is the baseline.
      share: of users whose values stay; those of the others are zero.
      paired: the same users in all columns.
      generator: of the draws.
    """
    seeds, everyone = values.shape
    size = min(users, everyone)
    chosen = generator.choice(everyone, size, replace=False)
    kept = generator.random(size) < share
    means = np.empty(columns)
    # The baseline is one seed and the others are other seeds: trainings of one model.
    first = generator.integers(seeds)
    for column in range(columns):
        if column and not paired:
            chosen = generator.choice(everyone, size, replace=False)
            kept = generator.random(size) < share
        step = 1 + (column - 1) % (seeds - 1) if column else 0
        means[column] = (values[(first + step) % seeds, chosen] * kept).mean()
    return means


def chance_of_gaps(
    values: np.ndarray, printed: Mapping[int, float], options: Options, paired: bool
) -> dict[str, Any]:
    """Shares of tables without a difference that have the gaps of the printed one.

    Args:
      values: float64[S, U], the metric of every user for each seed.
      printed: {m: value}, with the baseline under 1.
      options: sizes of the draws.
      paired: the same users in all columns.
    """
    generator = np.random.default_rng(options.seed)
    base = printed[1]
    share = min(1.0, base / float(values.mean()))
    tables = np.stack(
        [
            drawn_columns(values, options.users, len(printed), share, paired, generator)
            for _ in range(options.draws)
        ]
    )
    differences = tables[:, 1:] - tables[:, :1]
    gaps = {m: value - base for m, value in printed.items() if m != 1}
    return {
        "share_kept": share,
        "deviation": float(differences[:, 0].std()),
        # A gap of either sign, in one column.
        "one_column": {
            str(m): float((np.abs(differences[:, 0]) >= abs(gap) - 1e-12).mean()) for m, gap in gaps.items()
        },
        # The best gap of the table, among as many columns.
        "best_gap": max(gaps.values()),
        "best_of_table": float((differences.max(axis=1) >= max(gaps.values()) - 1e-12).mean()),
        "quantiles": np.quantile(differences[:, 0], [0.025, 0.25, 0.75, 0.975]).tolist(),
    }


def measure(run: Run, options: Options) -> dict[str, dict[str, Any]]:
    """{metric: {"other users" and "same users": result}}."""
    evaluations = [evaluation for evaluation, _ in run.ranks("test")]
    catalogue = options.items or run.catalogue.n_items
    if catalogue not in PRINTED:
        raise SystemExit(
            f"items: expected a catalogue of the printed table, {', '.join(map(str, PRINTED))}; got {catalogue}: name one"
        )
    if len(evaluations) < 2:
        raise SystemExit(f"run: expected at least two seeds, got {len(evaluations)}: train with --seeds 2")
    found = {}
    for number, metric in enumerate(METRICS):
        values = np.stack([evaluation.values(metric) for evaluation in evaluations])
        printed = {m: row[number] for m, row in PRINTED[catalogue].items()}
        found[metric] = {
            "printed": {str(m): value for m, value in printed.items()},
            "here": values.mean(axis=1).tolist(),
            "other users": chance_of_gaps(values, printed, options, paired=False),
            "same users": chance_of_gaps(values, printed, options, paired=True),
        }
    return found


def rows(found: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: chance of each printed gap, and of the best of the table."""
    columns = [m for m in next(iter(found.values()))["printed"] if m != "1"]
    header = ["metric", "SASRec printed", *(f"m = {m}: gap, chance" for m in columns)]
    header += ["best of the table, chance", "the same, same users"]
    lines = []
    for metric, each in found.items():
        printed, other = each["printed"], each["other users"]
        gaps = [f"{printed[m] - printed['1']:+.4f}, {other['one_column'][m]:.2f}" for m in columns]
        best = f"{other['best_gap']:+.4f}, {other['best_of_table']:.2f}"
        lines.append(
            [metric, f"{printed['1']:.4f}", *gaps, best, f"{each['same users']['best_of_table']:.2f}"]
        )
    return header, lines


def figure(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the printed gaps over the range in which nine of ten, and half, of chance's differences lie."""
    drawing = Figure(figsize=(8, 4), layout="constrained")
    axes = drawing.add_subplot()
    for place, each in enumerate(found.values()):
        for offset, kind, colour in ((-0.15, "other users", COLOURS[6]), (0.15, "same users", COLOURS[4])):
            low, quarter, three, high = each[kind]["quantiles"]
            label = f"chance, {kind}" if not place else None
            axes.plot([place + offset] * 2, [low, high], color=colour, linewidth=3, label=label)
            axes.plot([place + offset] * 2, [quarter, three], color=colour, linewidth=9)
        base = each["printed"]["1"]
        gaps: Sequence[float] = [value - base for m, value in each["printed"].items() if m != "1"]
        axes.plot(
            [place] * len(gaps), gaps, "D", color=COLOURS[1], label="printed gaps" if not place else None
        )
    axes.axhline(0, color="black", linewidth=0.7)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("difference to SASRec\n(bars: 50 % and 95 % of chance)")
    axes.legend(fontsize=8)
    return drawing


def main(options: Options) -> None:
    """Draw the tables and write the record."""
    run = Run(options.run)
    found = measure(run, options)
    results = run.results
    name = f"miq-sampled-users_{results['dataset']['name'].lower().replace(' ', '-')}"
    training, here = results["training"], [f"{value:.4f}" for value in found["HR@10"]["here"]]
    write_record(
        name,
        {
            "dataset": results["dataset"],
            "split": results["split"]["protocol"],
            "protocol": results["protocol"],
            "seeds": results["seeds"],
            "training": training,
            "config": named_data(results["config"]),
            "options": {"users": options.users, "draws": options.draws, "seed": options.seed},
            "metrics": found,
        },
        title=f"Chance in samples of {options.users} users on {results['dataset']['name']}",
        command=command_line("experiments.miq.sampled_users"),
        body=[
            f"{dataset_line(results['dataset'])} {split_line(results['split'])}; {results['protocol']}. "
            f"{results['config']['encoder']['name']} of {len(results['seeds'])} seeds, {training['epochs']:g} epochs, HR@10 "
            f"{' and '.join(here)}. {options.draws:,} tables, {options.users} users a column.",
            to_markdown(*rows(found)),
            f"![Figure]({name}.png)",
            "Chance: share of tables of one model in which a column differs from the first by at least the printed gap, in "
            "either direction; for the best of the table, in which the largest difference of as many columns reaches the "
            "largest printed one. The first column is one seed, the others are other seeds; with two seeds and the same "
            "users all of them are alike. Values of the model were set to zero for a random part of the users, to the "
            "printed mean.",
        ],
    )
    save_figure(figure(found), RESULTS / f"{name}.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
