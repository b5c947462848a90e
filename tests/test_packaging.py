"""What an installed package must hold, and what the repository promises about itself."""

import ast
import functools
import graphlib
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
#: A package or top-level module may import from those before it, never from those after it.
ORDER = [
    *("errors", "files", "cores", "registry", "options", "compilation", "sharding", "data", "datasets", "nn"),
    *("attention", "objectives", "evaluation", "models", "optim", "tasks", "config"),
    *("training", "runs", "serving", "analysis", "reporting", "interop", "extend", "presets", "pretraining"),
    *("api", "through_time", "tuning", "cli", "__main__"),
]


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


def imported_modules(path: Path) -> set[str]:
    """Modules of jaxrec that the file imports anywhere, inside functions too, but for type checking."""
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "jaxrec":
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    found.add(full if full in NAMES else child.module)
            elif isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names if alias.name.split(".")[0] == "jaxrec")
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """Of every module, read when the first test asks for it: every process of a session imports this file."""
    return {name: imported_modules(path) - {name} for name, path in NAMES.items()}


def test_every_module_has_a_place_in_the_order():
    assert {name.split(".")[1] for name in NAMES if "." in name} <= set(ORDER)


def test_imports_point_one_way():
    upward = [
        (name, other)
        for name, others in all_imports().items()
        for other in others
        if "." in name
        and (other == "jaxrec" or ORDER.index(other.split(".")[1]) > ORDER.index(name.split(".")[1]))
    ]
    # The command line prints the version, which is the package's own.
    assert upward == [("jaxrec.cli.main", "jaxrec")]


def test_the_lists_of_packages_are_whole_and_in_order():
    """Those that a reader finds in README.md and docs/index.md."""
    packages = [name for name in ORDER if (ROOT / "jaxrec" / name / "__init__.py").exists()]
    readme = re.findall(r"^    jaxrec/(\w+)/ ", (ROOT / "README.md").read_text(), re.M)
    page = re.findall(r"^\| `jaxrec\.(\w+)` ", (ROOT / "docs/index.md").read_text(), re.M)
    assert readme == packages
    assert page == packages


def test_no_import_cycle():
    graphlib.TopologicalSorter(all_imports()).prepare()


def test_data_needs_no_model_and_no_jax():
    """Reading and auditing a log starts neither JAX nor Flax."""
    command = "import sys, jaxrec.data as d; d.audit(d.load_dataset('movietweetings')); print('flax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


def test_everything_imported_is_declared():
    declared = {re.split(r"[<>=\[]", entry)[0] for entry in PROJECT["project"]["dependencies"]}
    optional = {"pandas", "pyarrow"}  # used where the caller brings them
    optional |= {
        "starlette",
        "uvicorn",
        "prometheus_client",
        "redis",
        "ray",
        "usearch",
        "flatbuffers",
        "optuna",
    }  # extras
    optional |= {"jax2onnx", "onnx", "onnxruntime"}  # an environment of their own, see docs/serving.md
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
