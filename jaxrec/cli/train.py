"""`jaxrec train`."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from jaxrec.cli.common import emit
from jaxrec.cli.devices import with_devices
from jaxrec.cli.help import Option, config_options, page
from jaxrec.cli.run_options import (
    JSON,
    NO_COMPILE_CACHE,
    PLUGIN,
    QUIET,
    CommandOption,
    aliases_resolved,
    asks_for_help,
    base_config,
    chosen_config,
    run_request,
)
from jaxrec.config import NAMED_SECTIONS, RunConfig, section_label
from jaxrec.errors import ConfigError
from jaxrec.files import as_word
from jaxrec.presets import PRESETS
from jaxrec.training.distributed import DistributedConfig, is_first, join

#: Options of the command beside those of a run.
_OPTIONS = (
    CommandOption(
        "preset", str, "sasrec", "starting configuration, or a run directory to start from its configuration"
    ),
    CommandOption("workdir", str, "", "run directory; default: runs/ with the dataset and the time"),
    CommandOption("resume", bool, False, "continue the run in --workdir"),
    CommandOption("overwrite", bool, False, "delete a run that is already in --workdir"),
    QUIET,
    NO_COMPILE_CACHE,
    JSON,
)


def train(arguments: list[str]) -> int:
    """Run ``jaxrec train``; return the exit status."""
    arguments = aliases_resolved(arguments)
    base = base_config(arguments, resumable=True)
    if asks_for_help(arguments):
        print(help_page(base, everything="--help-all" in arguments))
        return 0
    request = run_request("train", _OPTIONS, arguments, base, distributed=DistributedConfig())
    return _run(request, base)


def help_page(base: RunConfig, everything: bool) -> str:
    """Return the options that a newcomer needs first, or all of them, with the values of ``base`` as defaults."""
    sections = {
        field.name: config_options(getattr(base, field.name), field.name)
        for field in dataclasses.fields(base)
    }
    by_name = {option.name: option for options in sections.values() for option in options}
    command = {row.name: row for row in (*(option.row() for option in _OPTIONS), PLUGIN)}
    command["--preset"] = command["--preset"]._replace(values="{" + ",".join(PRESETS) + "}")
    selectors = [
        Option("--data", "TEXT", _DATA_HELP, base.data.source),
        Option("--seeds", "INT", "number of models, with seeds 0, 1, ...", str(len(base.training.seeds))),
        Option("--init-from", "TEXT", "finished run whose parameters this one starts from"),
        *(
            Option(
                f"--{path}",
                "{" + ",".join(registry) + "}",
                f"{registry.kind}; its own options follow --{path}.",
                name,
            )
            for path, registry in NAMED_SECTIONS.items()
            if (name := section_label(base, path))
        ),
    ]
    title = "jaxrec train: train on interactions, rank the held-out targets, and write a run directory."
    if everything:
        groups = [("command", [*command.values(), *selectors])]
        groups += [(name, options) for name, options in sections.items() if options]
        groups += [("distributed", config_options(DistributedConfig(), "distributed"))]
        return page(title, groups)
    first = [command["--preset"], *selectors[:2], command["--workdir"], command["--resume"], *selectors[3:]]
    names = (
        "--training.epochs",
        "--optimizer.learning-rate",
        "--batches.max-length",
        "--batches.batch-size",
        "--encoder.width",
    )
    first += [by_name[name] for name in names if name in by_name]
    return page(title, [("the options to begin with", first)], "jaxrec train --help-all lists every option.")


_DATA_HELP = "csv, tsv, parquet, arrow or text file, saved dataset, movietweetings, or a public dataset (jaxrec datasets)"


def _run(options: Any, base: RunConfig) -> int:
    """Train as the parsed options say, and print the results."""
    config = chosen_config(options, base)
    if options.distributed.mode != "off" and not options.workdir:
        raise ConfigError("several processes need one --workdir, on a disk that all of them see")
    directory = Path(options.workdir) if options.workdir else _default_workdir(config.data.source)
    if options.distributed.mode == "off":
        config = with_devices(config, options.resume)
    join(options.distributed)

    from jaxrec.api import fit
    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.data import DataUsage
    from jaxrec.reporting.results import format_metrics

    if not options.no_compile_cache:
        enable_compilation_cache()
    try:
        run = fit(
            None,
            config,
            directory,
            resume=options.resume,
            overwrite=options.overwrite,
            progress=not options.quiet,
        )
    except KeyboardInterrupt as stop:
        stop.workdir = directory  # type: ignore[attr-defined]  # which the arguments need not name
        raise
    if not is_first():
        return 0
    timing = run.results["timing"]
    usage = DataUsage(**run.results["data_usage"])
    message = (
        f"\n{format_metrics(run.results)}\n\n"
        + "".join(f"warning: {warning}\n" for warning in usage.warnings)
        + f"training {timing['training_seconds']:.1f} s ({timing['interactions_per_second']:,.0f} interactions/s), "
        f"compiling {timing['compile_seconds']:.1f} s, evaluating {timing['evaluation_seconds']:.1f} s, "
        f"baselines {timing['baseline_seconds']:.1f} s\n"
        f"everything is in {directory}: open {directory / 'report.html'}\n"
        f"next: jaxrec recommend {as_word(directory)} --history ITEM ITEM -k 10"
    )
    emit({**run.results, "workdir": str(directory)}, message, options.json)
    return 0


def _default_workdir(source: str) -> Path:
    name = Path(source).name.split(".")[0]
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
