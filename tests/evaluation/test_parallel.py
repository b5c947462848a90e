"""Batches under way at once: order, what runs alone, and errors."""

import threading
import time

import pytest

from jaxrec.evaluation.parallel import map_programs


def test_new_programs_run_alone_and_results_keep_their_order():
    running, most, alone = set(), [], {}
    lock = threading.Lock()
    prefix = object()  # keys of this test alone

    def work(batch):
        number, _ = batch
        with lock:
            running.add(number)
            most.append(len(running))
            alone[number] = len(running) == 1
        time.sleep(0.01)
        with lock:
            alone[number] = alone[number] and len(running) == 1
            running.remove(number)
        return number * 10

    batches = [(number, program) for number, program in enumerate("aabbabab")]
    keys = [(prefix, program) for _, program in batches]
    assert map_programs(work, batches, keys, 3) == [number * 10 for number in range(8)]
    assert alone[0]
    assert alone[2], "the first batch of each program compiles it"
    assert 2 <= max(most) <= 3
    most.clear()
    assert map_programs(work, batches, keys, 3) == [number * 10 for number in range(8)]
    assert max(most[:3]) >= 2, "compiled by now"
    most.clear()
    assert map_programs(work, batches, [*keys], 1) == [number * 10 for number in range(8)]
    assert max(most) == 1


def test_an_error_of_a_batch_is_raised():
    def work(batch):
        if batch == 3:
            raise ValueError("third")
        return batch

    with pytest.raises(ValueError, match="third"):
        map_programs(work, [1, 2, 3, 4], [("error", 0)] * 4, 2)
