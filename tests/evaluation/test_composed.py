"""Lists over items of codes against sorting all sums, ties and removed items included."""

import numpy as np
import pytest

from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation import composed
from jaxrec.evaluation.composed import ComposedTable
from jaxrec.evaluation.ranking import candidate_table, top_k
from jaxrec.evaluation.seen import SeenItems
from jaxrec.evaluation.tie_order import tie_keys
from jaxrec.nn.item_table import ItemTable

V, C, K = 900, 3, 20


def table_of(side_by_side, with_bias=False, seed=0, items=V):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, K, (items, C)).astype(np.uint8)
    codes[5] = codes[6] = codes[7]  # items without a difference
    tables = rng.normal(size=(C, K, 4)).astype(np.float32)
    bias = rng.normal(size=items).astype(np.float32) if with_bias else None
    return ComposedTable(codes, tables, side_by_side, bias, tie_seed=3)


def states_of(table, count=6, seed=1):
    """Random ones, and one near an item, as a trained model's are."""
    width = 4 * C if table.side_by_side else 4
    states = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    states[0] = 3 * vectors_of(table)[5]
    return states


def vectors_of(table):
    rows = [[table.tables[c, code] for c, code in enumerate(codes)] for codes in table.codes]
    return np.array([np.concatenate(row) if table.side_by_side else np.sum(row, axis=0) for row in rows])


def brute(table, partial, k, removed):
    """Sums in the order of the codes in float32, sorted by score and key."""
    scores = np.empty(table.n_items, np.float32)
    for item, codes in enumerate(table.codes):
        total = partial[0][codes[0]]
        for c in range(1, C):
            total = np.float32(total + partial[c][codes[c]])
        scores[item] = total if table.bias is None else np.float32(total + table.bias[item])
    keys = tie_keys(np.arange(1, table.n_items + 1), table.tie_seed)
    order = [i for i in np.lexsort((keys, -scores)) if i + 1 not in set(removed)]
    return scores[order[:k]], np.array(order[:k]) + 1


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("method", ["sum", "prune"])
def test_lists_are_those_of_all_sums_to_the_bit(monkeypatch, method, side_by_side, with_bias):
    monkeypatch.setattr(composed, "_GIVE_UP", 10.0)
    monkeypatch.setattr(composed, "_LEAST_ITEMS", 50)
    monkeypatch.setattr(composed, "_SCORES", 3 * V)
    table = table_of(side_by_side, with_bias)
    states = states_of(table)
    partial = table.partial_scores(states)
    best = brute(table, partial[0], 4, [])[1]
    removed = [best[:2].tolist(), [], [1, 2, 3], [], [], []]
    seen = SeenItems(np.cumsum([0, *map(len, removed)]), np.concatenate(removed).astype(np.int32))
    lists = table.top_k(states, 10, seen, method)
    for row in range(len(states)):
        scores, items = brute(table, partial[row], 10, removed[row])
        np.testing.assert_array_equal(lists.items[row], items)
        np.testing.assert_array_equal(lists.scores[row], scores)


def test_pruning_looks_at_few_items_where_the_state_is_near_one(monkeypatch):
    monkeypatch.setattr(composed, "_LEAST_ITEMS", 50)
    table = table_of(side_by_side=True)
    looked = []
    monkeypatch.setattr(ComposedTable, "scores", lambda self, partial: pytest.fail("all items were scored"))
    exact = ComposedTable._exact
    monkeypatch.setattr(
        ComposedTable,
        "_exact",
        lambda self, partial, items: looked.append(len(items)) or exact(self, partial, items),
    )
    partial = table.partial_scores(states_of(table)[:1])
    lists = table.top_k(states_of(table)[:1], 3, None, "prune")
    assert sum(looked) < V / 2
    np.testing.assert_array_equal(lists.items[0], brute(table, partial[0], 3, [])[1])


def test_hopeless_bounds_score_all_items():
    table = table_of(side_by_side=False)
    states = np.full((1, 4), 1e-3, np.float32)
    np.testing.assert_array_equal(table.top_k(states, 50, None, "prune").items, table.top_k(states, 50).items)
    everything = table.top_k(states, V, SeenItems(np.array([0, 1]), np.array([4], np.int32)), "prune")
    assert everything.items[0, -1] == 0, "one item is no candidate"
    assert np.isneginf(everything.scores[0, -1])


def test_lists_are_those_of_vectors_up_to_rounding():
    table = table_of(side_by_side=True)
    states = states_of(table)
    vectors = np.concatenate([np.zeros((1, 12)), vectors_of(table)]).astype(np.float32)
    dense = top_k(states, candidate_table(ItemTable(vectors), tie_seed=table.tie_seed), 10)
    sums = table.top_k(states, 10)
    np.testing.assert_allclose(dense.scores, sums.scores, atol=1e-5)
    assert (dense.items == sums.items).mean() > 0.95
    assert table.nbytes == V * C + 4 * C * K * 4


def test_mistakes_are_named():
    table = table_of(side_by_side=True)
    with pytest.raises(ConfigError, match=r"k must be from 1 to the catalogue's 900 items, got 901"):
        table.top_k(states_of(table), 901)
    with pytest.raises(DataError, match=r"states must be \[rows, 12\]"):
        table.top_k(np.zeros((2, 4), np.float32), 3)
