"""Help texts of ``jaxrec train``: a short page for newcomers and a full list of options."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from jaxrec.options import Range, option_name

WIDTH = 100


class Option(NamedTuple):
    """An option of the command line, as help shows it."""

    name: str
    values: str
    text: str
    default: str = ""

    def lines(self) -> list[str]:
        """The option, and beneath it what it does."""
        default = f"  (default: {self.default})" if self.default else ""
        body = textwrap.wrap(self.text, WIDTH - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
        return [f"  {self.name} {self.values}{default}".rstrip(), *body]


def documented_fields(kind: type) -> dict[str, str]:
    """Read the ``Attributes:`` sections of a class's docstring and of those of its bases, without markup.

    >>> documented_fields(Range)
    {}
    """
    texts: dict[str, str] = {}
    for base in kind.__mro__:
        _, _, section = (inspect.cleandoc(base.__dict__.get("__doc__") or "")).partition("Attributes:\n")
        name = ""
        for line in section.splitlines():
            start = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
            if line.strip() and not line.startswith("  "):
                break
            if start:
                name = start.group(1)
                texts.setdefault(name, start.group(2))
            elif name and line.strip() and not texts[name].endswith(line.strip()):
                texts[name] += " " + line.strip()
    return {name: re.sub(r"`+", "", text) for name, text in texts.items()}


def config_options(section: Any, path: str) -> list[Option]:
    """List the options of a configuration section, with its present values as defaults, nested sections after it."""
    options: list[Option] = []
    nested: list[Option] = []
    texts, hints = documented_fields(type(section)), get_type_hints(type(section), include_extras=True)
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            nested += config_options(value, f"{path}.{field.name}")
        else:
            name = option_name(path, field.name)
            options.append(
                Option(
                    name, _values(hints[field.name], name), texts.get(field.name, ""), _default_text(value)
                )
            )
    return options + nested


def _default_text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value in ("", None) else str(value)


def _values(hint: Any, name: str) -> str:
    """Values that an option takes: choices, or the kind of value with its bounds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = next((extra for extra in arguments[1:] if isinstance(extra, Range)), None)
        kind = _values(arguments[0], name)
        return f"{kind} {bounds}" if bounds else kind
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is tuple:
        return f"{_values(arguments[0], name)} ..."
    if origin in (Union, types.UnionType):
        return " or ".join(_values(option, name) for option in arguments if option is not type(None))
    if hint is bool:
        section, _, field = name[2:].rpartition(".")
        return f"| --{section + '.' if section else ''}no-{field}"
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(hint, "")


def page(title: str, groups: Sequence[tuple[str, Sequence[Option]]], closing: str = "") -> str:
    """Lay out a help page: a title, groups of options, and a closing line."""
    lines = [title]
    for heading, options in groups:
        lines += ["", f"{heading}:"] + [line for option in options for line in option.lines()]
    return "\n".join([*lines, *(["", closing] if closing else [])])
