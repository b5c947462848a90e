import pytest

from jaxrec.errors import ConfigError, UnknownNameError
from jaxrec.registry import Registry

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
    with pytest.raises(ConfigError, match=r"cross-entropy\.$"):
        LOSSES["something else"]


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
