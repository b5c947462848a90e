"""What all commands share: parsing and printing."""

from __future__ import annotations

import json
from typing import Any

import tyro


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """A result for people, or for programs: with ``--json`` the last line of standard output is one JSON object."""
    print(json.dumps(result) if as_json else text, flush=True)


def parse(form: Any, arguments: list[str], command: str, default: Any = None) -> Any:
    kwargs = {} if default is None else {"default": default}
    return tyro.cli(
        form,
        args=arguments,
        prog=f"jaxrec {command}",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        **kwargs,
    )
