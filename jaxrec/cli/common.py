"""What all commands share: parsing and printing."""

from __future__ import annotations

import json
import math
from typing import Any

import tyro


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """A result for people, or for programs: with ``--json`` the last line of standard output is one JSON object."""
    print(json.dumps(_nullable(result), allow_nan=False) if as_json else text, flush=True)


def _nullable(value: Any) -> Any:
    """JSON has no NaN: what is not defined (a mean over no case, a change relative to 0) becomes null."""
    if isinstance(value, dict):
        return {key: _nullable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nullable(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def parse(form: Any, arguments: list[str], command: str, default: Any = None) -> Any:
    kwargs = {} if default is None else {"default": default}
    return tyro.cli(
        form,
        args=arguments,
        prog=f"jaxrec {command}",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        **kwargs,
    )
