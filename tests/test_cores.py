"""Processors that a process may use, not those of the machine."""

import os
from pathlib import Path

import pytest

from jaxrec import cores
from jaxrec.cores import available_cores, physical_cores
from jaxrec.evaluation import parallel

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process")


def test_no_more_than_the_machine_has():
    assert 1 <= physical_cores() <= available_cores() <= (os.cpu_count() or 1)


@needs_affinity
def test_a_pinned_process_has_the_processors_it_is_pinned_to():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == physical_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cores() >= physical_cores() >= 1


@pytest.mark.parametrize(
    ("quota", "want"),
    [("max 100000", 4), ("100000 100000", 1), ("150000 100000", 2), ("900000 100000", 4), ("none", 4)],
)
def test_a_container_allows_a_part(monkeypatch, quota, want):
    monkeypatch.setattr(cores, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(Path, "read_text", lambda path: quota)
    assert available_cores() == want


def test_batches_at_once_are_those_of_available_cores(monkeypatch):
    monkeypatch.setattr(parallel.jax, "device_count", lambda: 1)
    for available, at_once in ((1, 1), (2, 2), (64, parallel.MOST_WORKERS)):
        monkeypatch.setattr(parallel, "available_cores", lambda available=available: available)
        assert parallel.workers() == at_once
        assert parallel.workers(waiting=1) == min(at_once + 1, parallel.MOST_WORKERS)
