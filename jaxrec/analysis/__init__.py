"""Analyses of finished runs: computation, table and figure of each in one file."""
