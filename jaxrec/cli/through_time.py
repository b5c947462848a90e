"""`jaxrec through-time`."""

from __future__ import annotations

import signal

from jaxrec.cli.common import emit
from jaxrec.cli.devices import with_devices
from jaxrec.cli.help import Option, page
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
from jaxrec.errors import ConfigError, Interrupted

#: Options of the command beside those of a run.
_OPTIONS = (
    CommandOption("preset", str, "sasrec", "starting configuration, or a run directory to take it from"),
    CommandOption(
        "cuts",
        tuple[float, ...],
        (0.7, 0.8, 0.9),
        "where test periods begin, as quantiles of the times of all interactions; each ends where the next begins",
    ),
    CommandOption(
        "out", str, "", "directory of the runs; the same command goes on with what an earlier one left"
    ),
    QUIET,
    NO_COMPILE_CACHE,
    JSON,
)


def through_time(arguments: list[str]) -> int:
    """Run ``jaxrec through-time``; return the exit status."""
    arguments = aliases_resolved(arguments)
    if asks_for_help(arguments):
        print(_help_page())
        return 0
    base = base_config(arguments)
    request = run_request("through-time", _OPTIONS, arguments, base)
    if not request.out:
        raise ConfigError("--out must name the directory of the runs, got none: give --out runs/cuts")
    config = with_devices(chosen_config(request, base))

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.through_time import fit_through_time

    if not request.no_compile_cache:
        enable_compilation_cache()
    try:
        found = fit_through_time(None, config, request.out, request.cuts, progress=not request.quiet)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        raise Interrupted(
            f"stopped by {number.name}; finished cuts are saved, continue with the same command", number
        ) from None
    text = (
        f"{found.to_markdown()}\neverything is in {found.directory}: cuts.md, cuts.json, a run for each cut"
    )
    emit(found.to_dict(), text, request.json)
    return 0


def _help_page() -> str:
    rows = [*(option.row() for option in _OPTIONS), PLUGIN]
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
