"""Ranks and lists against float64, on ties, across tiles and meshes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.stretches import ranges
from jaxrec.errors import ConfigError, DataError, NonFiniteError
from jaxrec.evaluation import ranking_tiles
from jaxrec.evaluation.metrics import ranking_metrics
from jaxrec.evaluation.ranking import candidate_table, rank_targets, score_table, tile_items, top_k
from jaxrec.evaluation.seen import SeenItems, as_seen, repeated_targets, seen_items
from jaxrec.evaluation.tie_order import tie_keys, tie_seed
from jaxrec.nn.item_table import ItemTable
from tests.evaluation import oracle


def mesh(data, item):
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(
        (data, item), ("data", "item"), axis_types=types, devices=jax.devices()[: data * item]
    )


def problem(numbers, n_rows=13, n_items=91, width=5, seed=0):
    rng = np.random.default_rng(seed)
    hidden, vectors, bias = numbers(rng, n_rows, n_items, width)
    targets = rng.integers(1, n_items + 1, n_rows).astype(np.int32)
    seen = rng.integers(0, n_items + 1, (n_rows, 9)).astype(np.int32)
    seen[::3, 0] = targets[::3]  # a target that was seen is in no list, and missed
    return hidden, vectors, bias, targets, seen


@pytest.mark.parametrize("numbers", [oracle.whole_numbers, oracle.normal_numbers])
@pytest.mark.parametrize(("item_chunk", "row_chunk"), [(7, 4), (16, 512), (4096, 8)])
def test_ranks_and_lists_equal_the_oracle(numbers, item_chunk, row_chunk):
    hidden, vectors, bias, targets, seen = problem(numbers)
    struck = oracle.strike(oracle.score_matrix(hidden, vectors, bias), seen)
    table = ItemTable(jnp.asarray(vectors), jnp.asarray(bias))
    chunks = {"item_chunk": item_chunk, "row_chunk": row_chunk}
    np.testing.assert_array_equal(
        rank_targets(hidden, table, targets, seen, **chunks), oracle.ranks(struck, targets)
    )
    scores, items = top_k(jnp.asarray(hidden), table, 20, seen, **chunks)
    np.testing.assert_array_equal(items, oracle.order(struck)[:, :20])
    missed = (seen == targets[:, None]).any(axis=1)
    assert 3 < missed.sum() < len(missed)
    assert not (items == targets[:, None])[missed].any()
    np.testing.assert_allclose(scores, -np.sort(-struck, axis=1)[:, :20], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 8), (2, 4)])
def test_a_mesh_gives_the_same_answer(shape):
    hidden, vectors, bias, targets, seen = problem(oracle.whole_numbers)
    table = ItemTable(vectors, bias)
    ranks = rank_targets(hidden, table, targets, seen)
    scores, items = top_k(hidden, table, 15, seen)
    for chunk in (5, 4096):
        sharded = candidate_table(table, item_chunk=chunk, mesh=mesh(*shape))
        np.testing.assert_array_equal(rank_targets(hidden, sharded, targets, seen), ranks)
        got = top_k(hidden, sharded, 15, seen)
        np.testing.assert_array_equal(got[1], items)
        np.testing.assert_array_equal(got[0], scores)


def test_lists_longer_than_a_devices_share_are_complete():
    hidden, vectors, bias, _, seen = problem(oracle.whole_numbers, n_items=21)
    want = top_k(hidden, ItemTable(vectors, bias), 21, seen)
    got = top_k(hidden, ItemTable(vectors, bias), 21, seen, mesh=mesh(1, 8))
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize(
    ("n_items", "width", "chunks"),
    [(700, 64, {"item_chunk": 100, "row_chunk": 32}), (5000, 16, {"item_chunk": 2048}), (300, 50, {})],
)
@pytest.mark.parametrize("ties", [False, True])
def test_a_target_has_rank_r_exactly_when_it_stands_at_place_r(n_items, width, chunks, ties):
    """On float32 scores, where another way to compute the target's score would differ in the last bit."""
    rng = np.random.default_rng(3)
    hidden, vectors, bias = oracle.normal_numbers(rng, 150, n_items, width)
    if ties:  # every item has a twin elsewhere
        vectors[n_items // 2 + 1 :] = vectors[1 : n_items - n_items // 2 + 1]
        bias[:] = 0
    near = oracle.order(oracle.strike(oracle.score_matrix(hidden, vectors, bias), np.zeros((150, 0), int)))[
        :, :40
    ]
    targets = near[np.arange(150), rng.integers(0, 40, 150)].astype(np.int32)
    ranks = rank_targets(hidden, ItemTable(vectors, bias), targets, **chunks)
    _, items = top_k(hidden, ItemTable(vectors, bias), 30, **chunks)
    inside = ranks <= 30
    assert 60 < inside.sum() < 150, "with ties the twins share the places"
    np.testing.assert_array_equal((items == targets[:, None]).any(axis=1), inside)
    np.testing.assert_array_equal(items[inside, ranks[inside] - 1], targets[inside])


@pytest.mark.parametrize(
    "direction", ["rising", "falling", "random", "one block", "few rows", "half of the rows", "equal peaks"]
)
def test_the_search_for_new_entrants_misses_none(direction):
    """Whatever the order in which good items come: tiles with none, few, some or many entrants in the lists of few or
    many rows.
    """
    rng = np.random.default_rng(5)
    n_items, rows = 8 * 2048 - 1, 24
    scores = rng.integers(0, 300, (rows, n_items + 1)).astype(np.float32)
    if direction in ("rising", "falling"):
        scores += np.arange(n_items + 1, dtype=np.float32) * (1 if direction == "rising" else -1)
    if direction == "one block":
        scores[:, 5000:5064] += 1000
    if direction in ("few rows", "half of the rows"):
        late = [5, 17] if direction == "few rows" else range(0, rows, 2)
        for row in late:
            for tile in range(8):  # two entrants in two blocks of every tile
                scores[row, tile * 2048 + np.array([70, 900])] += 1000 * (tile + 1)
    if direction == "equal peaks":
        scores[:, ::32] = 400
    table = score_table(n_items, item_chunk=2048)
    want = oracle.order(oracle.strike(scores.astype(np.float64), np.zeros((rows, 0), int)))
    for k in (12, 60):
        np.testing.assert_array_equal(top_k(scores, table, k).items, want[:, :k])


@pytest.mark.parametrize("rows", [300, 4096, 4097, 50_000])
def test_sizes_of_tiles_that_are_chosen_by_themselves(rows):
    chosen = tile_items(rows, 0)
    assert chosen == (rows if rows <= 4096 else 2048)
    assert tile_items(rows, 1000) == min(rows, 1000)


@pytest.mark.parametrize("seed", [0, 0x3F2A9C51])
def test_tie_keys_are_those_of_whole_numbers(seed):
    items = np.array([0, 1, 2, 3, 77, 4095, 2**20, 2**31 - 1])
    want = [oracle.tie_key(int(item), seed) for item in items]
    assert tie_keys(items, seed).tolist() == want
    assert np.asarray(tie_keys(jnp.asarray(items.astype(np.int32)), seed, jnp)).tolist() == want
    many = tie_keys(np.arange(200_000), seed)
    assert len(np.unique(many)) == len(many)
    assert abs(np.corrcoef(np.arange(200_000), many)[0, 1]) < 0.01
    assert 0 <= tie_seed("f" * 64) < 2**31


def test_a_constant_scorer_has_the_hits_of_chance_where_low_numbers_are_popular():
    """Items are numbered by first appearance, so targets are mostly low numbers; an order by number would find them."""
    rng = np.random.default_rng(1)
    n_items, n_rows, k = 800, 6000, 10
    targets = np.minimum(rng.zipf(1.4, n_rows), n_items).astype(np.int32)
    by_number = (targets <= k).mean()
    table = ItemTable(np.zeros((n_items + 1, 4), np.float32))
    hits = []
    for seed in (1, 2, 3):
        ranks = rank_targets(
            np.ones((n_rows, 4), np.float32), candidate_table(table, item_chunk=256, tie_seed=seed), targets
        )
        hits.append((ranks <= k).mean())
    assert by_number > 0.5, "the catalogue of this test is ordered by popularity"
    assert np.mean(hits) < 20 * k / n_items
    every = np.arange(1, n_items + 1, dtype=np.int32)
    ranks = rank_targets(np.ones((n_items, 4), np.float32), table, every, item_chunk=64)
    np.testing.assert_array_equal(np.sort(ranks), every)
    lists = top_k(np.ones((2, 4), np.float32), table, n_items, item_chunk=64).items
    np.testing.assert_array_equal(lists[0, ranks - 1], every)
    assert abs(np.corrcoef(ranks, every)[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [None, (1, 2), (2, 4)])
@pytest.mark.parametrize("seed", [0, 12345])
def test_lists_of_many_ties_are_the_oracle_s(shape, seed):
    """Few distinct scores, so that ties straddle tiles, blocks, devices and the end of the list."""
    rng = np.random.default_rng(2)
    n_items, rows = 2500, 8
    vectors = rng.integers(0, 2, (n_items + 1, 2)).astype(np.float32)
    vectors[1:400] = 0
    hidden = np.array([[1, 0], [0, 1], [1, 1], [-1, 1], [0, 0], [-1, -1], [2, 1], [1, 2]], np.float32)
    seen = rng.integers(0, n_items + 1, (rows, 30))
    scores = oracle.strike(oracle.score_matrix(hidden, vectors), seen)
    options = {"item_chunk": 512, "mesh": None if shape is None else mesh(*shape), "tie_seed": seed}
    table = candidate_table(ItemTable(vectors), **options)
    for k in (1, 20, 700):
        np.testing.assert_array_equal(top_k(hidden, table, k, seen).items, oracle.order(scores, seed)[:, :k])
    targets = rng.integers(1, n_items + 1, rows)
    np.testing.assert_array_equal(
        rank_targets(hidden, table, targets, seen), oracle.ranks(scores, targets, seed)
    )


def metrics_of_lists(items, targets, k):
    """HR, NDCG and MRR from lists alone, by their definitions."""
    places = [np.flatnonzero(row[:k] == target) for row, target in zip(items, targets, strict=True)]
    ranks = [int(place[0]) + 1 if len(place) else None for place in places]
    return {
        f"HR@{k}": np.mean([rank is not None for rank in ranks]),
        f"NDCG@{k}": np.mean([0 if rank is None else 1 / np.log2(1 + rank) for rank in ranks]),
        f"MRR@{k}": np.mean([0 if rank is None else 1 / rank for rank in ranks]),
    }


@pytest.mark.parametrize("shape", [None, (2, 4)])
@pytest.mark.parametrize("numbers", [oracle.whole_numbers, oracle.normal_numbers])
def test_metrics_of_ranks_are_metrics_of_lists(numbers, shape):
    """HR, NDCG and MRR from exact ranks equal those of the lists that `top_k` serves, with targets among the seen."""
    hidden, vectors, bias, targets, seen = problem(numbers, n_rows=64, n_items=300)
    table = candidate_table(
        ItemTable(vectors, bias), item_chunk=64, mesh=None if shape is None else mesh(*shape)
    )
    found = ranking_metrics(rank_targets(hidden, table, targets, seen), (1, 5, 20))
    lists = top_k(hidden, table, 20, seen).items
    for k in (1, 5, 20):
        for name, value in metrics_of_lists(lists, targets, k).items():
            assert found[name] == pytest.approx(value, abs=1e-12), name
    whole = top_k(hidden, table, 300, seen).items
    assert found["MRR"] == pytest.approx(metrics_of_lists(whole, targets, 300)["MRR@300"], abs=1e-12)


def test_a_row_with_fewer_candidates_than_k_ends_with_none():
    vectors = np.arange(5, dtype=np.float32)[:, None]
    scores, items = top_k(np.ones((1, 1), np.float32), ItemTable(vectors), 4, np.array([[1, 3]]))
    np.testing.assert_array_equal(items, [[4, 2, 0, 0]])
    np.testing.assert_array_equal(scores, [[4.0, 2.0, -np.inf, -np.inf]])


def test_older_codes_rules_seen_items_at_zero_and_padding_rankable():
    hidden, vectors, bias, targets, seen = problem(oracle.whole_numbers)
    scores = oracle.score_matrix(hidden, vectors, bias)
    for row, items in enumerate(seen):
        scores[row, items[items > 0]] = 0.0  # a seen target too
    got = rank_targets(
        hidden, ItemTable(vectors, bias), targets, seen, item_chunk=16, seen_rule="zero", rank_padding=True
    )
    np.testing.assert_array_equal(got, oracle.ranks(scores, targets))
    scores[:, 0] = -np.inf
    got = rank_targets(hidden, ItemTable(vectors, bias), targets, seen, seen_rule="zero")
    np.testing.assert_array_equal(got, oracle.ranks(scores, targets))


def test_bfloat16_states_are_scored_in_float32():
    rng = np.random.default_rng(0)
    hidden, vectors, _ = oracle.normal_numbers(rng, 8, 50, 4)
    low = jnp.asarray(hidden, jnp.bfloat16)
    targets = np.arange(1, 9)
    got = rank_targets(low, ItemTable(vectors), targets)
    want = rank_targets(np.asarray(low.astype(jnp.float32)), ItemTable(vectors), targets)
    np.testing.assert_array_equal(got, want)
    assert top_k(low, ItemTable(vectors), 3)[0].dtype == np.float32


def test_calls_of_one_shape_compile_once():
    hidden, vectors, bias, targets, seen = problem(oracle.normal_numbers, n_rows=40)
    seen = seen[:, :4]  # so that every batch has the same room for excluded items
    table = ItemTable(vectors, bias)
    rank_targets(hidden, table, targets, seen, row_chunk=16)
    before = ranking_tiles.rank._cache_size()
    for n in (40, 39, 33):
        rank_targets(hidden[:n] * 2, table, targets[:n], seen[:n], row_chunk=16)
    assert ranking_tiles.rank._cache_size() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["hidden", "vectors", "bias"])
def test_scores_that_are_not_finite_are_refused(bad, where):
    hidden, vectors, bias, targets, _ = problem(oracle.normal_numbers)
    {"hidden": hidden, "vectors": vectors, "bias": bias[:, None]}[where][2, 0] = bad
    name = "hidden states" if where == "hidden" else f"item table's {where}"
    with pytest.raises(NonFiniteError, match=f"{name} must be finite"):
        rank_targets(hidden, ItemTable(vectors, bias), targets)
    with pytest.raises(NonFiniteError, match="must be finite"):
        top_k(hidden, ItemTable(vectors, bias), 3)


def test_scores_that_would_overflow_are_refused():
    with pytest.raises(NonFiniteError, match="scores must fit in float32"):
        top_k(np.full((2, 3), 1e30, np.float32), ItemTable(np.full((5, 3), 1e30, np.float32)), 1)


def test_bad_requests_are_refused():
    hidden, vectors, bias, targets, seen = problem(oracle.normal_numbers)
    table = ItemTable(vectors, bias)
    with pytest.raises(ConfigError, match="k must be from 1 to the catalogue's 91 items, got 92"):
        top_k(hidden, table, 92)
    with pytest.raises(ConfigError, match="k must be from 1"):
        top_k(hidden, table, 0)
    with pytest.raises(DataError, match="targets must be item ids from 1 to 91, got 0 to 5"):
        rank_targets(hidden[:2], table, [0, 5])
    with pytest.raises(DataError, match=r"one item for each of the 13 hidden states, got shape \(2,\)"):
        rank_targets(hidden, table, [1, 2])
    with pytest.raises(DataError, match=r"hidden must be \[rows, 5\].*got shape \(13, 4\)"):
        rank_targets(hidden[:, :4], table, targets)
    with pytest.raises(DataError, match="seen must have one list for each of the 13 rows, got 3"):
        rank_targets(hidden, table, targets, seen[:3])
    with pytest.raises(DataError, match="seen must hold item ids from 1 to 91, got 1 to 99"):
        rank_targets(hidden[:1], table, targets[:1], np.array([[1, 99]]))
    with pytest.raises(DataError, match="seen must be SeenItems or a padded"):
        rank_targets(hidden, table, targets, np.zeros(3, np.int32))
    with pytest.raises(ConfigError, match="item_chunk must be at least 1, or 0 for automatic, got -1"):
        rank_targets(hidden, table, targets, item_chunk=-1)
    with pytest.raises(ConfigError, match="row_chunk must be at least 1, got 0"):
        rank_targets(hidden, table, targets, row_chunk=0)
    with pytest.raises(ConfigError, match="mesh must have the axes 'data' and 'item'"):
        candidate_table(table, mesh=jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))


