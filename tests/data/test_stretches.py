"""Places, blocks and members of stretches of a log, against Python's lists and sets."""

import numpy as np
import pytest

from jaxrec.data import stretches
from jaxrec.data.stretches import blocks, held, ranges


def test_ranges_are_the_places_of_each_stretch_in_turn():
    assert ranges(np.array([5, 0, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
    assert ranges(np.zeros(0, int), np.zeros(0, int)).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_adjacent_and_bounded(seed, monkeypatch):
    monkeypatch.setattr(stretches, "BLOCK", 10)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 25, rng.integers(0, 30))
    listed = list(blocks(lengths))
    assert [row for block in listed for row in range(block.start, block.stop)] == list(range(len(lengths)))
    for block in listed:
        *others, last = lengths[block].tolist()
        assert sum(others) + last < 10 + max([*others, last])


@pytest.mark.parametrize("limits", [(1 << 22, 1 << 12), (7, 1 << 12), (7, 5), (1, 0)])
@pytest.mark.parametrize("most", [1, 2, 9])
@pytest.mark.parametrize("seed", range(5))
def test_items_are_found_in_their_own_stretch_alone(seed, most, limits, monkeypatch):
    for name, limit in zip(("BLOCK", "LONG"), limits, strict=True):
        monkeypatch.setattr(stretches, name, limit)
    rng = np.random.default_rng(seed)
    log = rng.integers(1, 12, 80).astype(np.int32)
    starts = rng.integers(0, 60, 30)
    stops = starts + rng.integers(0, 20, 30)
    sizes = rng.integers(0, most, 30, endpoint=True) if most > 1 else np.ones(30, int)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    items = rng.integers(1, 14, offsets[-1]).astype(np.int32)
    want = [
        int(item) in set(log[a:b].tolist())
        for a, b, low, high in zip(starts, stops, offsets[:-1], offsets[1:], strict=True)
        for item in items[low:high]
    ]
    assert held(log, starts, stops, items, offsets).tolist() == want
    assert True in want
    assert False in want
    if most == 1:
        assert held(log, starts, stops, items).tolist() == want
    assert held(log, starts[:0], stops[:0], items[:0], offsets[:1]).tolist() == []
