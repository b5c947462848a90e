"""`jaxrec train`."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrec.cli.common import emit, parse, value_of
from jaxrec.cli.devices import with_devices
from jaxrec.cli.help import Option, config_options, page
from jaxrec.config import NAMED_SECTIONS, RunConfig, load_config, section_label
from jaxrec.errors import ConfigError
from jaxrec.presets import PRESETS, named_config
from jaxrec.registry import load_plugins
from jaxrec.training.distributed import DistributedConfig, is_first, join

#: Number of models of one run beyond which a number must be a mistake.
MOST_SEEDS = 10_000


def aliases_resolved(arguments: list[str]) -> list[str]:
    """Options under ``--attention`` are those of ``--encoder.attention``."""
    return [re.sub(r"^--attention(?=$|[.=])", "--encoder.attention", argument) for argument in arguments]


def run_request(name: str, own: Iterable[tuple[str, Any, Any]], arguments: list[str], base: RunConfig) -> Any:
    """Parse the arguments of a command that configures a run: its options, their short forms, the named parts.

    Args:
      name: of the command.
      own: name, type and default of the options beside those of a run.
      arguments: of the command line.
      base: configuration that they change, as `base_config` returns it; `chosen_config` applies them.

    Returns:
      A dataclass with an attribute for each.
    """
    named = {path: section_label(base, path) for path in NAMED_SECTIONS if section_label(base, path)}
    options: list[tuple[str, Any, Any]] = [
        ("config", Annotated[RunConfig, tyro.conf.arg(name="")], base),
        ("source", Annotated[str, tyro.conf.arg(name="data")], base.data.source),
        ("init_from", str, base.training.init_from),
        ("n_seeds", Annotated[int, tyro.conf.arg(name="seeds")], len(base.training.seeds)),
        *(
            (path.replace(".", "_") + "_name", Annotated[str, tyro.conf.arg(name=path)], label)
            for path, label in named.items()
        ),
        *own,
    ]
    fields = [(option, kind, dataclasses.field(default=default)) for option, kind, default in options]
    title = name.title().replace("-", "")
    return parse(dataclasses.make_dataclass(title, fields, frozen=True), arguments, name)


def base_config(arguments: list[str]) -> RunConfig:
    """Return the configuration that the options of ``jaxrec train`` start from: preset, saved run, chosen classes.

    A class chosen by name takes its own documented defaults; nothing carries over from the class it replaces.
    """
    workdir = value_of("workdir", arguments, "")
    if "--resume" in arguments:
        if "--overwrite" in arguments:
            raise ConfigError(
                "--resume and --overwrite exclude each other: continue the run, or delete it and start anew"
            )
        if not workdir:
            raise ConfigError("--resume needs --workdir: the directory of the run to continue")
        config = load_config(Path(workdir) / "config.json")
    else:
        config = named_config(value_of("preset", arguments, "sasrec"))
    for path, registry in NAMED_SECTIONS.items():
        present = section_label(config, path)
        label = value_of(path, arguments, present)
        if label == present:
            continue
        if not present:
            raise ConfigError(
                f"--{path} does not apply to the encoder {section_label(config, 'encoder')!r}, which has no attention: "
                "leave it out, or choose --encoder transformer"
            )
        config = config.updated({path: registry[label]()})
    return config


def chosen_config(options: Any, base: RunConfig) -> RunConfig:
    """Return the configuration of parsed options with their short forms, ``--data``, ``--init-from`` and ``--seeds``.

    Args:
      options: from `run_request`.
      base: the configuration that they started from.

    Raises:
      ConfigError: ``--seeds`` is out of range, or the seeds are given twice.
    """
    config: RunConfig = options.config
    if options.source != base.data.source:
        config = config.updated({"data.source": options.source})
    if options.init_from != base.training.init_from:
        config = config.updated({"training.init_from": options.init_from})
    if options.n_seeds != len(base.training.seeds):
        if config.training.seeds != base.training.seeds:
            raise ConfigError(
                f"--seeds {options.n_seeds} and --training.seeds {' '.join(map(str, config.training.seeds))} exclude "
                "each other: give the number of models, or their seeds"
            )
        config = config.updated({"training.seeds": first_seeds(options.n_seeds)})
    return config


def first_seeds(count: int) -> tuple[int, ...]:
    """Seeds of ``--seeds count``: 0, 1, ..."""
    if not 1 <= count <= MOST_SEEDS:
        raise ConfigError(f"--seeds must be from 1 to {MOST_SEEDS:,} models, got {count:,}")
    return tuple(range(count))


def train(arguments: list[str]) -> int:
    """Run ``jaxrec train``; return the exit status."""
    arguments = aliases_resolved(arguments)
    load_plugins(tuple(filter(None, value_of("plugin", arguments, "").split(","))))
    base = base_config(arguments)
    if {"-h", "--help", "--help-all"} & set(arguments):
        print(help_page(base, everything="--help-all" in arguments))
        return 0
    own: list[tuple[str, Any, Any]] = [
        *((name.replace("-", "_"), kind, default) for name, kind, default, _ in _COMMAND_OPTIONS),
        ("distributed", DistributedConfig, DistributedConfig()),
    ]
    return _run(run_request("train", own, arguments, base), base)


#: Options of the command itself: name, type, default, help.
_COMMAND_OPTIONS: list[tuple[str, type, Any, str]] = [
    ("preset", str, "sasrec", "starting configuration, or a run directory to start from its configuration"),
    ("workdir", str, "", "run directory; default: runs/ with the dataset and the time"),
    ("resume", bool, False, "continue the run in --workdir"),
    ("overwrite", bool, False, "delete a run that is already in --workdir"),
    ("plugin", str, "", "modules that register parts of your own, separated by commas"),
    ("quiet", bool, False, "no progress bar"),
    ("no-compile-cache", bool, False, "neither read nor write compiled programs in ~/.cache/jaxrec"),
    ("json", bool, False, "print the results as one JSON object on the last line"),
]


def help_page(base: RunConfig, everything: bool) -> str:
    """Return the options that a newcomer needs first, or all of them, with the values of ``base`` as defaults."""
    sections = {
        field.name: config_options(getattr(base, field.name), field.name)
        for field in dataclasses.fields(base)
    }
    by_name = {option.name: option for options in sections.values() for option in options}
    command = {
        f"--{name}": Option(f"--{name}", "" if kind is bool else "TEXT", text, default or "")
        for name, kind, default, text in _COMMAND_OPTIONS
    }
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


_DATA_HELP = "csv, tsv, parquet, arrow or text file, saved dataset, or movietweetings"


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
    run = fit(
        None,
        config,
        directory,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if not is_first():
        return 0
    timing = run.results["timing"]
    usage = DataUsage(**run.results["data_usage"])
    message = (
        f"\n{format_metrics(run.results)}\n\n"
        + "".join(f"warning: {warning}\n" for warning in usage.warnings)
        + f"training {timing['training_seconds']:.1f} s ({timing['interactions_per_second']:,.0f} interactions/s), "
        f"compiling {timing['compile_seconds']:.1f} s, evaluating {timing['evaluation_seconds']:.1f} s\n"
        f"everything is in {directory}: open {directory / 'report.html'}\n"
        f"next: jaxrec recommend {directory} --history ITEM ITEM -k 10"
    )
    emit({**run.results, "workdir": str(directory)}, message, options.json)
    return 0


def _default_workdir(source: str) -> Path:
    name = Path(source).name.split(".")[0]
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
