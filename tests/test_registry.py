import dataclasses
from typing import ClassVar

import pytest

from jaxrec.errors import ConfigError, UnknownNameError
from jaxrec.registry import Registry, import_path, load_class, load_plugins

LOSSES = Registry("objective", {"bce": "B", "cross-entropy": "C"})


def test_is_a_mapping():
    assert LOSSES["bce"] == "B"
    assert list(LOSSES) == ["bce", "cross-entropy"]
    assert len(LOSSES) == 2
    assert "bce" in LOSSES
    assert "hinge" not in LOSSES
    assert dict(LOSSES.items()) == {"bce": "B", "cross-entropy": "C"}


def test_failed_look_up_lists_what_exists():
    with pytest.raises(
        UnknownNameError,
        match=r"unknown objective 'bec': expected one of bce, cross-entropy\. Did you mean 'bce'\?",
    ):
        LOSSES["bec"]
    with pytest.raises(ConfigError, match=r"cross-entropy\. \(One of your own"):
        LOSSES["something else"]


@pytest.mark.parametrize("name", [True, 7, None, ["bce"], {"a": 1}, ("bce",)])
def test_a_name_that_is_no_text_is_refused(name):
    with pytest.raises(
        UnknownNameError, match="the name of the objective must be text, one of bce, cross-entropy"
    ):
        LOSSES[name]
    assert name not in LOSSES
    with pytest.raises(ConfigError, match="the class must be text"):
        load_class(name)


def test_name_of():
    assert LOSSES.name_of("C") == "cross-entropy"
    with pytest.raises(
        UnknownNameError, match="'D' is not a registered objective: expected one of bce, cross-entropy"
    ):
        LOSSES.name_of("D")


def test_later_changes_of_the_argument_do_not_show():
    parts = {"a": 1}
    registry = Registry("part", parts)
    parts["b"] = 2
    assert list(registry) == ["a"]


def test_register_opens_the_registry():
    registry = Registry("part", {"a": 1})

    @registry.register("mine", "old-name")
    class Mine: ...

    assert registry["mine"] is registry["old-name"] is Mine
    assert list(registry) == ["a", "mine"]
    assert registry.name_of(Mine) == "mine"
    with pytest.raises(ConfigError, match="'mine' is already registered"):
        registry.register("mine")(int)


def test_a_class_whose_options_are_no_fields_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Base:
        rate: float = 1.0

    class Forgotten(Base):
        margin: float = 2.0
        kind: ClassVar[str] = "own"

    class Inherits(Base):
        kind: ClassVar[str] = "own"

    parts = Registry("part")
    with pytest.raises(
        ConfigError, match=r"Forgotten has the options margin, which nobody could set: .* @dataclass"
    ):
        parts.register("forgotten")(Forgotten)
    assert parts.register("inherits")(Inherits) is Inherits
    assert list(parts) == ["inherits"]


def test_import_path_names_a_class_or_refuses():
    assert load_class(import_path(Registry)) is Registry

    class Local: ...

    with pytest.raises(ConfigError, match="could not be reopened"):
        import_path(Local)
    for path in ("no_such_module:X", "jaxrec.registry:Nothing", "jaxrec.registry", "jaxrec.registry:PLUGINS"):
        with pytest.raises(ConfigError, match=r"cannot be imported|must name a class"):
            load_class(path)


def test_plugins_are_imported_by_name():
    load_plugins(("jaxrec.registry",))
    with pytest.raises(ConfigError, match="--plugin no_such_package cannot be imported"):
        load_plugins(("no_such_package",))
