"""Samplers draw from their stated distribution, avoid what they must, and state how often they draw an item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec.errors import UnknownNameError
from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import SAMPLERS, BPRConfig, LossInputs, SamplingInputs
from jaxrec.objectives.samplers import (
    Request,
    SortedLists,
    avoided_mass,
    draw,
    draw_by_weight,
    inverse_transform,
)
from tests.objectives import table

V, D = 7, 2
COUNTS = np.array([3.0, 8, 1, 0, 4, 2, 5, 6])  # entry 0 is ignored; item 3 never occurs
TARGETS = np.array([2, 5, 5, 1, 0, 7])
WEIGHTS = np.array([1.0, 1, 1, 0.5, 1, 1])
REAL = TARGETS > 0
USERS = np.array([0, 1, 1, 2, -1, 3])
SEEN = [[1, 2, 6], [5, 7], [], [1, 3, 4]]  # the target of the last position is none of its user's items
ALPHA, SMOOTHING, SHARE = 0.5, 0.5, 0.3
POWERS = (COUNTS[1:] + SMOOTHING) ** ALPHA

#: Probability of each item, without anything to avoid.
DISTRIBUTIONS = {
    "uniform": np.ones(V) / V,
    "popularity": POWERS / POWERS.sum(),
    "mixed": SHARE / V + (1 - SHARE) * POWERS / POWERS.sum(),
    "in-batch": np.bincount(TARGETS[REAL], minlength=V + 1)[1:] / REAL.sum(),
}
#: Probability that the expected counts are computed from, where it is another.
EXPECTED = DISTRIBUTIONS | {"in-batch": np.maximum(COUNTS[1:], 1) / COUNTS[1:].sum()}


def request(key, n_negatives, shared, exclude_seen=False, smoothing=SMOOTHING):
    rng = np.random.default_rng(0)
    inputs = LossInputs(
        jnp.asarray(rng.normal(size=(len(TARGETS), D)), jnp.float32),
        ItemTable(
            jnp.asarray(rng.normal(size=(V + 1, D)), jnp.float32), jnp.arange(V + 1, dtype=jnp.float32) / 4
        ),
        jnp.asarray(TARGETS, jnp.int32),
        jnp.asarray(WEIGHTS * REAL, jnp.float32),
        key,
        SamplingInputs(
            jnp.asarray(COUNTS, jnp.float32),
            jnp.asarray(USERS, jnp.int32),
            jnp.asarray(np.concatenate(SEEN), jnp.int32),
            jnp.asarray([0, 3, 5, 5, 8], jnp.int32),
        ),
    )
    return Request(inputs, n_negatives, shared, exclude_seen, ALPHA, smoothing, SHARE)


def avoided_by(position, exclude_seen):
    """Items that the negatives of a position must not be, by plain Python."""
    seen = SEEN[USERS[position]] if exclude_seen and USERS[position] >= 0 else []
    return {int(TARGETS[position]), *seen} - {0}


def observed(items):
    return np.bincount(items, minlength=V + 1)


def assert_drawn_from(items, p):
    """Item ids against probabilities [V]; those of probability 0 never occur."""
    frequency = observed(items)
    assert frequency[0] == 0
    assert not frequency[1:][p == 0].any()
    if (p > 0).sum() > 1:
        assert stats.chisquare(frequency[1:][p > 0], len(items) * p[p > 0]).pvalue > 1e-3


def many(name, key, repeats, shared, exclude_seen=False, smoothing=SMOOTHING):
    """(items, log expected, valid), each [repeats, N or 1, V - 1]: as many as items would be the catalogue, no sample."""

    def program(key):
        return tuple(draw(name, request(key, V - 1, shared, exclude_seen, smoothing)))

    return [np.asarray(x) for x in jax.jit(jax.vmap(program))(jax.random.split(key, repeats))]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_shared_draws_follow_the_distribution(name, key):
    items, log_expected, _ = many(name, key, 700, shared=True)
    assert items.dtype == np.int32
    assert items.shape[1:] == (1, V - 1)
    assert_drawn_from(items.ravel(), DISTRIBUTIONS[name])
    np.testing.assert_allclose(np.exp(log_expected), (V - 1) * EXPECTED[name][items - 1], rtol=1e-5)


@pytest.mark.parametrize("exclude_seen", [False, True], ids=["target", "target and seen"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_own_draws_avoid_exactly_what_they_must(name, exclude_seen, key):
    """The distribution restricted to the allowed items, and expected counts by its probabilities."""
    drawn = many(name, key, 500, shared=False, exclude_seen=exclude_seen)
    items, log_expected, valid = (np.concatenate(list(x), axis=1) for x in drawn)
    for i in np.flatnonzero(REAL):
        avoided = avoided_by(i, exclude_seen)
        allowed = np.array([item not in avoided for item in range(1, V + 1)])
        p = np.where(allowed, DISTRIBUTIONS[name], 0.0)
        if p.sum() == 0:
            assert not valid[i].any()
            continue
        # A draw still a hit after all rounds has probability below (1 - p.sum())^16.
        assert valid[i].mean() >= 1 - 2 * (1 - p.sum()) ** 16 - 1e-6
        assert set(items[i][valid[i]]) <= set(np.flatnonzero(p) + 1)
        assert_drawn_from(items[i][valid[i]], p / p.sum())
        q = EXPECTED[name]
        want = (V - 1) * q[items[i] - 1] / (1 - q[~allowed].sum())
        np.testing.assert_allclose(np.exp(log_expected[i])[valid[i]], want[valid[i]], rtol=1e-4)


def test_a_user_who_has_seen_everything_gets_no_negative(key):
    """Also one who has seen everything but the target."""

    def program(inputs, name):
        return draw(name, Request(inputs, 3, exclude_seen=True))

    for n_seen in (V, V - 1):
        seen = np.arange(1, n_seen + 1)
        everything = request(key, 3, shared=False, exclude_seen=True)
        sampling = everything.inputs.sampling._replace(
            users=jnp.zeros(len(TARGETS), jnp.int32),
            seen_items=jnp.asarray(seen, jnp.int32),
            seen_offsets=jnp.asarray([0, len(seen)], jnp.int32),
        )
        targets = jnp.full(len(TARGETS), V, jnp.int32)
        inputs = everything.inputs._replace(sampling=sampling, targets=targets)
        for name in SAMPLERS:
            drawn = jax.jit(program, static_argnums=1)(inputs, name)
            assert not np.asarray(drawn.valid).any(), name
            assert np.isfinite(drawn.log_expected).all(), name
            assert (np.asarray(drawn.items) >= 1).all(), name
            assert (np.asarray(drawn.items) <= V).all(), name


def test_lists_are_searched_to_the_last_place_that_int32_has():
    """The sum of two places of a long log is above int32; the items themselves, 8 GiB, are not read here."""
    start = np.int32(2**31 - 1 - 40) + np.zeros(2, np.int32)
    lists = SortedLists(jnp.arange(64, dtype=jnp.int32), jnp.asarray(start), jnp.asarray(start + 40))
    count = jax.jit(lambda: lists.count_while(lambda _, index: index < 30, 1))()
    np.testing.assert_array_equal(count, [[30], [30]])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_hard_negatives_are_the_best_of_the_model(shared, key):
    given = request(key, 3, shared)
    drawn = draw("hard", given)
    hidden, weights = np.asarray(given.inputs.hidden), np.asarray(given.inputs.weights)
    if shared:
        hidden = (weights[:, None] * hidden).sum(axis=0, keepdims=True) / weights.sum()
    scores = hidden @ np.asarray(given.inputs.table.vectors).T + np.asarray(given.inputs.table.bias)
    scores[:, 0] = -np.inf
    if not shared:
        scores[np.arange(len(TARGETS)), TARGETS] = -np.inf
        assert np.asarray(drawn.valid)[REAL].all()
    np.testing.assert_array_equal(drawn.items, np.argsort(-scores, axis=1)[:, :3])


def test_hard_negatives_look_beyond_seen_items(key):
    given = request(key, 3, shared=False, exclude_seen=True)
    items, _, valid = draw("hard", given)
    scores = np.asarray(given.inputs.hidden) @ np.asarray(given.inputs.table.vectors).T
    scores = scores + np.asarray(given.inputs.table.bias)
    for i in np.flatnonzero(REAL):
        allowed = [item for item in range(1, V + 1) if item not in avoided_by(i, True)]
        best = sorted(allowed, key=lambda item: -scores[i, item])[:3]
        assert np.asarray(items)[i].tolist()[: len(best)] == best
        assert np.asarray(valid)[i].sum() == len(best)


@pytest.mark.parametrize("name", SAMPLERS)
def test_hits_of_shared_draws_are_masked(name, key):
    @jax.jit
    def drawn(key):
        return [tuple(draw(name, request(key, 5, shared=True, exclude_seen=seen))) for seen in (False, True)]

    for exclude_seen, (items, _, valid) in enumerate(jax.device_get(drawn(key))):
        want = [[item not in avoided_by(i, exclude_seen) for item in items[0]] for i in range(6)]
        np.testing.assert_array_equal(valid[REAL], np.array(want)[REAL])


def test_a_shared_draw_is_searched_in_the_list_of_every_position():
    """More runs of neighbours with one user than are searched at a time; the last positions have no user."""
    rng = np.random.default_rng(0)
    lists = [
        np.sort(rng.choice(np.arange(1, 60), size, replace=False)) for size in (0, 1, 7, 59, *range(9, 40))
    ]
    offsets = np.cumsum([0, *map(len, lists)])
    users = np.repeat(rng.integers(0, len(lists), 90), rng.integers(1, 4, 90))
    users[-5:] = -1
    n = len(users)
    inputs = LossInputs(
        jnp.zeros((n, D)),
        ItemTable(jnp.zeros((60, D))),
        jnp.zeros(n, jnp.int32),
        jnp.zeros(n),
        sampling=SamplingInputs(
            None, *(jnp.asarray(x, jnp.int32) for x in (users, np.concatenate(lists), offsets))
        ),
    )
    items = rng.integers(1, 60, (1, 30))
    got = jax.jit(lambda items: Request(inputs, 30, True, True).avoided(items))(jnp.asarray(items, jnp.int32))
    want = [[user >= 0 and item in set(lists[user]) for item in items[0]] for user in users]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"in-batch"}))
def test_as_many_draws_as_items_are_the_catalogue(name, key):
    drawn = draw(name, request(key, V + 3, shared=False))
    np.testing.assert_array_equal(drawn.items, [np.arange(1, V + 1)])
    assert not np.asarray(drawn.log_expected).any()


def test_smoothing_lets_an_item_without_count_be_drawn(key):
    for smoothing in (0.0, 2.0):
        items = many("popularity", key, 500, shared=True, smoothing=smoothing)[0].ravel()
        p = (COUNTS[1:] + smoothing) ** ALPHA * (COUNTS[1:] + smoothing > 0)
        assert_drawn_from(items, p / p.sum())
        assert (observed(items)[3] > 0) == (smoothing > 0)


@pytest.mark.parametrize("name", ["uniform", "popularity", "mixed"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_the_sum_of_exponentials_is_unbiased(name, shared, key):
    """Σ exp(s - log expected) over the draws that count, against the sum over all allowed items, count 0 included."""
    scores = np.random.default_rng(1).normal(size=V + 1)
    items, log_expected, valid = many(name, key, 2000, shared, exclude_seen=True)
    sums = (np.exp(scores[items] - log_expected) * valid).sum(axis=2)
    for i in np.flatnonzero(REAL):
        allowed = [item for item in range(1, V + 1) if item not in avoided_by(i, True)]
        error = sums[:, i].mean() - np.exp(scores[allowed]).sum()
        assert abs(error) < 4 * sums[:, i].std() / np.sqrt(len(sums)) + 1e-3, (i, error)


def test_in_batch_sums_are_unbiased_over_random_batches(key):
    """Targets drawn as often as training has them; the sum is over the items that training has (Yi et al.)."""
    scores = np.random.default_rng(1).normal(size=V + 1)
    p = COUNTS[1:] / COUNTS[1:].sum()
    given = request(key, 3, shared=True)

    @jax.jit
    def estimate(key):
        batch, draws = jax.random.split(key)
        targets = jax.random.choice(batch, V, (6,), p=jnp.asarray(p, jnp.float32)).astype(jnp.int32) + 1
        inputs = given.inputs._replace(targets=targets, weights=jnp.ones(6), key=draws)
        items, log_expected, _ = draw("in-batch", given._replace(inputs=inputs))
        return jnp.sum(jnp.exp(jnp.asarray(scores, jnp.float32)[items] - log_expected))

    sums = np.asarray(jax.vmap(estimate)(jax.random.split(key, 4000)))
    want = np.exp(scores[1:])[COUNTS[1:] > 0].sum()
    assert abs(sums.mean() - want) < 4 * sums.std() / np.sqrt(len(sums))


def test_avoided_mass_is_the_probability_of_what_is_avoided(key):
    p = np.concatenate([[0], DISTRIBUTIONS["popularity"]])
    for exclude_seen in (False, True):
        got = avoided_mass(request(key, 3, False, exclude_seen), jnp.asarray(p, jnp.float32))
        want = [p[sorted(avoided_by(i, exclude_seen))].sum() for i in range(len(TARGETS))]
        np.testing.assert_allclose(np.asarray(got)[REAL], np.array(want)[REAL], rtol=1e-6)


def test_binary_search_equals_membership_and_counts():
    rng = np.random.default_rng(1)
    lists = [np.unique(rng.integers(1, 40, size)) for size in (0, 1, 7, 25, 0)]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in lists])])
    users = np.array([0, 1, 2, 3, 4, -1])
    items = np.tile(np.arange(1, 41, dtype=np.int32), (6, 1))
    sampling = SamplingInputs(
        None,
        jnp.asarray(users, jnp.int32),
        jnp.asarray(np.concatenate(lists), jnp.int32),
        jnp.asarray(offsets, jnp.int32),
    )
    seen = SortedLists.of(LossInputs(None, None, None, None, None, sampling))
    want = [[u >= 0 and i in lists[u] for i in range(1, 41)] for u in users]
    np.testing.assert_array_equal(jax.jit(seen.contains)(jnp.asarray(items)), want)
    below = jax.jit(lambda: seen.count_while(lambda item, _: item < jnp.asarray(items), 40))()
    np.testing.assert_array_equal(below[2], [(lists[2] < i).sum() for i in range(1, 41)])
    np.testing.assert_array_equal(seen.sizes(), [0, 1, len(lists[2]), len(lists[3]), 0, 0])


def test_inverse_transform_never_leaves_the_distribution():
    cumulative = jnp.cumsum(jnp.array([0.0, 0.1, 0.2, 0.0, 0.7, 0.0, 0.0]))
    draws = jnp.array([[0.0, 0.05, 0.1, 0.5, 1.0 - 2**-24, 1.0]])
    assert inverse_transform(cumulative, draws).tolist() == [[1, 1, 2, 4, 4, 4]]
    skipped = inverse_transform(cumulative, jnp.tile(draws, (3, 1)), jnp.array([4, 1, 0], jnp.int32))
    assert set(skipped[0].tolist()) <= {1, 2, 4}  # 4 at the very end of the sum alone, by rounding
    assert skipped[0].tolist()[:4] == [1, 1, 1, 2]
    assert skipped[1].tolist() == [2, 2, 2, 4, 4, 4]
    assert skipped[2].tolist() == [1, 1, 2, 4, 4, 4]


def test_a_catalogue_of_one_item_has_no_negative(key):
    given = request(key, 1, False)
    inputs = given.inputs._replace(
        table=ItemTable(given.inputs.table.vectors[:2], None), targets=jnp.ones_like(given.inputs.targets)
    )
    assert not np.asarray(draw("uniform", given._replace(inputs=inputs)).valid).any()


def test_a_sampler_of_the_user_trains_a_loss(key):
    """Registered outside the package, drawing only the items with even ids."""

    @SAMPLERS.register("even")
    def even(request):
        ids = jnp.arange(request.n_items + 1)
        return draw_by_weight(request, jnp.where((ids > 0) & (ids % 2 == 0), 1.0, 0.0))

    try:
        config = BPRConfig(sampler="even", n_negatives=3)
        total, _, gradients = table.evaluate(config, *table.problem(), key)
        assert total > 0
        odd_and_no_target = [3, 5, 7]
        assert not np.asarray(gradients[1])[odd_and_no_target].any()
    finally:
        del SAMPLERS._parts["even"]
    with pytest.raises(UnknownNameError, match="unknown sampler 'even'"):
        BPRConfig(sampler="even")
