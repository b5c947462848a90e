"""Documentation: names and files that it mentions exist, and the notebook runs."""

import importlib
import re
import shlex
import warnings
from pathlib import Path

import pytest

from jaxrec.cli import train as train_command
from jaxrec.cli.run_options import chosen_config
from jaxrec.nn.spec import DataSpec
from jaxrec.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in [*PAGES, ROOT / "CONTRIBUTING.md"]}
REFERENCES = sorted({name for text in TEXTS.values() for name in re.findall(r"^::: (\S+)$", text, re.M)})
#: Folders of the repository whose files a page may name.
FOLDERS = r"(?:jaxrec|tests|experiments|docs|data_prep|\.ci|\.github)"


def resolve(name: str) -> object:
    """The module, class or function of a dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            target = getattr(target, part)
        return target
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", REFERENCES)
def test_api_reference_names_what_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_named_files_exist(page):
    named = re.findall(rf"`({FOLDERS}/[\w./-]+)`", TEXTS[page])
    # Names of files that the reader is to write are in capitals or called "mine".
    missing = [
        name for name in named if not re.search(r"[A-Z]{3,}|mine", name) and not (ROOT / name).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_python_examples_are_valid(page):
    for example in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
        if not example.startswith("--8<--"):  # an included file, which tests/test_extending.py runs
            compile(example, page, "exec")


#: Commands of pages that train: indented, continued over lines, or inside a sentence.
TRAINING = sorted(
    {
        command.split("#")[0].replace("\\\n", " ").strip()
        for text in [*TEXTS.values(), (ROOT / "README.md").read_text()]
        for found in re.findall(r"^ {4}(jaxrec train(?:.*\\\n)*.*)$|`(jaxrec train [^`]*)`", text, re.M)
        for command in found
        if command and not re.search(r"\.\.\.|--plugin|--preset runs/|--help|--resume", command)
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_options_of_commands_make_a_configuration(command, monkeypatch):
    """Everything but the data: names of options, values, and what the configuration refuses."""
    configs = []
    monkeypatch.setattr(
        train_command, "_run", lambda request, base: configs.append(chosen_config(request, base)) or 0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train_command.train(shlex.split(command)[2:]) == 0
    assert configs[0].encoder.build(DataSpec(60, 20, has_timestamps=True, n_users=3)).parameter_count() > 0


def test_pages_have_many_commands():
    assert len(TRAINING) > 35
    assert sum("learned-hstu-time" in command for command in TRAINING) == 1


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "NDCG@10" in outputs
    assert "Traceback" not in outputs


#: Figures of a table or a sentence: ".1234 ± .0056", and ".1234" alone; records have a zero before the point, pages none.
PAIR = re.compile(r"(?<![\d.])0?(\.\d{3,4}) ± 0?(\.\d{3,4})(?!\d)")
SINGLE = re.compile(r"(?<![\d.])0?(\.\d{4})(?!\d)")
RESULTS = {path.stem: path.read_text() for path in (ROOT / "experiments/results").glob("*.md")}
QUOTING = {**TEXTS, "README.md": (ROOT / "README.md").read_text()}


def three_digits(figure):
    return f"{float(figure):.3f}"[1:]


@pytest.mark.parametrize("page", sorted(QUOTING))
def test_quoted_figures_are_in_the_records_that_the_page_names(page):
    """But for those of a paper, which stand in the paragraph that begins with its claim."""
    named = {
        name
        for name in re.findall(r"`(?:experiments/results/)?([\w-]+)(?:\.md)?`", QUOTING[page])
        if name in RESULTS
    }
    own = "\n".join(RESULTS[name] for name in named)
    text = re.sub(r"^\*\*Claims?\.\*\*.*?\n\n", "", QUOTING[page], flags=re.DOTALL | re.MULTILINE)
    pairs = set(PAIR.findall(own))
    pairs |= {(three_digits(mean), three_digits(deviation)) for mean, deviation in pairs}
    assert set(PAIR.findall(text)) <= pairs
    quoted = set(re.findall(r"(?<![\d.])\.\d{4}(?!\d)", text))
    assert quoted <= set(SINGLE.findall(own))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_figures_of_a_preset_are_in_the_records_that_it_names(name):
    text = PRESETS[name].__doc__ or ""
    named = re.findall(r"experiments/results/([\w-]+)\.md", text)
    own = "\n".join(RESULTS[record] for record in named)
    assert set(PAIR.findall(text)) <= set(PAIR.findall(own))
    assert set(SINGLE.findall(text)) <= set(SINGLE.findall(own))


def test_pages_quote_many_figures():
    """So that the test above reads what it is meant to."""
    assert len(PAIR.findall(QUOTING["docs/results.md"])) > 40
    assert len(SINGLE.findall(QUOTING["docs/papers/revisiting.md"])) > 100


def test_figures_are_those_of_the_records():
    for path in (ROOT / "docs/figures").glob("*.png"):
        record = ROOT / "experiments/results" / path.name
        assert record.exists(), f"{path.name}: no record has this figure"
        assert path.read_bytes() == record.read_bytes(), (
            f"copy experiments/results/{path.name} to docs/figures"
        )
