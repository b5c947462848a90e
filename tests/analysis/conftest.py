"""Evaluation cases made by hand."""

from tests.evaluation.conftest import make_cases  # noqa: F401
