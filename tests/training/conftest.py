"""Fixtures of the tests that train."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def promotion(standard_promotion):
    """Let optax promote types."""
