"""`jaxrec estimate`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import tyro

from jaxrec.cli.common import emit, parse, value_of
from jaxrec.cli.help import Option, page
from jaxrec.cli.train import aliases_resolved, base_config, first_seeds
from jaxrec.config import NAMED_SECTIONS, RunConfig, section_label
from jaxrec.errors import ConfigError
from jaxrec.registry import load_plugins

#: Options of the command beside those of a run: name, type, default, help.
_OPTIONS: list[tuple[str, type, Any, str]] = [
    ("preset", str, "sasrec", "starting configuration, as in jaxrec train"),
    ("items", int, 0, "items of the catalogue"),
    ("interactions", int, 0, "interactions of the log"),
    ("users", int, 0, "users of the log; default: interactions / batches.max-length"),
    ("timestamps", bool, False, "the log has times"),
    ("memory", float, 0.0, "budget in GiB: search the largest batch that fits; 0 = do not search"),
    ("plugin", str, "", "modules that register parts of your own, separated by commas"),
    ("json", bool, False, "print the result as one JSON object on the last line"),
]


def estimate(arguments: list[str]) -> int:
    """Run ``jaxrec estimate``; return the exit status."""
    arguments = aliases_resolved(arguments)
    load_plugins(tuple(filter(None, value_of("plugin", arguments, "").split(","))))
    base = base_config(arguments)
    if {"-h", "--help"} & set(arguments):
        print(_help_page())
        return 0
    named = {path: section_label(base, path) for path in NAMED_SECTIONS if section_label(base, path)}
    options: list[tuple[str, Any, Any]] = [
        ("config", Annotated[RunConfig, tyro.conf.arg(name="")], base),
        *((name, kind, default) for name, kind, default, _ in _OPTIONS),
        ("source", Annotated[str, tyro.conf.arg(name="data")], ""),
        ("n_seeds", Annotated[int, tyro.conf.arg(name="seeds")], len(base.training.seeds)),
        *(
            (path.replace(".", "_") + "_name", Annotated[str, tyro.conf.arg(name=path)], name)
            for path, name in named.items()
        ),
    ]
    fields = [(name, kind, dataclasses.field(default=default)) for name, kind, default in options]
    form = dataclasses.make_dataclass("Estimate", fields, frozen=True)
    request: Any = parse(form, arguments, "estimate")

    from jaxrec.analysis.estimate import GIB, largest_batch
    from jaxrec.analysis.estimate import estimate as estimate_training
    from jaxrec.analysis.tables import to_markdown

    config = request.config
    if request.n_seeds != len(config.training.seeds):
        config = config.updated({"training.seeds": first_seeds(request.n_seeds)})
    sizes = _sizes(request)
    if not request.memory >= 0:
        raise ConfigError(f"--memory: expected a budget in GiB, got {request.memory}")
    if request.memory:
        result, too_large = largest_batch(config, sizes, int(request.memory * GIB))
        beyond = "" if too_large is None else f"; {too_large:,} rows do not"
        text = f"largest batch found for {request.memory:g} GiB: {result.batch_size:,} rows fit{beyond}\n\n"
    else:
        result, too_large, text = estimate_training(config, sizes), None, ""
    text += f"{to_markdown(*result.rows())}\n{result.sentence()}"
    emit({**result.to_dict(), "too_large_batch": too_large}, text, request.json)
    return 0


def _sizes(options: Any) -> Any:
    from jaxrec.analysis.estimate import DataSizes

    if not options.source:
        if options.items < 1 or options.interactions < 1:
            raise ConfigError(
                f"--items, --interactions: expected the sizes of the log, or --data, got {options.items} and "
                f"{options.interactions}"
            )
        users = options.users or max(1, options.interactions // options.config.batches.max_length)
        return DataSizes(options.items, options.interactions, users, options.timestamps)

    import numpy as np

    from jaxrec.data import load_dataset

    dataset = load_dataset(options.source, options.config.data)
    sizes = DataSizes(
        dataset.n_items, dataset.n_interactions, dataset.n_users, dataset.timestamps is not None
    )
    if dataset.attributes is None:
        return sizes
    most = int(np.diff(dataset.attributes.offsets).max(initial=0))
    return dataclasses.replace(sizes, attributes=dataset.attributes.n_attributes, attributes_per_item=most)


def _help_page() -> str:
    rows = [
        Option(f"--{name}", {bool: "", str: "TEXT", int: "INT"}.get(kind, "FLOAT"), text, str(default or ""))
        for name, kind, default, text in _OPTIONS
    ]
    source = Option("--data", "TEXT", "dataset to take the sizes from, in place of the options for them")
    seeds = Option("--seeds", "INT", "number of models", "1")
    return "\n".join(
        [
            "usage: jaxrec estimate --items INT --interactions INT [OPTIONS]",
            page(
                "jaxrec estimate: memory and time of training from sizes alone, and the largest batch that fits a budget. "
                "Takes every option of a run as well (jaxrec train --help-all).",
                [("command", [source, *rows, seeds])],
            ),
        ]
    )
