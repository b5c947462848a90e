"""The command line: every command is a call that a script could make."""

import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from jaxrec.cli.heaps import limit_heaps
from jaxrec.errors import Interrupted, JaxrecError

#: Command -> (module of `jaxrec.cli` that holds a function of that name, or of that in `FUNCTIONS`, one line of help).
COMMANDS = {
    "train": ("train", "train on interactions, rank the held-out targets, write a run directory"),
    "tune": ("tune", "search options by validation, several processes on one study, and rank the best trial"),
    "through-time": ("through_time", "train and test at several cuts in time: cross-validation through time"),
    "evaluate": ("evaluate", "rank the held-out targets of a saved run again"),
    "recommend": ("recommend", "recommend the next items for a history, or for all users, from a saved run"),
    "similar": ("recommend", "list the items closest to one in the item table of a saved run"),
    "explain": ("recommend", "leave each interaction of a history out and score an item again"),
    "import": ("importing", "turn a published PyTorch checkpoint into a run, without PyTorch"),
    "serve": (
        "serve",
        "answer over HTTP: recommendations, similar items, explanations, and a page to try them",
    ),
    "export": ("export", "write an artefact that answers without the training code, or vectors for an index"),
    "extend": ("extend", "add new items to a trained run, so that it ranks them"),
    "audit": ("data", "report data issues that affect evaluation: ties, duplicates, leakage"),
    "prepare": ("data", "read a log once and save it as memory-mapped arrays"),
    "transpose": ("data", "save the transposed log, items as sequences of users, to train a next-user model"),
    "datasets": ("data", "list the public datasets: source, licence, citation, archives on disk"),
    "compare": ("analysis", "test the difference between runs: paired tests over users and seeds"),
    "leaderboard": ("analysis", "sort many runs, with intervals and the pairs that cannot be told apart"),
    "ensemble": ("analysis", "rank by a next-item run and a next-user run, alone and together"),
    "protocols": ("analysis", "evaluate one run under every evaluation protocol in use"),
    "estimate": ("estimate", "estimate memory and time of training, and the largest batch that fits"),
    "stability": ("analysis", "measure the robustness of recommendations to perturbed histories"),
    "attention": ("analysis", "list the attention mechanisms, or draw the attention of a run"),
}

#: Commands that train, for hours perhaps.
TRAINING = ("train", "tune", "through-time")

#: Commands whose name is no name of a function -> their function.
FUNCTIONS = {"import": "import_checkpoint", "through-time": "through_time"}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 on error (one-line message), 128 + signal after an interruption."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        from jaxrec import __version__

        print(f"jaxrec {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        _tell(f"jaxrec: unknown command {command!r}: expected one of {', '.join(COMMANDS)}")
        return 2
    if command in TRAINING:
        limit_heaps()  # before anything is imported that starts threads
    try:
        with _sigterm_as_exception(), _plain_warnings():
            rest = _load_plugins(rest)
            module = importlib.import_module(f"jaxrec.cli.{COMMANDS[command][0]}")
            status: int = getattr(module, FUNCTIONS.get(command, command))(rest)
            return status
    except Interrupted as interruption:
        _tell(f"jaxrec: {interruption}")
        return 128 + interruption.signal_number
    except JaxrecError as error:
        _tell(f"jaxrec: {error}")
        return 1
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        _tell(f"jaxrec: stopped by {number.name}{_how_to_continue(rest, getattr(stop, 'workdir', None))}")
        return 128 + number
    except BrokenPipeError:
        # The reader went away (as in `jaxrec ... | head`); nothing is wrong with the run.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk, a directory without permission, a file that vanished.
        _tell(f"jaxrec: {error}; check the path, the permissions and the free space")
        return 1


def _tell(message: str) -> None:
    """Print a line on standard error; where that cannot be written either, as on a full disk, the status has to do."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)


def _load_plugins(arguments: list[str]) -> list[str]:
    """Import what ``--plugin`` names and the installed plugins; return the other arguments."""
    from jaxrec.registry import load_plugins

    modules, others = [], []
    words = iter(arguments)
    for word in words:
        if word == "--plugin" or word.startswith("--plugin="):
            value = word.partition("=")[2] or next(words, "")
            modules += [module for module in value.split(",") if module]
        else:
            others.append(word)
    load_plugins(tuple(modules))
    return others


class _Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, so that files are closed and the message says what is saved."""

    signal_number = signal.SIGTERM


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raise `_Terminated` at SIGTERM, in the main thread of a process."""

    def handle(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print advice on options as a line of its own, without the place in the code that gives it."""
    package, usual = os.path.dirname(os.path.dirname(__file__)), warnings.formatwarning

    def form(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        own = category is UserWarning and filename.startswith(package)
        return f"warning: {message}\n" if own else usual(message, category, filename, lineno, line)

    warnings.formatwarning = form
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _how_to_continue(arguments: list[str], workdir: Any = None) -> str:
    """Advice on continuing the run or the lists that these arguments name, after an interruption.

    Args:
      arguments: of the command.
      workdir: run directory; None = that of the arguments.
    """
    from pathlib import Path

    from jaxrec.cli.common import value_of
    from jaxrec.files import as_word

    out = value_of("out", arguments, "")
    if out and (Path(out) / "_manifest.json").exists():  # of jaxrec.serving.parts, whose import takes seconds
        return f"; all parts in {out} are complete, continue with the same command and --resume"
    users = Path(out) / "users.parquet"  # of jaxrec export --vectors --users, which continues nothing
    if out and (users / "_manifest.json").exists() and not (users / "_SUCCESS").exists():
        return f"; {users} is incomplete: delete {out}, or give another --out"
    workdir = workdir or value_of("workdir", arguments, "")
    if not workdir or not (Path(workdir) / "config.json").exists():
        return "; nothing was saved"
    return (
        f"; all checkpoints are complete, continue with: jaxrec train --workdir {as_word(workdir)} --resume"
    )


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {description}" for name, (_, description) in COMMANDS.items()]
    return (
        "usage: jaxrec COMMAND [OPTIONS]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\n`jaxrec COMMAND --help` lists the options; --plugin MODULES imports modules that register parts of your own."
    )
