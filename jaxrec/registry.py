"""Open registries: names for attention mechanisms, encoders, objectives, samplers, tasks, datasets and presets.

A user's package adds parts of its own with the decorator `Registry.register`, and the command line sees them when the
package declares an entry point in the group ``jaxrec.plugins`` or is named by ``--plugin``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from jaxrec.errors import ConfigError, UnknownNameError

T = TypeVar("T")

#: Entry-point group of packages that register parts when they are imported.
PLUGINS = "jaxrec.plugins"


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from public names to parts, open to new ones; a failed look-up lists the names that exist.

    >>> losses = Registry("objective")
    >>> @losses.register("hinge")
    ... class Hinge: ...
    >>> losses["hinge"] is Hinge
    True
    >>> losses.name_of(Hinge)
    'hinge'
    """

    def __init__(self, kind: str, parts: Mapping[str, T] | None = None):
        self.kind = kind
        self._parts: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        for name, part in (parts or {}).items():
            self.register(name)(part)

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Decorate a part to make it known under ``name``.

        Args:
          name: public name, as the command line and ``config.json`` show it.
          *aliases: further names that find the part but are not listed.

        Raises:
          ConfigError: on use, where a name already belongs to another part, or a class has options that nobody can set.
        """

        def add(part: T) -> T:
            _check_options(part)
            for label in (name, *aliases):
                present = self._parts.get(self._aliases.get(label, label))
                if present is not None and not _same_part(present, part):
                    raise ConfigError(
                        f"the {self.kind} {label!r} is already registered as {present!r}: register {part!r} under "
                        "another name"
                    )
            self._parts[name] = part
            self._aliases.update(dict.fromkeys(aliases, name))
            return part

        return add

    def __getitem__(self, name: str) -> T:
        """Return the part called ``name``; raise `UnknownNameError` where there is none."""
        if not isinstance(name, str):
            raise UnknownNameError(
                f"the name of the {self.kind} must be text, one of {', '.join(sorted(self._parts))}; got {name!r:.80}"
            )
        try:
            return self._parts[self._aliases.get(name, name)]
        except KeyError:
            close = difflib.get_close_matches(name, self._parts, n=1)
            own = " (One of your own is registered by importing its module: --plugin my_package.my_module.)"
            hint = f" Did you mean {close[0]!r}?" if close else own
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}: expected one of {', '.join(sorted(self._parts))}.{hint}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._parts or name in self._aliases)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def name_of(self, part: T) -> str:
        """Return the name under which ``part`` is registered.

        Raises:
          UnknownNameError: it is not registered.
        """
        for name, registered in self._parts.items():
            if registered is part or registered == part:
                return name
        raise UnknownNameError(
            f"{part!r} is not a registered {self.kind}: expected one of {', '.join(self._parts)}"
        )

    def label_of(self, part: Any) -> str:
        """Return the registered name of a class, or its own name where it has none."""
        return self.name_of(part) if part in self._parts.values() else part.__name__


def _check_options(part: Any) -> None:
    """Refuse a class whose annotated options are no fields, since it lacks the decorator that its base class has."""
    if not (isinstance(part, type) and dataclasses.is_dataclass(part)) or "__dataclass_fields__" in vars(
        part
    ):
        return
    options = [name for name, kind in inspect.get_annotations(part).items() if "ClassVar" not in str(kind)]
    if options:
        raise ConfigError(
            f"{part.__qualname__} has the options {', '.join(options)}, which nobody could set: expected a dataclass, got a "
            "class derived from one; put @dataclass(frozen=True) under the line that registers it"
        )


def _same_part(a: Any, b: Any) -> bool:
    """Whether two parts are one, also after its module was loaded a second time."""
    names = [(getattr(x, "__module__", None), getattr(x, "__qualname__", x)) for x in (a, b)]
    return a is b or (names[0] == names[1] and names[0][0] is not None)


def import_path(part: type) -> str:
    """Return ``module:Class`` of a class that another process can import.

    Raises:
      ConfigError: the class is local to a function or to ``__main__``, so a saved run could not name it.
    """
    path = f"{part.__module__}:{part.__qualname__}"
    try:
        importable = part.__module__ != "__main__" and load_class(path) is part
    except ConfigError:
        importable = False
    if not importable:
        raise ConfigError(
            f"{path} cannot be imported by name, so a saved run could not be reopened: expected a class at the top of "
            "an importable module; move it to a file of its own, or leave workdir out to train in memory"
        )
    return path


def load_class(path: str) -> type:
    """Import the class at ``module:Class``.

    Raises:
      ConfigError: there is no such module or class.
    """
    if not isinstance(path, str):
        raise ConfigError(f"the class must be text such as package.module:Class; got {path!r:.80}")
    module, separator, name = path.partition(":")
    try:
        if not separator:
            raise ValueError("expected module:Class")
        part: Any = importlib.import_module(module)
        for attribute in name.split("."):
            part = getattr(part, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the class {path!r} cannot be imported ({error}): install the package that defines it, or put its folder "
            "on PYTHONPATH"
        ) from None
    if not isinstance(part, type):
        raise ConfigError(f"{path!r} must name a class, got {part!r}")
    return part


def load_plugins(modules: tuple[str, ...] = ()) -> None:
    """Import the packages that register parts: entry points of the group ``jaxrec.plugins``, then ``modules``.

    Raises:
      ConfigError: one of them cannot be imported.
    """
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        try:
            entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the plugin {entry.name!r} ({entry.value}) cannot be imported: {error}; repair or uninstall its package"
            ) from error
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"--plugin {module} cannot be imported: {error}; expected a module that Python finds: install its package, "
                "or name its folder in PYTHONPATH (PYTHONPATH=. for the current one)"
            ) from error
