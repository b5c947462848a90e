"""What an installed package must hold, and what the repository promises about itself."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jaxrec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "jaxrec").rglob("*.py"))
#: A package may import from those before it, never from those after it.
ORDER = ["data", "attention", "models", "objectives", "evaluation", "training", "serving", "reporting"]


def test_version_is_the_declared_one():
    assert jaxrec.__version__ == PROJECT["project"]["version"]
    assert f"## {jaxrec.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_typed_and_with_its_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["jaxrec"]
    packed = {path for pattern in patterns for path in (ROOT / "jaxrec").glob(pattern) if path.is_file()}
    needed = [ROOT / "jaxrec/py.typed", ROOT / "jaxrec/reporting/run.html.jinja"]
    needed += [path for path in (ROOT / "jaxrec/data/bundled/movietweetings").iterdir() if path.is_file()]
    assert set(needed) <= packed
    assert sum(path.stat().st_size for path in packed) < 2**20, "under 1 MB"


def test_licences_are_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for name in PROJECT["project"]["license-files"]:
        assert (ROOT / name).stat().st_size > 500


def test_every_package_imports_only_from_those_before_it():
    for path in MODULES:
        parts = path.relative_to(ROOT / "jaxrec").parts
        if parts[0] not in ORDER:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                pieces = name.split(".")
                if pieces[0] == "jaxrec" and len(pieces) > 1 and pieces[1] in ORDER:
                    assert ORDER.index(pieces[1]) <= ORDER.index(parts[0]), f"{path.name} imports {name}"
                assert pieces[:2] != ["jaxrec", "cli"], f"{path.name} imports the command line"


def test_data_needs_no_model_and_no_jax():
    """Reading and auditing a log starts neither JAX nor Flax."""
    command = "import sys, jaxrec.data as d; d.audit(d.load_dataset('movietweetings')); print('flax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


def test_everything_imported_is_declared():
    declared = {re.split(r"[<>=\[]", entry)[0] for entry in PROJECT["project"]["dependencies"]}
    optional = {"pandas", "pyarrow", "flatbuffers"}  # used where the caller brings them
    provided = importlib.metadata.packages_distributions()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                top = node.module.split(".")[0]
            elif isinstance(node, ast.Import):
                top = node.names[0].name.split(".")[0]
            else:
                continue
            if top in sys.stdlib_module_names or top == "jaxrec" or top in optional:
                continue
            given = {name.lower() for name in provided.get(top, [top])}
            assert declared & given, f"{path.name} imports {top}, which is not declared"


def test_no_file_is_longer_than_400_lines():
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
