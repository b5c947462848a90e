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

from experiments.record import RESULTS
from experiments.variants import StudyOptions, Variant, apply, recorder, study
from jaxrec.analysis.compare import saved_ranks
from jaxrec.analysis.figures import COLOURS, save_figure
from jaxrec.analysis.significance import holm, minimal_detectable_difference, paired_bootstrap
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.config import RunConfig
from jaxrec.data import load_dataset
from jaxrec.data.dataset import SequenceDataset
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.presets import sasrec
from jaxrec.runs import Run
from jaxrec.training.setup import data_spec

METHODS = ("hashed", "product", "residual")
METRIC = "NDCG@10"


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
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


def differences(runs: Mapping[str, Path], options: Options, dataset: SequenceDataset) -> list[dict[str, Any]]:
    """Paired differences in `METRIC` between the runs that there are, corrected over all of them."""
    names = list(runs)
    values = {
        name: saved_ranks(name, Run(path, dataset).ranks("test")).values(METRIC)
        for name, path in runs.items()
    }
    chosen = [(a, b) for a, b in pairs(options, names[0]) if a in values and b in values]
    if not chosen:
        return []
    effects = [paired_bootstrap(values[a], values[b]) for a, b in chosen]
    corrected = holm([effect.p_value for effect in effects])
    return [
        {
            "a": a,
            "b": b,
            **effect._asdict(),
            "p_holm": float(p),
            "detectable": minimal_detectable_difference(values[a], values[b]),
        }
        for (a, b), effect, p in zip(chosen, effects, corrected, strict=True)
    ]


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


def figure(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Quality against trained parameters, a line per kind of items."""
    drawn = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = drawn.add_subplot()
    for kind, colour in zip(("full", *METHODS), COLOURS, strict=False):
        points = sorted(
            (
                row["trained"],
                np.mean(row["values"]),
                np.std(row["values"], ddof=min(1, len(row["values"]) - 1)),
            )
            for name, row in rows.items()
            if name.split()[0] == kind
        )
        if points:
            x, y, spread = zip(*points, strict=True)
            label = "a row per item" if kind == "full" else f"{kind} codes"
            axes.errorbar(x, y, spread, marker="o", capsize=3, color=colour, label=label)
    axes.set(xscale="log", xlabel="trained parameters", ylabel=f"{METRIC} (mean and deviation over seeds)")
    axes.legend(frameon=False)
    return drawn


def main(options: Options) -> None:
    """Train, compare, and write tables and figure."""
    dataset = load_dataset(options.data)
    base = sasrec().updated(
        {
            "data.source": options.data,
            "training.seeds": tuple(range(options.seeds)),
            "training.epochs": options.epochs,
            "training.patience": options.patience,
            "training.checkpoint_seconds": 60.0,
        }
    )
    planned = variants(options, base, dataset)
    unknown = set(options.only) - {variant.name for variant in planned}
    if unknown:
        raise SystemExit(
            f"only: expected some of {', '.join(variant.name for variant in planned)}; got {sorted(unknown)}"
        )
    chosen = [variant for variant in planned if not options.only or variant.name in options.only]
    out = Path(options.out)
    record = recorder(
        "tokenisation", "Items composed of codes", dataset, "experiments.revisited.tokenisation"
    )

    def write(result: dict[str, Any]) -> None:
        runs = {row["name"]: out / row["name"].replace(" ", "-") for row in result["variants"]}
        measured = {
            row["name"]: {
                **sizes(Run(runs[row["name"]], dataset)),
                "values": row["metrics"][METRIC]["values"],
            }
            for row in result["variants"]
        }
        tests = [] if result["unfinished"] else differences(runs, options, dataset)
        record(
            {**result, "items": measured, "differences": tests, "markdown": tables(result, measured, tests)}
        )
        save_figure(figure(measured), RESULTS / f"tokenisation_{dataset.name.lower().replace(' ', '-')}.png")

    study(base, chosen, dataset, out, record=write)


def tables(
    result: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]], tests: list[dict[str, Any]]
) -> str:
    """Tables of qualities and sizes, and of differences."""
    header = [
        "items, width",
        "HR@10",
        METRIC,
        "trained parameters",
        "K",
        "KiB of the items",
        "items that share all codes",
    ]
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
        for row, size in ((row, measured[row["name"]]) for row in result["variants"])
    ]
    parts = [
        to_markdown(header, rows),
        "Trained parameters are those of the whole model without the codes; the last table counts the codes as well.",
    ]
    if tests:
        columns = ["difference", METRIC, "95 % interval", "p", f"p (Holm, {len(tests)})", "detectable"]
        lines = [
            [
                f"{each['b']} - {each['a']}",
                f"{each['difference']:+.4f}",
                f"{each['low']:+.4f} to {each['high']:+.4f}",
                f"{each['p_value']:.4f}",
                f"{each['p_holm']:.4f}",
                f"{each['detectable']:.4f}",
            ]
            for each in tests
        ]
        parts.append(to_markdown(columns, lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Options))
