"""The cache of compiled programs: on for the command line, never in the way, and without a trace in the results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrec import compilation

PROGRAM = """
import jax, json, sys
from jaxrec.compilation import enable_compilation_cache
from jaxrec.training.loop import train
from tests.helpers import small_config, small_dataset
kept = enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
run = train(small_config(training={"epochs": 2}), small_dataset(), progress=False)
digest = [leaf.tobytes().hex() for leaf in map(__import__("numpy").asarray, jax.tree.leaves(run.params))]
print(json.dumps({"kept": str(kept), "hits": events.count("/jax/compilation_cache/cache_hits"), "digest": digest}))
"""


def start(home, **environment):
    root = Path(__file__).parents[1]
    names = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            **names,
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(home),
            "PYTHONPATH": str(root),
            **environment,
        },
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_second_start_reads_what_the_first_compiled_and_trains_to_the_same_bits(tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    assert first["kept"].startswith(str(tmp_path / "jaxrec" / "compiled"))
    assert first["hits"] == 0
    assert second["hits"] >= 5
    assert any(path.name.startswith("jit_chunk-") for path in Path(first["kept"]).iterdir())
    without = start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (without["kept"], without["hits"]) == ("None", 0)
    assert first["digest"] == second["digest"] == without["digest"]


class Settings:
    """JAX's settings of the cache, as a process starts with them."""

    def __init__(self, directory=None, enabled=True):
        self.jax_enable_compilation_cache = enabled
        self.jax_compilation_cache_dir = directory
        self.changed = {}

    def update(self, name, value):
        self.changed[name] = value


@pytest.fixture
def settings(monkeypatch, tmp_path):
    import jax

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = Settings()
    monkeypatch.setattr(jax, "config", fresh)
    return fresh


def test_directory_is_the_users_alone(settings, tmp_path):
    directory = compilation.enable_compilation_cache()
    assert directory.parent == tmp_path / "jaxrec" / "compiled"
    assert directory.stat().st_mode & 0o077 == 0
    assert settings.changed["jax_compilation_cache_dir"] == str(directory)
    assert settings.changed["jax_persistent_cache_min_compile_time_secs"] == compilation.LEAST_SECONDS


def test_jaxs_own_settings_have_the_last_word(settings, monkeypatch, tmp_path):
    settings.jax_compilation_cache_dir = "/elsewhere"
    assert compilation.enable_compilation_cache() == Path("/elsewhere")
    settings.jax_enable_compilation_cache = False
    assert compilation.enable_compilation_cache() is None
    settings.jax_enable_compilation_cache, settings.jax_compilation_cache_dir = True, None
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    compilation.enable_compilation_cache()
    assert list(settings.changed) == ["jax_compilation_cache_dir"]


def test_a_home_that_cannot_be_written_is_no_error(settings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation.enable_compilation_cache() is None
    assert not settings.changed
