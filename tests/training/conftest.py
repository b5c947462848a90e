"""optax promotes types itself (an int32 step count against float32 decay), so these tests allow it."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def standard_promotion():
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)
