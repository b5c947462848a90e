"""Items as combinations of a few basic elements (E3): quality of composed item vectors at equal numbers of parameters.

    python -m experiments.revisited.tokenisation

"Reverse tokenisation" breaks items into codes out of small tables, as words are broken into tokens. At each size an encoder
with a row per item is compared with encoders of twice its width whose items are composed of hashed (random), product or
residual codes; K, the values of each code, is chosen so that all have as nearly as possible the same number of trained
parameters. The preset with its full table is the reference.

Writes ``experiments/results/tokenisation_<dataset>.{md,json,png}`` after each row; until all are done, it says which are
missing. Every difference is paired over users and seeds, and Holm's correction is over all of them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.differences import difference_table
from experiments.variants import SharedSettings, Variant, apply, contrasts, recorder, study
from jaxrec.analysis.figures import COLOURS
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.runs import Run
from jaxrec.training.setup import data_spec

METHODS = ("hashed", "product", "residual")
METRIC = "NDCG@10"


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare composed items with a row per item.

    Attributes:
      widths: of the encoders with a row per item that composed items, in encoders twice as wide, are compared with.
      codes: codes of an item.
    """

    widths: tuple[int, ...] = (32, 16)
    codes: int = 4
    out: str = "runs/tokenisation"


def trained_parameters(config: RunConfig, dataset: SequenceDataset) -> int:
    """Parameters of one model, without the codes, which are not trained."""
    encoder = config.encoder.build(data_spec(config, dataset))
    codes = config.encoder.item_codes
    return encoder.parameter_count() - (dataset.n_items + 1) * codes.count * int(codes.on)


def composed(
    base: RunConfig, dataset: SequenceDataset, method: str, width: int, count: int, budget: int
) -> ItemCodesConfig:
    """Codes for an encoder of ``width`` with about ``budget`` trained parameters.

    Raises:
      SystemExit: the encoder alone has more.
      ConfigError: ``count`` does not divide ``width`` for product codes.
    """
    smallest = ItemCodesConfig(method, count, 2)  # type: ignore[arg-type]
    smallest.check(width, dataset.n_items)
    config = apply(base, {"encoder": {"width": width, "item_codes": smallest}})
    rest = trained_parameters(config, dataset) - smallest.table_count(width)
    size = round((budget - rest) / (smallest.table_count(width) / 2))
    if size < 2:
        raise SystemExit(
            f"widths: an encoder of width {width} has {rest:,} parameters beside its items, of {budget:,}; leave out the "
            f"width {width // 2}"
        )
    return dataclasses.replace(smallest, size=min(size, dataset.n_items))


def variants(options: Options, base: RunConfig, dataset: SequenceDataset) -> list[Variant]:
    """The preset first, then for each width a row per item and every method at as many parameters."""
    rows = [Variant(f"full {base.encoder.width}", {})]
    for width in options.widths:
        narrow = {"width": width}
        budget = trained_parameters(apply(base, {"encoder": narrow}), dataset)
        rows.append(Variant(f"full {width}", {"encoder": narrow}))
        for method in METHODS:
            codes = composed(base, dataset, method, 2 * width, options.codes, budget)
            wide = {"encoder": {"width": 2 * width, "item_codes": codes}}
            rows.append(Variant(f"{method} {2 * width}", wide))
    return rows


def pairs(options: Options, first: str) -> list[tuple[str, str]]:
    """Comparisons of the study: with a row per item at equal width and at equal parameters; learned with random codes."""
    full = [first, *(f"full {width}" for width in options.widths)]
    out = []
    for width in options.widths:
        group = [f"{method} {2 * width}" for method in METHODS]
        same_width = f"full {2 * width}" if f"full {2 * width}" in full else first
        out += [(same_width, name) for name in (f"full {width}", *group)]
        out += [(f"full {width}", name) for name in group]
        out += [(group[0], name) for name in group[1:]]
    return out


