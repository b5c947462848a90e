"""`jaxrec tune`."""

from __future__ import annotations

import signal
from typing import Any

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
from jaxrec.config import RunConfig
from jaxrec.errors import ConfigError, Interrupted

#: Options of the command beside those of a run.
_OPTIONS = (
    CommandOption(
        "preset", str, "sasrec", "configuration of the first trial, or a run directory to take it from"
    ),
    CommandOption(
        "out", str, "", "directory of the study; the same command goes on with one that was interrupted"
    ),
    CommandOption(
        "budget", int, 40, "trials of the whole study, those of earlier calls and of other processes included"
    ),
    CommandOption(
        "pruner",
        str,
        "median",
        "median: stop trials that lag behind at a validation; none: train all to their end",
    ),
    CommandOption(
        "seed", int, 0, "of the draws; --training.seeds and --seeds are those of every trial's models"
    ),
    CommandOption(
        "oracle",
        bool,
        False,
        "rank the test targets of every complete trial too, to show what choosing by them would give",
    ),
    CommandOption("print_space", bool, False, "print the space as a file for --space, and end"),
    QUIET._replace(text="no line per trial"),
    NO_COMPILE_CACHE,
    JSON,
)


def tune(arguments: list[str]) -> int:
    """Run ``jaxrec tune``; return the exit status."""
    file, changes, arguments = space_options(aliases_resolved(arguments))
    if asks_for_help(arguments):
        print(_help_page())
        return 0
    base = base_config(arguments)
    request = run_request("tune", _OPTIONS, arguments, base)
    return _run(request, chosen_config(request, base), file, changes)


def _run(request: Any, config: RunConfig, file: str, changes: dict[str, str]) -> int:
    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.tuning.api import tune as tune_study
    from jaxrec.tuning.space import search_space, to_toml

    space = search_space(config, file or None, changes)
    if request.print_space:
        emit({"space": to_toml(space)}, to_toml(space).rstrip(), request.json)
        return 0
    config = with_devices(config)
    if not request.no_compile_cache:
        enable_compilation_cache()
    try:
        result = tune_study(
            None,
            config,
            request.out,
            budget=request.budget,
            space=space,
            pruner=request.pruner,
            seed=request.seed,
            oracle=request.oracle,
            progress=not request.quiet,
        )
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        raise Interrupted(
            f"stopped by {number.name}; finished trials are saved, continue with the same command", number
        ) from None
    text = result.to_markdown()
    if result.test is not None:
        text += f"\neverything is in {result.directory}: table.md, figure.png, results.json, trials/\n"
        text += f"next: open {result.workdir / 'report.html'}"
    emit(result.to_dict(), text, request.json)
    return 0


def space_options(arguments: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """Return the file after ``--space``, {option: dimension} of every ``--space.OPTION``, and the other arguments.

    Raises:
      ConfigError: one of them has no value.
    """
    file, changes, others = "", {}, []
    words = iter(arguments)
    for word in words:
        name, sign, value = word.partition("=")
        if name != "--space" and not name.startswith("--space."):
            others.append(word)
            continue
        value = value if sign else next(words, "")
        if not value or value.startswith("--"):
            dimension = "LOW:HIGH, log:LOW:HIGH, choices separated by commas, or fixed"
            expected = "a TOML or JSON file" if name == "--space" else dimension
            raise ConfigError(f"{name} needs a value: expected {expected}; got {value or 'none'}")
        if name == "--space":
            file = value
        else:
            changes[name.removeprefix("--space.")] = value
    return file, changes, others


def _help_page() -> str:
    rows = [*(option.row() for option in _OPTIONS), PLUGIN]
    space = [
        Option("--space", "FILE", "TOML or JSON file of options to search, in place of the declared ones"),
        Option(
            "--space.OPTION",
            "LOW:HIGH | log:LOW:HIGH | A,B,C | fixed",
            "search an option as well, or otherwise, or not, as in --space.optimizer.learning-rate log:1e-4:1e-2",
        ),
    ]
    source = Option("--data", "TEXT", "as in jaxrec train", "movietweetings")
    return "\n".join(
        [
            "usage: jaxrec tune --out DIRECTORY [OPTIONS]",
            page(
                "jaxrec tune: search options by the validation metric, the preset first, and rank the test targets of the "
                "best trial. Takes every option of a run as well (jaxrec train --help-all).",
                [("command", [source, *rows]), ("space", space)],
            ),
        ]
    )
