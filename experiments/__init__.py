"""Experiments: studies, benchmarks and their records."""
