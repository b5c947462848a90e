"""Outputs of a finished run: results.json, ranks, figures and the report page."""