def sizes(run: Run) -> dict[str, Any]:
    """Trained parameters, bytes of the items (float32 rows, codes of 16 bits), and share of items with another's codes."""
    codes, width = run.config.encoder.item_codes, run.config.encoder.width
    rows = run.dataset.n_items + 1
    out: dict[str, Any] = {"trained": trained_parameters(run.config, run.dataset), "size": 0, "shared": 0.0}
    if not codes.on:
        return {**out, "item_bytes": 4 * rows * width}
    shared = []
    for seed in run.seeds:
        own = np.asarray(run.params(seed)["items"]["codes"])[1:rows]
        _, place, counts = np.unique(own, axis=0, return_inverse=True, return_counts=True)
        shared.append(float((counts[place] > 1).mean()))
    item_bytes = 4 * codes.table_count(width) + 2 * rows * codes.count
    return {**out, "size": codes.size, "shared": float(np.mean(shared)), "item_bytes": item_bytes}


def figure(result: Mapping[str, Any]) -> Figure:
    """Quality against trained parameters, a line per kind of items."""
    drawn = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = drawn.add_subplot()
    for kind, colour in zip(("full", *METHODS), COLOURS, strict=False):
        points = []
        for row in result["variants"]:
            if row["name"].split()[0] == kind:
                values = row["metrics"][METRIC]["values"]
                spread = np.std(values, ddof=min(1, len(values) - 1))
                points.append((result["items"][row["name"]]["trained"], np.mean(values), spread))
        if points:
            x, y, error = zip(*sorted(points), strict=True)
            label = "a row per item" if kind == "full" else f"{kind} codes"
            axes.errorbar(x, y, error, marker="o", capsize=3, color=colour, label=label)
    axes.set(xscale="log", xlabel="trained parameters", ylabel=f"{METRIC} (mean and deviation over seeds)")
    axes.legend(frameon=False)
    return drawn


def tables(result: Mapping[str, Any]) -> list[str]:
    """Tables of qualities and sizes, and of differences."""
    header = ["items, width", "HR@10", METRIC, "trained parameters", "K", "KiB of the items"]
    rows = [
        [
            row["name"],
            mean_and_deviation(row["metrics"]["HR@10"]["values"]),
            mean_and_deviation(row["metrics"][METRIC]["values"]),
            f"{size['trained']:,}",
            size["size"] or "-",
            f"{size['item_bytes'] / 1024:,.0f}",
            f"{size['shared']:.1%}" if size["size"] else "-",
        ]
        for row, size in ((row, result["items"][row["name"]]) for row in result["variants"])
    ]
    parts = [
        to_markdown([*header, "items that share all codes"], rows),
        "Trained parameters are those of the whole model without the codes; the last table counts the codes as well.",
    ]
    if result["contrasts"]:
        count = len(result["contrasts"])
        parts += [
            difference_table(result["contrasts"]),
            f"Paired over users and seeds; p Holm corrects for all {count} comparisons of the study.",
        ]
    return parts


def main(options: Options) -> None:
    """Train, compare, and write tables and figure."""
    dataset = options.load()
    base = options.base()
    planned = variants(options, base, dataset)
    module = "experiments.revisited.tokenisation"
    write = recorder("tokenisation", "Items composed of codes", dataset, module, figure)
    out = Path(options.out)

    def record(result: dict[str, Any]) -> None:
        names = [row["name"] for row in result["variants"]]
        finished = [pair for pair in pairs(options, planned[0].name) if set(pair) <= set(names)]
        result = {
            **result,
            "plan": options.plan(planned),
            "items": {name: sizes(Run(out / name.replace(" ", "-"), dataset)) for name in names},
            # One family of comparisons, in place of those with the first variant alone.
            "differences": [],
            "contrasts": [] if result["unfinished"] or not finished else contrasts(out, finished, (METRIC,)),
        }
        write({**result, "markdown": "\n\n".join(tables(result))})

    study(base, options.chosen(planned), dataset, out, record=record)


if __name__ == "__main__":
    main(tyro.cli(Options))