def test_no_rows_give_no_ranks():
    table = ItemTable(np.ones((4, 2), np.float32))
    assert rank_targets(np.zeros((0, 2), np.float32), table, np.zeros(0, np.int32)).shape == (0,)
    assert top_k(np.zeros((0, 2), np.float32), table, 2)[1].shape == (0, 2)


def test_seen_items_are_the_whole_history(make_cases):
    items = np.array([3, 1, 3, 2, 5, 4], np.int32)
    cases = make_cases([0, 3], [4, 6], [[2, 9], [5]])
    seen = seen_items(cases, items)
    assert [seen.items[a:b].tolist() for a, b in zip(seen.offsets, seen.offsets[1:], strict=False)] == [
        [3, 1, 3, 2],
        [2, 5, 4],
    ]
    assert repeated_targets(seen, cases.targets, cases.target_offsets).tolist() == [True, False, True]
    again = seen.select(np.array([1, 0, 1]))
    assert again.items.tolist() == [2, 5, 4, 3, 1, 3, 2, 2, 5, 4]
    np.testing.assert_array_equal(ranges(np.array([5, 0, 2]), np.array([2, 0, 3])), [5, 6, 2, 3, 4])
    padded = as_seen(np.array([[0, 2], [0, 0], [4, 1]]), 3, 5)
    assert padded.offsets.tolist() == [0, 1, 1, 3]
    assert isinstance(padded, SeenItems)
