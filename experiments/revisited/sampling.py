"""E5: what the negatives of training do to accuracy, coverage, concentration and exposure in proportion to consumption.

    python -m experiments.revisited.sampling
    python -m experiments.revisited.sampling --data s3rec_data.zip:LastFM --out runs/sampling-lastfm

One loss, softmax over the target and its negatives, and only the negatives change: the whole catalogue (the reference), or
a shared draw by `jaxrec.objectives.samplers`. Each score is lowered by the logarithm of its expected count, as it should
be; rows with "no logQ" show what the correction does. "others' items" leaves the user's own items out of the negatives,
as SASRec's code does. The record has the frontier of accuracy against each property of the lists.

Writes ``experiments/results/sampling_<dataset>.{md,json,png}`` after each row; until all are done, it says which are
missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.differences import difference_table
from experiments.variants import LISTS, SharedSettings, Variant, contrasts
from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.objectives import CrossEntropyConfig, SampledSoftmaxConfig

#: Properties of lists: label, name in the record, and whether more of it is better.
PROPERTIES = (
    ("coverage", f"coverage@{LISTS}", True),
    ("Gini coefficient", f"gini@{LISTS}", False),
    ("exposure away from consumption", f"exposure_shift@{LISTS}", False),
)
#: More negatives than any catalogue has items: each item once.
ALL = 10**9


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare samplers of negatives.

    Attributes:
      negatives: draws of a step, which all of its positions share.
    """

    negatives: int = 128
    learning_rate: float = 2e-3
    out: str = "runs/sampling"


def variants(negatives: int) -> list[Variant]:
    """Return the rows; the others are compared with the first."""
    drawn = SampledSoftmaxConfig(n_negatives=negatives)
    samplers = {
        "uniform": {"sampler": "uniform"},
        "popularity": {"sampler": "popularity"},
        "popularity^0.5": {"sampler": "popularity", "alpha": 0.5},
        "in-batch": {"sampler": "in-batch"},
        "mixed": {"sampler": "mixed"},
        # Hard negatives are no draw: they have no expected count.
        "hard": {"sampler": "hard", "log_q": False},
    }

    def row(name: str, **changes: Any) -> Variant:
        return Variant(name, {"objective": dataclasses.replace(drawn, **changes)})

    rows = [Variant("full", {"objective": CrossEntropyConfig()})]
    rows += [row(name, **changes) for name, changes in samplers.items()]
    rows += [
        row(f"{name}, no logQ", **samplers[name], log_q=False)
        for name in ("uniform", "popularity", "in-batch", "mixed")
    ]
    rows += [row("full, others' items", n_negatives=ALL, exclude_seen=True)]
    rows += [
        row(f"{name}, others' items", **samplers[name], exclude_seen=True)
        for name in ("uniform", "popularity", "in-batch", "mixed", "hard")
    ]
    return rows


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Rows that differ in one thing: logQ, or whether the user's own items are among the negatives."""
    endings = (", no logQ", ", others' items")
    return [
        (name, f"{name}{ending}")
        for ending in endings
        for name in names
        if f"{name}{ending}" in names and name in names
    ]


def undominated(accuracy: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point matches in both values and beats in one, by rising ``other``.

    Args:
      accuracy: float64[N], more is better.
      other: float64[N], more is better.
    """
    points = np.stack([accuracy, other], axis=1)
    at_least = np.all(points[None] >= points[:, None], axis=2)
    above = np.any(points[None] > points[:, None], axis=2)
    kept = np.flatnonzero(~np.any(at_least & above, axis=1))
    return kept[np.argsort(other[kept], kind="stable")]


def tables(out: str, result: dict[str, Any]) -> list[str]:
    """Markdown: properties of the lists, and the rows that differ in one thing."""
    header = ["row", "NDCG@10", *(label for label, _, _ in PROPERTIES), "exposure of the head"]
    rows = []
    for row in result["variants"]:
        lists = row["lists"]
        values = [row["metrics"]["NDCG@10"], *(lists[name] for _, name, _ in PROPERTIES)]
        values.append(lists[f"head_exposure@{LISTS}"])
        rows.append([row["name"], *(mean_and_deviation(value["values"]) for value in values)])
    note = (
        f"Lists of {LISTS}. Exposure away from consumption: share of list places that would have to change for each item to "
        "be shown in proportion to its training interactions. Exposure of the head: share of list places of the most "
        "consumed tenth of the items over its share of interactions."
    )
    found = [to_markdown(header, rows), note]
    chosen = pairs([row["name"] for row in result["variants"]])
    if chosen:
        changes = contrasts(out, chosen)
        result["one_thing_changed"] = changes
        found += ["One thing changed, corrected over these rows:", difference_table(changes)]
    return found


def figure(result: dict[str, Any]) -> Figure:
    """Draw NDCG@10 against each property of the lists; the line joins the rows that no other beats in both."""
    drawing = Figure(figsize=(12.5, 4.6), layout="constrained")
    rows = result["variants"]
    accuracy = np.array([row["metrics"]["NDCG@10"]["mean"] for row in rows])
    spread = np.array([row["metrics"]["NDCG@10"]["sd"] or 0.0 for row in rows])
    for axes, (label, name, more) in zip(drawing.subplots(1, len(PROPERTIES)), PROPERTIES, strict=True):
        values = np.array([row["lists"][name]["mean"] for row in rows])
        deviations = np.array([row["lists"][name]["sd"] or 0.0 for row in rows])
        best = undominated(accuracy, values if more else -values)
        axes.plot(values[best], accuracy[best], color=COLOURS[6], zorder=0)
        for number, row in enumerate(rows):
            marker = (
                "*"
                if number == 0
                else "s"
                if "no logQ" in row["name"]
                else "^"
                if "others'" in row["name"]
                else "o"
            )
            axes.errorbar(
                values[number],
                accuracy[number],
                spread[number],
                deviations[number],
                marker,
                color=COLOURS[number % 6],
                markersize=9 if number == 0 else 5,
                elinewidth=0.7,
                label=row["name"],
            )
        axes.set(xlabel=f"{label} ({'more' if more else 'less'} is better)", ylabel="NDCG@10")
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return drawing


def main(options: Options) -> None:
    """Run the study and write its record."""
    options.conduct(
        "sampling",
        variants(options.negatives),
        tables=lambda result: tables(options.out, result),
        figure=figure,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
