"""Benchmarks: time and memory of one part of the library."""
