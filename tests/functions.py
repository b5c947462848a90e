"""Plugin that fails a session whose tests leave a public function of jaxrec uncalled: ``pytest -p tests.functions``.

A function counts as called if its body started in a process of the session. Public are functions and methods, ``__call__``
too, without an underscore in front of their name, their class or their module; bodies that only a subclass fills in are left
out. It costs next to nothing, by `sys.monitoring`, for which Python 3.12 is needed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parents[1] / "jaxrec"
CALLED: set[str] = set()


def is_stub(function: ast.FunctionDef) -> bool:
    """Whether a body does nothing: a docstring, ``...`` or ``raise NotImplementedError``."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return not body or (
        len(body) == 1 and ast.unparse(body[0]).startswith(("...", "raise NotImplementedError"))
    )


def public_functions(node: ast.AST, prefix: str) -> Iterator[str]:
    """Names ``file:Class.method`` of the public functions that the body of a module or class defines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            if "Protocol" not in map(ast.unparse, child.bases):
                yield from public_functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            public = child.name == "__call__" or not child.name.startswith("_")
            if public and not is_stub(child):
                yield prefix + child.name


def all_functions() -> set[str]:
    """Public functions of the package."""
    files = [file for file in ROOT.rglob("*.py") if file.name == "__init__.py" or file.name[0] != "_"]
    names = (public_functions(ast.parse(file.read_text()), f"{file.relative_to(ROOT)}:") for file in files)
    return {name for group in names for name in group}


def pytest_configure() -> None:
    """Note every body of the package that starts, once."""
    if sys.version_info < (3, 12):
        raise pytest.UsageError("-p tests.functions needs Python 3.12 or newer: leave it out")
    monitoring, folder = sys.monitoring, f"{ROOT}/"

    def note(code: CodeType, offset: int) -> object:
        if code.co_filename.startswith(folder):
            CALLED.add(f"{code.co_filename.removeprefix(folder)}:{code.co_qualname}")
        return monitoring.DISABLE

    monitoring.use_tool_id(monitoring.COVERAGE_ID, "jaxrec")
    monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.PY_START, note)
    monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.PY_START)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Collect the calls of a worker of xdist."""
    CALLED.update(getattr(node, "workeroutput", {}).get("called", ()))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["called"] = sorted(CALLED)
        return
    missing = sorted(all_functions() - CALLED)
    if missing and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.stash[MISSING] = missing


MISSING = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    missing = config.stash.get(MISSING, [])
    terminalreporter.section("public functions that no test called")
    terminalreporter.write_line("\n".join(missing) or "none")
