"""Help pages of `jaxrec train`: every option, its default, and no markup."""

import dataclasses
import re
import subprocess
import sys
from typing import Annotated

import pytest
import tyro

from jaxrec.cli.common import parse
from jaxrec.cli.help import documented_fields
from jaxrec.cli.main import COMMANDS
from jaxrec.config import NAMED_SECTIONS, RunConfig
from tests.runs import jaxrec


def test_first_page_has_the_options_to_begin_with():
    page = jaxrec("train", "--help").out
    for option in (
        "--preset",
        "--data",
        "--seeds",
        "--workdir",
        "--encoder",
        "--objective",
        "--training.epochs",
    ):
        assert f"\n  {option} " in page
    assert len(page.splitlines()) < 50
    assert "--help-all" in page


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"train", "tune", "through-time", "estimate"}))
def test_arguments_have_names(command):
    usage = jaxrec(command, "--help").out.split("\n\n")[0]
    assert usage.startswith(f"usage: jaxrec {command} ")
    assert not re.search(r"(?<!-[-\w])(?<!\w) \[?STR", re.sub(r"\[-[^\]]*\]*", "", usage)), usage


@pytest.mark.parametrize(
    "arguments", [(), ("--encoder", "stosa"), ("--attention", "miq"), ("--objective", "bpr")]
)
def test_full_page_lists_every_option_without_markup(arguments):
    page = jaxrec("train", *arguments, "--help-all").out
    assert "`" not in page
    config = RunConfig()
    for field in dataclasses.fields(config):
        if field.name not in NAMED_SECTIONS:
            for option in dataclasses.fields(getattr(config, field.name)):
                assert f"--{field.name}.{option.name}".replace("_", "-") in page
    if arguments:
        path, name = arguments[0][2:].replace("attention", "encoder.attention"), arguments[1]
        part = NAMED_SECTIONS[path][name]
        for option in dataclasses.fields(part):
            if not dataclasses.is_dataclass(option.default):
                assert f"--{path}.{option.name}".replace("_", "-") in page


def test_defaults_are_those_of_the_preset():
    assert (
        "--training.epochs NUMBER in (0, 1e9]  (default: 2)"
        in jaxrec("train", "--preset", "smoke", "--help").out
    )


@pytest.mark.parametrize("value", [True, False])
def test_both_forms_of_a_flag_that_the_page_lists_are_accepted(value):
    """Whatever the default: a preset or a run may have turned an option on that this command turns off."""
    forms = re.findall(r"^  --(\S+) \| --(\S+)", jaxrec("train", "--help-all").out, re.M)
    assert len(forms) > 10
    exclusive = {"split.holdout-users"}  # which needs other options beside it
    chosen = [pair for pair in forms if pair[0] not in exclusive and not pair[0].startswith("distributed.")]
    field = ("config", Annotated[RunConfig, tyro.conf.arg(name="")], RunConfig())
    form = dataclasses.make_dataclass("Form", [(*field[:2], dataclasses.field(default=field[2]))])
    config = parse(form, [f"--{pair[not value]}" for pair in chosen], "train").config
    for name, _ in chosen:
        section = config
        for part in name.replace("-", "_").split("."):
            section = getattr(section, part)
        assert section is value, name


def test_every_option_has_a_text():
    for registry in NAMED_SECTIONS.values():
        for part in registry.values():
            texts = documented_fields(part)
            assert all(texts.get(field.name) for field in dataclasses.fields(part)), part


def test_the_list_of_commands_loads_nothing_heavy():
    """It answers at once: neither JAX nor Polars, nor what reads options, is imported."""
    code = (
        "import sys; from jaxrec.cli.main import main; status = main(['--help']); "
        "print(status, *sorted({'jax', 'polars', 'numpy', 'flax', 'tyro', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "commands:" in done.stdout
    assert done.stdout.splitlines()[-1] == "0"
