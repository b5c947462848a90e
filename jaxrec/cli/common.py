"""Parsing and printing, common to all commands."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxrec.errors import ConfigError, DataError


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result for people, or for programs: with ``--json`` the last line of standard output is one JSON object."""
    print(json.dumps(_nullable(result), allow_nan=False) if as_json else text, flush=True)


def _nullable(value: Any) -> Any:
    """Replace NaN, which JSON lacks and which marks what is undefined (a mean over no case), by None."""
    if isinstance(value, dict):
        return {key: _nullable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nullable(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def read_ids(file: str) -> list[str]:
    """Item ids of a text file, one per line, without the spaces around them; empty lines are ignored.

    Raises:
      DataError: it is no text file.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} must be a UTF-8 text file of item ids, one per line: {error}") from None
    # Not splitlines, which breaks lines at characters that an id may have, such as U+2028.
    return [line.strip() for line in text.split("\n") if line.strip()]


def value_of(option: str, arguments: list[str], default: str) -> str:
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


def parse(form: Any, arguments: list[str], command: str, default: Any = None) -> Any:
    """Parse the options of a command into a dataclass.

    Args:
      form: dataclass whose fields are the options.
      arguments: from the command line, after the command's name.
      command: name of the command, for messages.
      default: instance of ``form`` whose values are the defaults, or None.

    Raises:
      ConfigError: an option has a value that its configuration refuses.
    """
    kwargs = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                form,
                args=arguments,
                prog=f"jaxrec {command}",
                config=(tyro.conf.AvoidSubcommands,),
                **kwargs,
            )
    except SystemExit:
        text = errors.getvalue()
        # A configuration's own message: the parser frames and wraps it.
        refused = re.search(r"Error parsing ([\w.-]+): (.*?)\n\W*(?:[-\u2500]{3})", text, re.DOTALL)
        if refused and "Value error" in text:
            option, message = refused.group(1), " ".join(refused.group(2).replace("\u2502", " ").split())
            raise ConfigError(f"{option}: {message}" if option.startswith("--") else message) from None
        if "Missing value for argument" in text and (unknown := _unknown_option(form, arguments)):
            # The parser takes what follows such an option for its values, and then lacks the command's own argument.
            text = f"jaxrec: unknown option {unknown}: `jaxrec {command} --help` lists the options\n"
        sys.stderr.write(text)
        raise


def _unknown_option(form: Any, arguments: list[str]) -> str:
    """The first option among ``arguments`` that a command does not have, with the closest that it has, or nothing."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        tyro.cli(form, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
    known = set(re.findall(r"--[a-z][\w.-]*", page.getvalue()))
    given = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    unknown = next((name for name in given if name.replace("_", "-") not in known), "")
    by_end = {name.rpartition(".")[2].removeprefix("--"): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(unknown.removeprefix("--"), by_end, 1)
    return f"{unknown} (did you mean {by_end[close[0]]}?)" if close else unknown
