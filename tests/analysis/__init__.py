"""Tests of analyses of finished runs."""
