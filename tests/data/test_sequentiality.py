"""Sequential rules against counting loops, and the verdict on logs with and without order."""

import json

import numpy as np
import pytest

from jaxrec.data import SequenceDataset, sequentiality
from jaxrec.errors import ConfigError


def rules_by_loops(sequences, length, min_support, min_confidence):
    """{(ids): (support, confidence)} by sets of users."""
    holders, followed = {}, {}
    for user, sequence in enumerate(sequences):
        for start in range(len(sequence) - length + 1):
            gram = tuple(sequence[start : start + length])
            holders.setdefault(gram, set()).add(user)
            followed.setdefault(gram[:-1], set()).add(user)
    rules = {gram: (len(users), len(users) / len(followed[gram[:-1]])) for gram, users in holders.items()}
    return {g: rule for g, rule in rules.items() if rule[0] >= min_support and rule[1] >= min_confidence}


def predictability_by_loops(sequences, length, min_support):
    right = {}
    for user, sequence in enumerate(sequences):
        for start in range(len(sequence) - length + 1):
            *left, last = sequence[start : start + length]
            right.setdefault(tuple(left), {}).setdefault(last, set()).add(user)
    enough = [r for r in right.values() if len(set.union(*r.values())) >= min_support]
    total = sum(len(users) for r in enough for users in r.values())
    return sum(max(map(len, r.values())) for r in enough) / total


@pytest.mark.parametrize("seed", range(6))
def test_rules_against_loops(seed, random_dataset):
    data = random_dataset(seed, users=40, items=4, longest=9)
    found = sequentiality(data, min_support=3, min_confidence=0.3, shuffles=1, n_strongest=1000)
    sequences = [[data.item_ids[i - 1] for i in data.history(u)] for u in range(data.n_users)]
    for length in (2, 3):
        expected = rules_by_loops(sequences, length, 3, 0.3)
        assert expected
        assert {
            (*r.left, r.right): (r.support, pytest.approx(r.confidence)) for r in found.strongest[length]
        } == expected
        assert found.rules[length] == len(expected)
        assert found.predictability[length] == pytest.approx(predictability_by_loops(sequences, length, 3))
    json.dumps(found.to_dict())


def test_shuffles_keep_each_user_s_items(random_dataset):
    """With one item per user no order exists, so every copy has the rules of the log."""
    items = np.repeat(np.arange(1, 5, dtype=np.int32), 30)
    data = SequenceDataset(
        items, np.arange(0, 121, 3).astype(np.int64), [str(u) for u in range(40)], list("abcd")
    )
    found = sequentiality(data, min_support=2, shuffles=3)
    assert found.rules == {2: 4, 3: 4}
    assert found.shuffled == {2: (4, 4, 4), 3: (4, 4, 4)}
    assert found.remaining(2) == 1
    assert "no sign that the order carries information" in str(found)


def test_walks_are_sequential_and_shuffled_walks_are_not():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 50, 200)
    walks = (starts[:, None] + np.arange(12)) % 50 + 1
    offsets = np.arange(0, 200 * 12 + 1, 12).astype(np.int64)
    ids = [str(u) for u in range(200)], [str(i) for i in range(50)]
    found = sequentiality(SequenceDataset(walks.reshape(-1).astype(np.int32), offsets, *ids))
    assert found.rules == {2: 50, 3: 50}
    assert found.predictability == {2: 1, 3: 1}
    assert "the order carries much information" in str(found)
    assert (
        sequentiality(
            SequenceDataset(walks.reshape(-1).astype(np.int32), offsets, *ids), min_confidence=0.3
        ).remaining(2)
        < 0.2
    )
    mixed = rng.permuted(walks, axis=1).reshape(-1).astype(np.int32)
    assert "no sign that the order carries information" in str(
        sequentiality(SequenceDataset(mixed, offsets, *ids))
    )


def test_nothing_to_count():
    one = SequenceDataset(np.array([1], np.int32), np.array([0, 1], np.int64), ["u"], ["i"])
    assert "too few repeated transitions" in str(sequentiality(one))
    for options in ({"min_support": 0}, {"shuffles": 0}, {"shuffles": 2**63}, {"min_confidence": 1.5}):
        (name,) = options
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be"):
            sequentiality(one, **options)
