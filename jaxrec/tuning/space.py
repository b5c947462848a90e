"""Search spaces: the values of each option that a study may try."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from jaxrec.config import RunConfig
from jaxrec.errors import ConfigError
from jaxrec.options import Search, option_name

#: Sections whose options a search may not change: with another of these, trials would not measure the same thing.
_FIXED = ("data", "split", "evaluation", "mesh", "pretraining")
#: Options of the section "training" that a search may change; the others decide about measuring, not about the model.
_TRAINING = ("epochs",)
#: In place of a dimension: the option keeps the value of the configuration.
FIXED = "fixed"


@dataclasses.dataclass(frozen=True)
class Choices:
    """Some values of an option, in no order."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return json.dumps(list(self.values))

    def including(self, value: Any) -> Choices:
        """Return the choices with ``value`` among them."""
        return self if value in self.values else Choices((value, *self.values))

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that show whether all are allowed."""
        return self.values

    @property
    def points(self) -> tuple[Any, ...] | None:
        """All values."""
        return self.values


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers between two others, which are included.

    Attributes:
      low: the smallest.
      high: the largest.
      log: draw uniformly in the logarithm.
      integer: whole numbers alone.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __str__(self) -> str:
        return json.dumps(f"{'log:' * self.log}{self.low!r}:{self.high!r}")

    def including(self, value: float) -> Interval:
        """Return the interval, widened so far that ``value`` is in it."""
        return dataclasses.replace(self, low=min(self.low, value), high=max(self.high, value))

    @property
    def ends(self) -> tuple[float, ...]:
        """Values that show whether all are allowed."""
        return (self.low, self.high)

    @property
    def points(self) -> tuple[Any, ...] | None:
        """All values; None where they are too many to count."""
        return tuple(range(int(self.low), int(self.high) + 1)) if self.integer else None


Dimension = Choices | Interval
Space = dict[str, Dimension]


def search_space(
    config: RunConfig,
    space: Mapping[str, Any] | str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Space:
    """Return the space of a study, by dotted path; it always has the values of ``config`` in it.

    Args:
      config: of the first trial.
      space: in place of the declared one: {option: dimension}, or a TOML or JSON file of it. A dimension is text such as
        "log:1e-4:1e-2", "1:3" or "32,64,128", or a list of choices; "fixed" is none.
      changes: further dimensions, which add to the space or replace those in it; "fixed" removes one.

    Raises:
      ConfigError: an option does not exist or may not be searched, its values do not fit, the value of ``config`` has no
        logarithm, or nothing is left.
    """
    if space is None:
        chosen: Space = declared_space(config)
    else:
        listed = read_space(Path(space)) if isinstance(space, (str, Path)) else space
        chosen = {
            path: dimension
            for path, dimension in _parsed(config, _flat(listed)).items()
            if dimension is not None
        }
    for path, dimension in _parsed(config, _flat(changes or {})).items():
        chosen.pop(path, None)
        if dimension is not None:
            chosen[path] = dimension
    if not chosen:
        raise ConfigError(
            "--space is empty: expected at least one option to search; add one, as in "
            "--space.optimizer.learning-rate log:1e-4:1e-2"
        )
    values = {path: _value_at(config, path) for path in chosen}
    for path, dimension in chosen.items():
        if isinstance(dimension, Interval) and dimension.log and not values[path] > 0:
            choices = f"{values[path]:g},{dimension.low:g},{dimension.high:g}"
            raise ConfigError(
                f"{option_name('space', path)} is logarithmic and must hold the value of the first trial, which is "
                f"{values[path]:g}: expected one above 0; give LOW:HIGH or choices such as {choices}, or begin with another "
                f"{option_name('', path)}"
            )
    for path, dimension in chosen.items():
        _check_read(config, path, dimension, chosen)
    return {path: dimension.including(values[path]) for path, dimension in chosen.items()}


def _check_read(config: RunConfig, path: str, dimension: Dimension, space: Space) -> None:
    """Refuse a dimension that no trial would read; one that only some trials read is fine."""
    for value in dimension.ends:
        idle = config.updated({path: value}).idle_options().get(path)
        if idle and idle.other not in space:
            raise ConfigError(f"{option_name('space', path)} changes nothing: {idle.sentence}")


def declared_space(config: RunConfig) -> Space:
    """Return the dimensions that the sections of ``config`` declare beside their options (`jaxrec.options.Search`)."""
    return {
        path: parse_dimension(path, search.text, hint)
        for path, hint in searchable_options(config).items()
        if (search := _search_of(hint)) is not None
    }


def searchable_options(config: RunConfig) -> dict[str, Any]:
    """Return {dotted path: type hint} of every option of ``config`` that a search may change."""
    sections = (field.name for field in dataclasses.fields(config) if field.name not in _FIXED)
    found: dict[str, Any] = {}
    for name in sections:
        found.update(_options(getattr(config, name), name))
    return {
        path: hint
        for path, hint in found.items()
        if not path.startswith("training.") or path.removeprefix("training.") in _TRAINING
    }


def _options(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(type(section), include_extras=True)
    for field in dataclasses.fields(section):
        value, place = getattr(section, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _options(value, place)
        elif _plain(hints[field.name]) in (int, float, bool, str) or _is_choice(hints[field.name]):
            yield place, hints[field.name]


def _plain(hint: Any) -> Any:
    """The type under the annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_choice(hint: Any) -> bool:
    return get_origin(_plain(hint)) is Literal


