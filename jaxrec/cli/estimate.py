"""`jaxrec estimate`."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrec.cli.common import emit
from jaxrec.cli.help import Option, page
from jaxrec.cli.run_options import (
    JSON,
    PLUGIN,
    CommandOption,
    aliases_resolved,
    asks_for_help,
    base_config,
    run_request,
    with_seeds,
)
from jaxrec.errors import ConfigError

#: Options that give the sizes of a log.
_SIZES = (
    CommandOption("items", int, 0, "items of the catalogue"),
    CommandOption("interactions", int, 0, "interactions of the log"),
    CommandOption("users", int, 0, "users of the log; default: interactions / batches.max-length"),
    CommandOption("timestamps", bool, False, "the log has times, as it must where the model reads them"),
    CommandOption("attributes", int, 0, "attributes of items, which S3-Rec's pretraining reads; 0 = none"),
    CommandOption("attributes_per_item", int, 5, "most attributes of one item"),
)
#: Options of the command beside those of a run.
_OPTIONS = (
    CommandOption("preset", str, "sasrec", "starting configuration, as in jaxrec train"),
    *_SIZES,
    CommandOption(
        "memory",
        float,
        0.0,
        "budget in GiB of the arrays: search the largest batch that fits; 0 = do not search",
    ),
    JSON,
)


def estimate(arguments: list[str]) -> int:
    """Run ``jaxrec estimate``; return the exit status."""
    arguments = aliases_resolved(arguments)
    base = base_config(arguments)
    if asks_for_help(arguments):
        print(_help_page())
        return 0
    request = run_request("estimate", _OPTIONS, arguments, base, source="")

    from jaxrec.analysis.estimate import GIB, largest_batch
    from jaxrec.analysis.estimate import estimate as estimate_training
    from jaxrec.analysis.tables import to_markdown

    config = with_seeds(request.config, base, request.n_seeds)
    sizes = _sizes(request)
    if not request.memory >= 0:
        raise ConfigError(f"--memory: expected a budget in GiB, got {request.memory}")
    if request.memory:
        result, too_large = largest_batch(config, sizes, int(request.memory * GIB))
        beyond = "" if too_large is None else f"; {too_large:,} rows do not"
        text = f"largest batch found for {request.memory:g} GiB: {result.batch_size:,} rows fit{beyond}\n\n"
    else:
        result, too_large, text = estimate_training(config, sizes), None, ""
    text += f"{to_markdown(*result.rows())}\n{result.left_out()}\n\n{result.sentence()}"
    emit({**result.to_dict(), "too_large_batch": too_large}, text, request.json)
    return 0


def _sizes(options: Any) -> Any:
    from jaxrec.analysis.estimate import DataSizes

    given = [option.flag for option in _SIZES if getattr(options, option.name) != option.default]
    if options.source and given:
        raise ConfigError(
            f"{', '.join(given)}: expected no sizes beside --data {options.source}, which has its own: leave them out"
        )
    if "--attributes-per-item" in given and not options.attributes:
        raise ConfigError(
            "--attributes-per-item: expected --attributes beside it, the number that all items have together"
        )
    if not options.source:
        if options.items < 1 or options.interactions < 1:
            raise ConfigError(
                f"--items, --interactions: expected the sizes of the log, or --data, got {options.items} and "
                f"{options.interactions}"
            )
        users = options.users or max(1, options.interactions // options.config.batches.max_length)
        timed = options.timestamps or options.config.encoder.needs_timestamps
        own = options.attributes_per_item if options.attributes else 0
        return DataSizes(options.items, options.interactions, users, timed, options.attributes, own)

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
    rows = [*(option.row() for option in _OPTIONS), PLUGIN]
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
