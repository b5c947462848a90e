"""Options of a run on the command line: preset, sections, named parts, short forms; for every command that takes them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from jaxrec.cli.common import parse, value_of
from jaxrec.cli.help import Option
from jaxrec.config import NAMED_SECTIONS, RunConfig, load_config, section_label
from jaxrec.errors import ConfigError
from jaxrec.presets import named_config

#: Number of models of one run beyond which a number must be a mistake.
MOST_SEEDS = 10_000


class CommandOption(NamedTuple):
    """An option of a command beside those of a run.

    Attributes:
      name: without dashes in front, words joined by underscores.
      kind: its type.
      default: its value where it is not given.
      text: help.
    """

    name: str
    kind: Any
    default: Any
    text: str

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def row(self) -> Option:
        """The option as help shows it."""
        values = {bool: "", int: "INT", float: "FLOAT", tuple[float, ...]: "NUMBER ..."}.get(
            self.kind, "TEXT"
        )
        default = self.default if isinstance(self.default, tuple) else (self.default or "",)
        return Option(self.flag, values, self.text, " ".join(map(str, default)))


QUIET = CommandOption("quiet", bool, False, "no progress bar")
NO_COMPILE_CACHE = CommandOption(
    "no_compile_cache", bool, False, "neither read nor write compiled programs in ~/.cache/jaxrec"
)
JSON = CommandOption("json", bool, False, "print the result as one JSON object on the last line")
#: Read before all other options, which depend on it.
PLUGIN = Option("--plugin", "TEXT", "modules that register parts of your own, separated by commas")


def aliases_resolved(arguments: list[str]) -> list[str]:
    """Options under ``--attention`` are those of ``--encoder.attention``."""
    return [re.sub(r"^--attention(?=$|[.=])", "--encoder.attention", argument) for argument in arguments]


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for the help page of their command."""
    return not {"-h", "--help", "--help-all"}.isdisjoint(arguments)


def run_request(
    name: str,
    own: Iterable[CommandOption],
    arguments: list[str],
    base: RunConfig,
    *,
    source: str | None = None,
    **sections: Any,
) -> Any:
    """Parse the arguments of a command that configures a run: its options, their short forms, the named parts.

    Args:
      name: of the command.
      own: options beside those of a run.
      arguments: of the command line.
      base: configuration that they change, as `base_config` returns it; `chosen_config` applies them.
      source: default of ``--data``; None = that of ``base``.
      sections: further configurations by name, each with options under it.

    Returns:
      A dataclass with an attribute for each.
    """
    named = {path: section_label(base, path) for path in NAMED_SECTIONS if section_label(base, path)}
    options: list[tuple[str, Any, Any]] = [
        ("config", Annotated[RunConfig, tyro.conf.arg(name="")], base),
        (
            "source",
            Annotated[str, tyro.conf.arg(name="data")],
            base.data.source if source is None else source,
        ),
        ("init_from", str, base.training.init_from),
        ("n_seeds", Annotated[int | None, tyro.conf.arg(name="seeds")], None),
        *(
            (path.replace(".", "_") + "_name", Annotated[str, tyro.conf.arg(name=path)], label)
            for path, label in named.items()
        ),
        *((option.name, option.kind, option.default) for option in own),
        *((name, type(section), section) for name, section in sections.items()),
    ]
    fields = [(option, kind, dataclasses.field(default=default)) for option, kind, default in options]
    title = name.title().replace("-", "")
    return parse(dataclasses.make_dataclass(title, fields, frozen=True), arguments, name)


def base_config(arguments: list[str], resumable: bool = False) -> RunConfig:
    """Return the configuration that the options of ``jaxrec train`` start from: preset, saved run, chosen classes.

    A class chosen by name takes its own documented defaults; nothing carries over from the class it replaces.

    Args:
      arguments: of the command.
      resumable: whether the command has ``--resume``.
    """
    workdir = value_of("workdir", arguments, "")
    if resumable and "--resume" in arguments:
        if "--overwrite" in arguments:
            raise ConfigError(
                "--resume and --overwrite exclude each other: continue the run, or delete it and start anew"
            )
        if not workdir:
            raise ConfigError("--resume needs --workdir: the directory of the run to continue")
        config = load_config(Path(workdir) / "config.json")
    else:
        config = named_config(value_of("preset", arguments, "sasrec"))
    for path, registry in NAMED_SECTIONS.items():
        present = section_label(config, path)
        label = value_of(path, arguments, present)
        if label == present:
            continue
        if not present:
            raise ConfigError(
                f"--{path} does not apply to the encoder {section_label(config, 'encoder')!r}, which has no attention: "
                "leave it out, or choose --encoder transformer"
            )
        config = config.updated({path: registry[label]()})
    return config


def chosen_config(options: Any, base: RunConfig) -> RunConfig:
    """Return the configuration of parsed options with their short forms, ``--data``, ``--init-from`` and ``--seeds``.

    Args:
      options: from `run_request`.
      base: the configuration that they started from.

    Raises:
      ConfigError: ``--seeds`` is out of range, or the seeds are given twice.
    """
    config: RunConfig = options.config
    if options.source != base.data.source:
        if config.data.source not in (base.data.source, options.source):
            raise ConfigError(
                f"--data {options.source} and --data.source {config.data.source} exclude each other: give one of them"
            )
        config = config.updated({"data.source": options.source})
    if options.init_from != base.training.init_from:
        config = config.updated({"training.init_from": options.init_from})
    return with_seeds(config, base, options.n_seeds)


def with_seeds(config: RunConfig, base: RunConfig, count: int | None) -> RunConfig:
    """Return ``config`` with the seeds of ``--seeds count``; None = the option was not given.

    Args:
      config: parsed options.
      base: the configuration that they started from.
      count: number of models.

    Raises:
      ConfigError: it is out of range, or the seeds are given twice.
    """
    if count is None:
        return config
    seeds = first_seeds(count)
    if config.training.seeds not in (base.training.seeds, seeds):
        raise ConfigError(
            f"--seeds {count} and --training.seeds {' '.join(map(str, config.training.seeds))} exclude "
            "each other: give the number of models, or their seeds"
        )
    return config.updated({"training.seeds": seeds})


def first_seeds(count: int) -> tuple[int, ...]:
    """Seeds of ``--seeds count``: 0, 1, ..."""
    if not 1 <= count <= MOST_SEEDS:
        raise ConfigError(f"--seeds must be from 1 to {MOST_SEEDS:,} models, got {count:,}")
    return tuple(range(count))
