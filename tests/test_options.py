import dataclasses
import math
from typing import Annotated, Literal

import pytest

from jaxrec.errors import ConfigError
from jaxrec.options import Range, option_name, validate


@dataclasses.dataclass(frozen=True)
class Options:
    rate: Annotated[float, Range("[0, 1)")] = 0.5
    layers: Annotated[int, Range("[1, inf)")] = 2
    scale: Annotated[float, Range("(0, inf)")] = 1.0
    block_kind: Literal["pre-norm", "post-norm"] = "pre-norm"
    seeds: tuple[Annotated[int, Range("[0, inf)")], ...] = (0,)
    flag: bool = False
    name: str = ""
    limit: Annotated[int, Range("[1, inf)")] | None = None

    def __post_init__(self):
        validate(self, "model")


def test_defaults_and_good_values_pass():
    Options()
    Options(rate=0, layers=7, scale=3, block_kind="post-norm", seeds=(1, 2), flag=True, name="x", limit=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate", 1.0, r"^--model\.rate must be a finite number in \[0, 1\); got 1\.0$"),
        ("rate", math.nan, r"^--model\.rate must be a finite number in \[0, 1\); got nan$"),
        ("rate", "0.5", r"--model\.rate must be a finite number"),
        ("scale", math.inf, r"--model\.scale must be a finite number above 0; got inf"),
        ("scale", 0, r"--model\.scale must be a finite number above 0; got 0"),
        ("layers", 0, r"--model\.layers must be an integer at least 1; got 0"),
        ("layers", 2.5, r"--model\.layers must be an integer at least 1; got 2\.5"),
        ("layers", True, r"--model\.layers must be an integer at least 1; got True"),
        ("layers", None, r"--model\.layers must be an integer at least 1; got None"),
        (
            "block_kind",
            "prenorm",
            r"--model\.block-kind must be one of pre-norm, post-norm \(did you mean 'pre-norm'",
        ),
        (
            "seeds",
            (1, -2),
            r"--model\.seeds must be a sequence whose elements are each an integer at least 0",
        ),
        ("seeds", 3, r"--model\.seeds must be a sequence of values; got 3"),
        ("flag", 1, r"--model\.flag must be a boolean"),
        ("name", 3, r"--model\.name must be a text; got 3"),
        ("limit", 0, r"--model\.limit must be an integer at least 1 or absent; got 0"),
        ("layers", 2**70, r"--model\.layers must be an integer at least 1 and at most 2147483647; got 11805"),
        ("layers", 10**400, r"--model\.layers must be an integer at least 1 and at most 2147483647"),
        ("layers", -(10**400), r"--model\.layers must be an integer at least 1"),
        ("seeds", (2**31,), r"--model\.seeds must be .* and at most 2147483647"),
        ("rate", 10**400, r"--model\.rate must be a finite number in"),
        ("scale", 10**400, r"--model\.scale must be a finite number above 0"),
    ],
)
def test_bad_values_name_the_option(field, value, message):
    with pytest.raises(ConfigError, match=message):
        Options(**{field: value})


def test_option_name_is_what_the_user_types():
    assert option_name("encoder.attention", "rows_per_group") == "--encoder.attention.rows-per-group"


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("[0, 1)", [0, 0.5], [1, -1]), ("(0, 1]", [1, 0.1], [0, 1.1]), ("(0, inf)", [1e300], [0, math.inf])],
)
def test_range_bounds(text, inside, outside):
    assert all(value in Range(text) for value in inside)
    assert not any(value in Range(text) for value in outside)
