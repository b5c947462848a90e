"""`jaxrec through-time`."""

from __future__ import annotations

from typing import Any

from jaxrec.cli.common import emit, value_of
from jaxrec.cli.help import Option, page
from jaxrec.cli.train import aliases_resolved, base_config, chosen_config, run_request
from jaxrec.errors import ConfigError
from jaxrec.registry import load_plugins

#: Options of the command beside those of a run: name, type, default, values in the help, help.
_OPTIONS: list[tuple[str, Any, Any, str, str]] = [
    ("preset", str, "sasrec", "TEXT", "starting configuration, or a run directory to take it from"),
    (
        "cuts",
        tuple[float, ...],
        (0.7, 0.8, 0.9),
        "NUMBER ...",
        "where test periods begin, as quantiles of the times of all interactions; each ends where the next begins",
    ),
    ("out", str, "", "TEXT", "directory of the runs; the same command goes on with what an earlier one left"),
    ("plugin", str, "", "TEXT", "modules that register parts of your own, separated by commas"),
    ("quiet", bool, False, "", "no progress bar"),
    ("no_compile_cache", bool, False, "", "neither read nor write compiled programs in ~/.cache/jaxrec"),
    ("json", bool, False, "", "print the result as one JSON object on the last line"),
]


def through_time(arguments: list[str]) -> int:
    """Run ``jaxrec through-time``; return the exit status."""
    arguments = aliases_resolved(arguments)
    load_plugins(tuple(filter(None, value_of("plugin", arguments, "").split(","))))
    if {"-h", "--help"} & set(arguments):
        print(_help_page())
        return 0
    base = base_config(arguments)
    own = [(name, kind, default) for name, kind, default, _, _ in _OPTIONS]
    request = run_request("through-time", own, arguments, base)
    if not request.out:
        raise ConfigError("--out must name the directory of the runs, got none: give --out runs/cuts")
    config = chosen_config(request, base)

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.through_time import fit_through_time

    if not request.no_compile_cache:
        enable_compilation_cache()
    found = fit_through_time(None, config, request.out, request.cuts, progress=not request.quiet)
    text = (
        f"{found.to_markdown()}\neverything is in {found.directory}: cuts.md, cuts.json, a run for each cut"
    )
    emit(found.to_dict(), text, request.json)
    return 0


def _help_page() -> str:
    rows = [
        Option(
            f"--{name.replace('_', '-')}",
            values,
            text,
            " ".join(map(str, default)) if isinstance(default, tuple) else str(default or ""),
        )
        for name, _, default, values, text in _OPTIONS
    ]
    source = Option("--data", "TEXT", "as in jaxrec train", "movietweetings")
    return "\n".join(
        [
            "usage: jaxrec through-time --out DIRECTORY [OPTIONS]",
            page(
                "jaxrec through-time: train and test one configuration at several cuts in time, each time on what came "
                "before. Takes every option of a run as well (jaxrec train --help-all), such as --split.target.",
                [("command", [source, *rows])],
            ),
        ]
    )
