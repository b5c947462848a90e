"""Heaps of the C library in a process that trains."""

import json
import os
import platform
import subprocess
import sys

import pytest

from jaxrec.cli import common
from jaxrec.cli import main as main_module

#: Eight threads that run at once and allocate, then the heaps that the C library counts.
PROGRAM = """
import contextlib, ctypes, importlib, json, re, sys, tempfile, threading

main = importlib.import_module("jaxrec.cli.main")
took_effect = []
limit = main.limit_heaps
main.limit_heaps = lambda: took_effect.append(limit())
with contextlib.suppress(SystemExit):
    main.main([sys.argv[1], "--help"])
library = ctypes.CDLL(None)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
library.malloc_info.argtypes = (ctypes.c_int, ctypes.c_void_p)
library.fclose.argtypes = (ctypes.c_void_p,)
together = threading.Barrier(8)

def allocate():
    together.wait()
    for size in range(1000, 2000):
        library.malloc(size)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    out = library.fopen(file.name.encode(), b"w")
    library.malloc_info(0, out)
    library.fclose(out)
    print(json.dumps([took_effect, len(re.findall("<heap nr=", open(file.name).read()))]))
"""


def heaps(command, **environment):
    """Whether the limit took effect in the process of a command, and the heaps of eight threads that allocate at once."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


gnu = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library has heaps for threads"
)


@gnu
def test_a_command_that_trains_has_two_heaps():
    took_effect, count = heaps("train")
    assert took_effect == [True]
    assert count <= 2


def test_commands_that_train_limit_their_heaps(monkeypatch):
    limits = []
    commands = tuple(main_module.COMMANDS)
    monkeypatch.setattr(main_module, "limit_heaps", lambda: limits.append(command))
    monkeypatch.setattr(main_module, "COMMANDS", dict.fromkeys(commands, ("common", "nothing else")))
    monkeypatch.setattr(main_module, "FUNCTIONS", dict.fromkeys(commands, "nothing"))
    monkeypatch.setattr(common, "nothing", lambda arguments: 0, raising=False)
    for command in commands:
        assert main_module.main([command]) == 0
    assert limits == ["train", "tune", "through-time"]


@gnu
def test_the_environment_has_the_last_word():
    took_effect, count = heaps("train", MALLOC_ARENA_MAX="5")
    assert took_effect == [False]
    assert 2 < count <= 5


@gnu
def test_other_commands_keep_theirs():
    took_effect, count = heaps("prepare")
    assert took_effect == []
    assert count > 2
