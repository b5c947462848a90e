"""The README's commands and example work as written, with the smallest preset in place of the long ones."""

import re
import shlex
from pathlib import Path

import pytest

import jaxrec as package
from jaxrec import api
from jaxrec.cli.main import COMMANDS
from jaxrec.presets import PRESETS
from tests.cli.shared import interactions
from tests.runs import jaxrec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
EXAMPLE = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]
LINES = [
    part.split("#")[0].strip() for line in re.findall(r"^    (.*)$", TEXT, re.M) for part in line.split("&&")
]
SHOWN = [line for line in LINES if line.startswith("jaxrec ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the file that the commands name, and a finished run where they look for one."""
    folder = tmp_path_factory.mktemp("readme")
    interactions().write_csv(folder / "interactions.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = jaxrec("train", "--workdir", "runs/first", "--preset", "smoke", "--quiet")
        assert first.status == 0, first.err
        five = jaxrec(
            "train", "--workdir", "runs/five", "--preset", "smoke", "--quiet", "--encoder.width", "8"
        )
        assert five.status == 0, five.err
    return folder


def test_shows_every_main_command():
    shown = {shlex.split(line)[1] for line in SHOWN}
    assert shown >= {"train", "evaluate", "recommend", "audit", "prepare", "compare", "attention"}
    assert shown <= {*COMMANDS, "--help"}
    assert "pip install -e . && jaxrec train" in TEXT
    assert "pip install -e '.[test]' && pytest" in TEXT


class Accepted(Exception):
    """Raised in place of training."""


def test_commands_run_in_the_order_of_the_page(place, monkeypatch):
    """Training is stopped where it would begin: its options are parsed and checked against the data."""
    monkeypatch.chdir(place)

    def stop(dataset, config, workdir, **options):
        if not options["resume"]:
            api.prepare(config, dataset)
        raise Accepted

    monkeypatch.setattr(api, "fit", stop)
    for line in SHOWN:
        arguments = shlex.split(line)[1:]
        if arguments[0] == "train" and "--help" not in arguments:
            with pytest.raises(Accepted):
                jaxrec(*arguments)
            continue
        outcome = jaxrec(*arguments)
        assert outcome.status == 0, f"{line}: {outcome.err}"
        assert outcome.out


def test_figures_are_those_of_the_records():
    """Every mean with its deviation stands in a record."""
    records = "".join(path.read_text() for path in (ROOT / "experiments/results").glob("*.md"))
    text = TEXT + (ROOT / "docs/results.md").read_text()
    figures = re.findall(r"\.\d{4} ± \.\d{4}", text)
    assert len(figures) > 40
    missing = [figure for figure in figures if f"0{figure.replace('± ', '± 0')}" not in records]
    assert not missing
    named = re.findall(r"`(\w[\w-]*\.md)`", text)
    assert all((ROOT / "experiments/results" / name).exists() for name in named if name != "CONTRIBUTING.md")


def test_presets_and_options_that_it_names_exist():
    options = jaxrec("train", "--help-all").out
    for option in re.findall(
        r"(--(?:data|split|encoder|attention|objective|optimizer|training)\.[a-z-]+)", TEXT
    ):
        assert option.replace("--attention.", "--encoder.attention.") in options
    for name in re.findall(r"`(sasrec[a-z0-9-]*|smoke)`", TEXT):
        assert name in PRESETS
    assert all(f"`{name}`" in TEXT for name in PRESETS)


def test_python_example_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert 8 <= len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 10
    assert '"sasrec"' in EXAMPLE
    exec(compile(EXAMPLE.replace('"sasrec"', '"smoke"'), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "HR@10" in printed
    assert package.Recommender.load("runs/python").recommend([["tt0133093"]], k=1)[0].titles[0] in printed
    assert (place / "runs" / "python" / "results.json").exists()
