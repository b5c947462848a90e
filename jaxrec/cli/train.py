"""`jaxrec train`."""

from __future__ import annotations

import dataclasses
import datetime
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.config import NAMED_SECTIONS, RunConfig, load_config, section_label
from jaxrec.errors import ConfigError
from jaxrec.presets import PRESETS
from jaxrec.registry import load_plugins
from jaxrec.training.distributed import DistributedConfig, is_first, join


def _value_of(option: str, arguments: list[str], default: str) -> str:
    """Return the value of ``--option X`` or ``--option=X`` before the real parsing, which depends on it.

    Raises:
      ConfigError: the option is given twice with different values.
    """
    values = []
    for index, argument in enumerate(arguments):
        if argument == f"--{option}" and index + 1 < len(arguments):
            values.append(arguments[index + 1])
        if argument.startswith(f"--{option}="):
            values.append(argument.split("=", 1)[1])
    if len(set(values)) > 1:
        raise ConfigError(f"--{option} must be given once; got {', '.join(values)}")
    return values[0] if values else default


def _aliases_resolved(arguments: list[str]) -> list[str]:
    """Options under ``--attention`` are those of ``--encoder.attention``."""
    return [re.sub(r"^--attention(?=$|[.=])", "--encoder.attention", argument) for argument in arguments]


def base_config(arguments: list[str]) -> RunConfig:
    """Return the configuration that the options of ``jaxrec train`` start from: preset, saved run, chosen classes.

    A class chosen by name takes its own documented defaults; nothing carries over from the class it replaces.
    """
    workdir = _value_of("workdir", arguments, "")
    if "--resume" in arguments:
        if "--overwrite" in arguments:
            raise ConfigError(
                "--resume and --overwrite exclude each other: continue the run, or delete it and start anew"
            )
        if not workdir:
            raise ConfigError("--resume needs --workdir: the directory of the run to continue")
        config = load_config(Path(workdir) / "config.json")
    else:
        config = PRESETS[_value_of("preset", arguments, "sasrec")]()
    for path, registry in NAMED_SECTIONS.items():
        present = section_label(config, path)
        chosen = _value_of(path, arguments, present)
        if chosen == present:
            continue
        if not present:
            raise ConfigError(
                f"--{path} does not apply to the encoder {section_label(config, 'encoder')!r}, which has no attention: "
                "leave it out, or choose --encoder transformer"
            )
        config = config.updated({path: registry[chosen]()})
    return config


def train(arguments: list[str]) -> int:
    """Run ``jaxrec train``; return the exit status."""
    arguments = _aliases_resolved(arguments)
    load_plugins(tuple(filter(None, _value_of("plugin", arguments, "").split(","))))
    base = base_config(arguments)
    named = {path: section_label(base, path) for path in NAMED_SECTIONS if section_label(base, path)}
    n_seeds = len(base.training.seeds)
    options: list[tuple[str, Any, Any]] = [
        ("config", Annotated[RunConfig, tyro.conf.arg(name="")], base),
        ("preset", _option(str, f"starting configuration: {', '.join(PRESETS)}"), "sasrec"),
        ("source", _option(str, _DATA_HELP, "data"), base.data.source),
        ("workdir", _option(str, "run directory; default: runs/ with the dataset and the time"), ""),
        ("resume", _option(bool, "continue the run in --workdir"), False),
        ("overwrite", _option(bool, "delete a run that is already in --workdir"), False),
        (
            "init_from",
            _option(str, "finished run whose parameters this one starts from", "init-from"),
            base.training.init_from,
        ),
        *(
            (path.replace(".", "_") + "_name", _option(str, ", ".join(NAMED_SECTIONS[path]), path), name)
            for path, name in named.items()
        ),
        ("n_seeds", _option(int, "number of models, with seeds 0, 1, ...", "seeds"), n_seeds),
        ("plugin", _option(str, "modules that register parts of your own, separated by commas"), ""),
        ("distributed", _option(DistributedConfig, "how this process joins others"), DistributedConfig()),
        ("quiet", _option(bool, "no progress bar"), False),
        (
            "no_compile_cache",
            _option(bool, "do not read or write compiled programs in ~/.cache/jaxrec"),
            False,
        ),
        ("json", _option(bool, "print the results as one JSON object on the last line"), False),
    ]
    fields = [(name, kind, dataclasses.field(default=default)) for name, kind, default in options]
    form = dataclasses.make_dataclass("Train", fields, frozen=True)
    form.__doc__ = "Train on interactions, rank the held-out targets, and write a run directory."
    return _run(parse(form, arguments, "train"), base)


_DATA_HELP = "csv, tsv, parquet, arrow or text file, saved dataset, or movietweetings"


def _option(kind: Any, text: str, name: str | None = None) -> Any:
    return Annotated[kind, tyro.conf.arg(help=text, name=name)]


def _run(options: Any, base: RunConfig) -> int:
    """Train as the parsed options say, and print the results."""
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
        config = config.updated({"training.seeds": tuple(range(options.n_seeds))})
    if options.distributed.mode != "off" and not options.workdir:
        raise ConfigError("several processes need one --workdir, on a disk that all of them see")
    directory = Path(options.workdir) if options.workdir else _default_workdir(config.data.source)
    join(options.distributed)

    from jaxrec.api import fit
    from jaxrec.compilation import enable_compilation_cache
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
    message = (
        f"\n{format_metrics(run.results)}\n\n"
        f"training {timing['training_seconds']:.1f} s ({timing['interactions_per_second']:,.0f} interactions/s), "
        f"compiling {timing['compile_seconds']:.1f} s, evaluating {timing['evaluation_seconds']:.1f} s\n"
        f"everything is in {directory}: open {directory / 'report.html'}\n"
        f"next: jaxrec recommend {directory} --history ITEM ITEM -k 10"
    )
    emit({**run.results, "workdir": str(directory)}, message, options.json)
    return 0


def _default_workdir(source: str) -> Path:
    name = Path(source).name.split(".")[0]
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