def _search_of(hint: Any) -> Search | None:
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Search)), None)


def parse_dimension(path: str, dimension: Any, hint: Any) -> Dimension:
    """Read a dimension of the option at ``path``, whose type hint is ``hint``.

    Raises:
      ConfigError: it cannot be read, or has no values.
    """
    name = option_name("space", path)
    if isinstance(dimension, (Choices, Interval)):
        return dimension
    kind = _plain(hint)
    if isinstance(dimension, str) and ":" in dimension:
        return _interval(name, dimension, kind)
    entries = dimension.split(",") if isinstance(dimension, str) else dimension
    plain = isinstance(entries, (list, tuple)) and all(isinstance(x, (int, float, str)) for x in entries)
    if not plain or not entries:
        raise ConfigError(
            f"{name} must be LOW:HIGH, log:LOW:HIGH, choices separated by commas, or a list of them; got {dimension!r}"
        )
    values = tuple(_value(name, entry, kind) for entry in entries)
    if len(set(values)) < len(values):
        raise ConfigError(f"{name} must have distinct choices; got {dimension!r}")
    return Choices(values)


def _interval(name: str, text: str, kind: Any) -> Interval:
    log, bounds = text.startswith("log:"), text.removeprefix("log:").split(":")
    if kind not in (int, float) or len(bounds) != 2:
        expected = "LOW:HIGH or log:LOW:HIGH" if kind in (int, float) else "choices separated by commas"
        raise ConfigError(f"{name} must be {expected}; got {text!r}")
    low, high = (_value(name, bound, kind) for bound in bounds)
    if not low < high or (log and not low > 0):
        raise ConfigError(
            f"{name} must have a lower bound below its upper one{', and above 0' * log}; got {text!r}"
        )
    return Interval(low, high, log, kind is int)


def _value(name: str, entry: Any, kind: Any) -> Any:
    """An entry as a value of type ``kind``; one that is no text must have the type already."""
    if not isinstance(entry, str):
        return float(entry) if kind is float and type(entry) is int else entry
    text = entry.strip()
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} must have the choices true and false; got {text!r}")
        return text.lower() == "true"
    if get_origin(kind) is Literal:
        return next((value for value in get_args(kind) if str(value) == text), text)
    try:
        value = kind(text)
    except ValueError:
        expected = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{name} must have {expected}; got {text!r}") from None
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} must have finite numbers; got {text!r}")
    return value


def _parsed(config: RunConfig, listed: Mapping[str, Any]) -> dict[str, Any]:
    """Dimensions by dotted path, each checked against the options of ``config``; None where one is `FIXED`."""
    known = searchable_options(config)
    parsed: dict[str, Any] = {}
    for typed, dimension in listed.items():
        path = typed.replace("-", "_")
        if path.startswith("attention."):
            path = f"encoder.{path}"
        if path not in known:
            raise ConfigError(_unknown(typed, path, known))
        if dimension == FIXED:
            parsed[path] = None
            continue
        parsed[path] = parse_dimension(path, dimension, known[path])
        for value in parsed[path].ends:
            try:
                config.updated({path: value})
            except ConfigError as error:
                raise ConfigError(f"{option_name('space', path)}: {error}") from None
    return parsed


def _unknown(typed: str, path: str, known: Mapping[str, Any]) -> str:
    section = path.partition(".")[0]
    if section in _FIXED or section == "training":
        return (
            f"--space.{typed} cannot be searched, since trials must be measured alike: leave it out, or set "
            f"{option_name('', path)} for the whole study"
        )
    close = difflib.get_close_matches(path, known, n=1)
    hint = f"did you mean {close[0].replace('_', '-')!r}?" if close else "jaxrec train --help-all lists them"
    return f"--space.{typed} is no option of this preset; expected one of its numbers or choices ({hint})"


def read_space(file: Path) -> dict[str, Any]:
    """Read a TOML or JSON file of dimensions.

    Raises:
      ConfigError: there is no such file, or it is not what its name says.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"--space {file} cannot be read ({error.strerror}): expected a TOML or JSON file"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"--space {file} is no {'JSON' if file.suffix == '.json' else 'TOML'}: {error}"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"--space {file} must map options to dimensions; got {type(values).__name__}")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat.update(_flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return flat


def _value_at(config: RunConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def default_point(config: RunConfig, space: Space) -> dict[str, Any]:
    """Return the point of ``space`` that is ``config`` itself: {dotted path: value}."""
    return {path: _value_at(config, path) for path in space}


def all_points(space: Space, limit: int = 10_000) -> list[dict[str, Any]] | None:
    """Return every point of a space, or None where there are more than ``limit``."""
    axes = [dimension.points for dimension in space.values()]
    if any(axis is None for axis in axes) or math.prod(len(axis or ()) for axis in axes) > limit:
        return None
    return [
        dict(zip(space, values, strict=True)) for values in itertools.product(*(axis or () for axis in axes))
    ]


def to_toml(space: Space) -> str:
    """Write a space as the TOML file that ``--space FILE`` reads."""
    return "".join(f"{path.replace('_', '-')} = {dimension}\n" for path, dimension in space.items())
