"""One validator for the options of every configuration, whose messages name the option as the user types it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import sys
import types
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from jaxrec.errors import ConfigError

#: Greatest integer of an option without an upper bound of its own: counts and sizes end where int32 ends.
LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number in interval notation, for use in ``Annotated[float, Range("[0, 1)")]``.

    >>> 1.0 in Range("[0, 1)")
    False
    >>> 7 in Range("[1, inf)")
    True
    """

    text: str

    @functools.cached_property
    def _bounds(self) -> tuple[float, float]:
        low, high = self.text[1:-1].split(",")
        return float(low), float(high)

    @property
    def is_open(self) -> bool:
        """Whether there is no upper bound."""
        return self._bounds[1] == math.inf

    def __contains__(self, value: float) -> bool:
        low, high = self._bounds
        return (value >= low if self.text[0] == "[" else value > low) and (
            value <= high if self.text[-1] == "]" else value < high
        )

    def __str__(self) -> str:
        low, high = self._bounds
        if high == math.inf and low > -math.inf:
            return f"at least {low:g}" if self.text[0] == "[" else f"above {low:g}"
        return f"in {self.text}"


@dataclasses.dataclass(frozen=True)
class Search:
    """Values of an option that are worth a search, beside its `Range`: ``Annotated[float, Search("log:1e-4:1e-2")]``.

    Attributes:
      text: ``LOW:HIGH``, ``log:LOW:HIGH``, or choices separated by commas (`jaxrec.tuning.space`).
    """

    text: str


@dataclasses.dataclass(frozen=True)
class Idle:
    """Values of another option of the section with which one is not read: ``Annotated[int, Idle("mode", ("packed",))]``.

    Attributes:
      option: the other option.
      values: of it.
    """

    option: str
    values: tuple[Any, ...]


def option_name(section: str, field: str) -> str:
    """Return the option of the command line that sets ``field`` of ``section`` ("" = of the command itself).

    >>> option_name("objective", "label_smoothing"), option_name("", "max_body")
    ('--objective.label-smoothing', '--max-body')
    """
    return f"--{section}{'.' * bool(section)}{field}".replace("_", "-")


def validate(config: Any, section: str) -> None:
    """Check every field of a configuration against its type hint, in its ``__post_init__``.

    Numbers must be finite and inside their `Range`, choices one of their ``Literal``, and all values of the
    declared type.

    Args:
      config: a dataclass instance.
      section: its place in a `RunConfig`, such as "objective" or "encoder.attention".

    Raises:
      ConfigError: a value does not fit; the message names the option, what was expected and what came.
    """
    kind: Any = type(config)
    for field, hint in _hints(kind).items():
        value = getattr(config, field)
        expected = _mismatch(value, hint)
        if expected:
            raise ConfigError(f"{option_name(section, field)} must be {expected}; got {value!r}")


class IdleOption(NamedTuple):
    """An option that has a value for nothing.

    Attributes:
      other: dotted path of the option that makes it idle.
      sentence: why it is not read, and what to do.
    """

    other: str
    sentence: str


def idle_options(config: Any, section: str) -> dict[str, IdleOption]:
    """Find options that differ from their defaults and are not read, by what is declared beside them (`Idle`).

    Args:
      config: a dataclass instance; those in its fields are searched, too.
      section: its place in a `RunConfig`, or "" for a whole one.

    Returns:
      {dotted path: why}.
    """
    found: dict[str, IdleOption] = {}
    kind: Any = type(config)
    hints = _hints(kind)
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{section}.{field.name}".removeprefix(".")
        if dataclasses.is_dataclass(value):
            found.update(idle_options(value, path))
            continue
        hint = hints[field.name]
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        rules = [extra for extra in extras if isinstance(extra, Idle)]
        rule = next((rule for rule in rules if getattr(config, rule.option) in rule.values), None)
        if rule is not None and value != field.default:
            other, present = option_name(section, rule.option), getattr(config, rule.option)
            read = [str(x) for x in _plain_choices(hints[rule.option]) if x not in rule.values]
            found[path] = IdleOption(
                f"{section}.{rule.option}",
                f"{option_name('', path)} {value} is not read with {other} {present}: choose "
                f"{f'{other} ' + ' or '.join(read) if read else f'another {other}'}, or leave it out",
            )
    return found


def _plain_choices(hint: Any) -> tuple[Any, ...]:
    """Choices of a ``Literal``, annotated or not; none of another hint."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(plain) if get_origin(plain) is Literal else ()


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _mismatch(value: Any, hint: Any, bounds: Range | None = None) -> str:
    """Values that ``hint`` allows, for the message, where ``value`` is none of them; else the empty string."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = next((extra for extra in arguments[1:] if isinstance(extra, Range)), bounds)
        return _mismatch(value, arguments[0], bounds)
    if origin is Literal:
        return (
            "" if value in arguments and type(value) in map(type, arguments) else _choices(value, arguments)
        )
    if origin in (Union, types.UnionType):
        failures = [_mismatch(value, option, bounds) for option in arguments]
        return "" if "" in failures else " or ".join(failures)
    if origin is tuple:
        if not isinstance(value, tuple):
            return "a sequence of values"
        element = next(
            (_mismatch(x, arguments[0], bounds) for x in value if _mismatch(x, arguments[0], bounds)), ""
        )
        return f"a sequence whose elements are each {element}" if element else ""
    if hint is type(None):
        return "" if value is None else "absent"
    if hint in (int, float):
        return _number_mismatch(value, hint, bounds)
    if isinstance(hint, type):
        return "" if isinstance(value, hint) else f"a {_KINDS.get(hint, hint.__name__)}"
    return ""


_KINDS = {bool: "boolean (true or false)", str: "text"}


def _number_mismatch(value: Any, hint: type, bounds: Range | None) -> str:
    kind = numbers.Integral if hint is int else numbers.Real
    article = "an integer" if hint is int else "a finite number"
    expected = f"{article} {bounds}" if bounds else article
    if not isinstance(value, kind) or isinstance(value, bool):
        return expected
    value = cast("float", value)
    if hint is int and abs(value) > LARGEST and (bounds is None or bounds.is_open):
        return f"{expected} and at most {LARGEST}"
    # Comparisons of integers are exact, however long they are; their conversions are not.
    fits = abs(value) <= sys.float_info.max if isinstance(value, int) else math.isfinite(value)
    return "" if fits and (bounds is None or value in bounds) else expected


def _choices(value: Any, choices: tuple[Any, ...]) -> str:
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    listed = ", ".join(map(str, choices))
    return f"one of {listed}" + (f" (did you mean {close[0]!r}?)" if close else "")
