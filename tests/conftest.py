"""Strict JAX for every test: eight host devices, no silent promotion of types or ranks.

Compiling takes most of the tests' time, so LLVM is told not to optimise. Tests of killed runs, of several processes and of
kept programs start processes that compile as users do; ``XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest`` does
so everywhere.
"""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests train the same few programs again and again.
COMPILED = tempfile.mkdtemp(prefix="jaxrec-tests-")
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure() -> None:
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
