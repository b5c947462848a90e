"""Sentences of docs/security.md that can be read off the source."""

import ast
import functools
import re
from pathlib import Path

import pytest

from jaxrec.serving.service import ServerConfig

ROOT = Path(__file__).parents[1]


# Read when the first test asks for it: every process of a session imports this file, and one runs its tests.
@functools.cache
def trees():
    """{module: its syntax tree}."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for path in sorted((ROOT / "jaxrec").rglob("*.py"))
    }


@functools.cache
def all_calls():
    """[(module, call, dotted path of what is called)]."""
    return [
        (module, node, ast.unparse(node.func))
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


@functools.cache
def all_imports():
    """{module: the modules that it imports}."""
    return {
        module: {
            name
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
        }
        for module, tree in trees().items()
    }


def calls(name):
    """(module, call) of every call of ``name``, a function or the end of a dotted path."""
    return [(module, node) for module, node, path in all_calls() if re.search(rf"(^|\.){name}$", path)]


def imports(package):
    """Modules that import ``package`` or what is below it, at the top or inside a function."""
    return {
        module
        for module, names in all_imports().items()
        if any(name == package or name.startswith(f"{package}.") for name in names)
    }


def test_the_checks_see_what_they_look_for():
    assert calls("load_class")
    assert "jaxrec/serving/server.py" in imports("socket")


@pytest.mark.parametrize("name", ["eval", "exec", "system", "popen", "execv", "execvp", "spawnv"])
def test_no_text_is_evaluated(name):
    # ``eval`` and its kin as bare names: encoders and studies may have methods of these names.
    assert not [
        (module, ast.unparse(node)) for module, node in calls(name) if isinstance(node.func, ast.Name)
    ]
    assert not [module for module, node in calls(name) if ast.unparse(node.func).startswith("os.")]


def test_no_file_is_unpickled():
    assert imports("pickle") == {"jaxrec/interop/unpickling.py"}
    for package in ("dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "yaml"):
        assert not imports(package), package
    for module, node in calls(r"(np|numpy|jnp)\.load"):
        pickles = [word.value for word in node.keywords if word.arg == "allow_pickle"]
        assert pickles, f"{module}: {ast.unparse(node)}"
        assert all(isinstance(value, ast.Constant) and value.value is False for value in pickles)


def test_no_program_is_started_but_git():
    assert imports("subprocess") == {"jaxrec/reporting/results.py"}
    started = [ast.unparse(node.args[0]) for _, node in calls(r"subprocess\.\w+")]
    assert started
    assert all(text.startswith("['git',") for text in started)
    assert not [node for _, node in calls(r"\w+") if any(word.arg == "shell" for word in node.keywords)]


def test_connections_are_opened_where_the_page_says():
    assert imports("socket") == {"jaxrec/serving/server.py"}
    assert imports("urllib") | imports("http") == {"jaxrec/datasets/download.py"}
    assert imports("redis") == {"jaxrec/serving/user_state.py"}
    for package in ("requests", "httpx", "aiohttp", "ftplib", "smtplib"):
        assert not imports(package), package


def test_the_server_answers_this_machine_only():
    assert ServerConfig().host == "127.0.0.1"
    page = (ROOT / "jaxrec/serving/page.html").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?://", page)
