"""Samplers draw from their stated distribution, and mark what must not be drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import SamplingInputs
from jaxrec.objectives.samplers import SAMPLERS, Request, draw, inverse_transform, is_seen

V, D = 6, 2
COUNTS = np.array([3.0, 8, 1, 0, 4, 2, 5])  # entry 0 is ignored; item 3 never occurs
TARGETS = np.array([2, 5, 5, 1, 0])
WEIGHTS = np.array([1.0, 1, 1, 0.5, 1])
ALPHA, SHARE = 0.5, 0.3
POWERS = np.where(COUNTS[1:] > 0, COUNTS[1:] ** ALPHA, 0)

DISTRIBUTIONS = {
    "uniform": np.ones(V) / V,
    "popularity": POWERS / POWERS.sum(),
    "mixed": SHARE / V + (1 - SHARE) * POWERS / POWERS.sum(),
    "in-batch": np.bincount(TARGETS[:4], minlength=V + 1)[1:] / 4,
}


def request(key, n_negatives, shared, exclude=None):
    rng = np.random.default_rng(0)
    return Request(
        jnp.asarray(rng.normal(size=(len(TARGETS), D)), jnp.float32),
        ItemTable(
            jnp.asarray(rng.normal(size=(V + 1, D)), jnp.float32), jnp.arange(V + 1, dtype=jnp.float32) / 4
        ),
        jnp.asarray(TARGETS, jnp.int32),
        jnp.asarray(WEIGHTS * (TARGETS > 0), jnp.float32),
        key,
        SamplingInputs(jnp.asarray(COUNTS, jnp.float32), *(exclude or (None, None, None))),
        n_negatives,
        shared,
        ALPHA,
        SHARE,
    )


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_frequencies_follow_the_distribution(name, shared, key):
    n = 4000 if shared else 1000
    drawn = SAMPLERS[name](request(key, n, shared))
    items, log_expected = (np.asarray(x) for x in drawn)
    assert items.dtype == np.int32
    assert items.shape == (1 if shared else len(TARGETS), n)
    for row, target in zip(items, TARGETS, strict=False):
        p = DISTRIBUTIONS[name].copy()
        if target == 0 and not shared:
            continue  # draws for a position without a target are never looked at
        if name == "uniform" and not shared:
            p[target - 1] = 0
            p /= p.sum()
        observed = np.bincount(row, minlength=V + 1)
        assert observed[0] == 0
        possible = p > 0
        assert observed[1:][~possible].sum() == 0
        if possible.sum() > 1:
            assert stats.chisquare(observed[1:][possible], n * p[possible]).pvalue > 1e-3
    if shared:
        np.testing.assert_allclose(np.exp(log_expected[0]), n * DISTRIBUTIONS[name][items[0] - 1], rtol=1e-5)
    elif name == "uniform":
        np.testing.assert_allclose(np.exp(log_expected), n / (V - 1), rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_hard_negatives_are_the_best_of_the_model(shared, key):
    given = request(key, 3, shared)
    drawn = draw("hard", given, exclude_seen=False)
    hidden = np.asarray(given.hidden)
    if shared:
        weights = np.asarray(given.weights)
        hidden = (weights[:, None] * hidden).sum(axis=0, keepdims=True) / weights.sum()
    scores = hidden @ np.asarray(given.table.vectors).T + np.asarray(given.table.bias)
    scores[:, 0] = -np.inf
    np.testing.assert_array_equal(drawn.items, np.argsort(-scores, axis=1)[:, :3])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_target_and_seen_items_are_marked(name, shared, key):
    users = np.array([0, 1, 1, 2, -1])
    seen = [[1, 2, 6], [5], []]
    exclude = (
        jnp.asarray(users, jnp.int32),
        jnp.asarray(np.concatenate(seen), jnp.int32),
        jnp.asarray([0, 3, 4, 4], jnp.int32),
    )
    given = request(key, 5, shared, exclude)
    plain, strict = draw(name, given, exclude_seen=False), draw(name, given, exclude_seen=True)
    items = np.broadcast_to(plain.items, plain.valid.shape)
    np.testing.assert_array_equal(plain.items, strict.items)
    np.testing.assert_array_equal(plain.valid, items != TARGETS[:, None])
    own = np.array([[u >= 0 and i in seen[u] for i in row] for u, row in zip(users, items, strict=True)])
    np.testing.assert_array_equal(strict.valid, (items != TARGETS[:, None]) & ~own)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"in-batch"}))
def test_as_many_draws_as_items_are_the_catalogue(name, key):
    drawn = draw(name, request(key, V + 3, True), exclude_seen=False)
    np.testing.assert_array_equal(drawn.items, [np.arange(1, V + 1)])
    assert not np.asarray(drawn.log_expected).any()


def test_binary_search_equals_membership():
    rng = np.random.default_rng(1)
    seen = [np.unique(rng.integers(1, 40, size)) for size in (0, 1, 7, 25, 0)]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in seen])])
    users = np.array([0, 1, 2, 3, 4, -1])
    items = np.tile(np.arange(1, 41, dtype=np.int32), (6, 1))
    given = SamplingInputs(
        None,
        jnp.asarray(users, jnp.int32),
        jnp.asarray(np.concatenate(seen), jnp.int32),
        jnp.asarray(offsets, jnp.int32),
    )
    want = [[u >= 0 and i in seen[u] for i in range(1, 41)] for u in users]
    np.testing.assert_array_equal(jax.jit(is_seen)(jnp.asarray(items), given), want)


def test_inverse_transform_never_leaves_the_distribution():
    cumulative = jnp.cumsum(jnp.array([0.0, 0.1, 0.2, 0.0, 0.7, 0.0, 0.0]))
    draws = jnp.array([[0.0, 0.05, 0.1, 0.5, 1.0 - 2**-24, 1.0]])
    assert inverse_transform(cumulative, draws).tolist() == [[1, 1, 2, 4, 4, 4]]


def test_a_catalogue_of_one_item_has_no_negative(key):
    given = request(key, 2, False)
    table = ItemTable(given.table.vectors[:2], None)
    one = given._replace(table=table, targets=jnp.ones_like(given.targets), n_negatives=1)
    assert not np.asarray(draw("uniform", one, exclude_seen=False).valid).any()
