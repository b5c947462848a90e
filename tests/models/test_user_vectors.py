"""Vectors of users: swapping, hiding and dropping of whole sequences, new users, refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.attention.prefix_keys import with_prefix
from jaxrec.config import RunConfig
from jaxrec.errors import ConfigError, DataError
from jaxrec.models import GRU4RecConfig, TransformerConfig
from jaxrec.models.attentive import prefix_context
from jaxrec.models.users import UserOptions, UserVectors, modulated, user_vectors
from jaxrec.nn.spec import DataSpec
from jaxrec.optim import OptimizerConfig, user_mask
from tests.attention.variants import QUICK
from tests.models.cases import batch_of, transformer

USERS, WIDTH, ROWS = 8, 16, 400
#: Rows of two sequences (columns 0-2 and 3-4) and one position of padding.
SEGMENTS = np.tile(np.array([[1, 1, 1, 2, 2, 0]], np.int32), (ROWS, 1))
OWNERS = np.where(SEGMENTS > 0, (SEGMENTS - 1) * 2, -1)
#: User 5 is not in training.
KNOWN = np.array([1, 1, 1, 1, 1, 0, 1, 1], np.float32)


@functools.lru_cache
def looked_up(train=True, seed=0, users=None, **options):
    """The vectors of `OWNERS`, of a table whose row u holds u + 1; the one of new users holds 100."""
    module = UserVectors(UserOptions("added", **options), USERS, WIDTH, jax.nn.initializers.ones)
    table = np.repeat(np.arange(1.0, USERS + 1, dtype=np.float32)[:, None], WIDTH, axis=1)
    params = {"table": table, "known": KNOWN}
    if options.get("user_unknown"):
        params["new"] = np.full(WIDTH, 100.0, np.float32)
    owners = OWNERS if users is None else np.full_like(OWNERS, users)
    vectors = module.apply(
        {"params": params}, owners, SEGMENTS, train, rngs={"dropout": jax.random.key(seed)}
    )
    return np.asarray(vectors)


def per_sequence(vectors):
    """[R, 2, W], after a check that all positions of a sequence have the same vector."""
    for part in (slice(0, 3), slice(3, 5)):
        np.testing.assert_array_equal(
            vectors[:, part], np.repeat(vectors[:, part][:, :1], part.stop - part.start, 1)
        )
    return vectors[:, [0, 3]]


def test_swapping_draws_another_known_user_for_whole_sequences():
    swapped = per_sequence(looked_up(user_swap=0.5))[..., 0] - 1
    first = swapped[:, 0]
    others = first[first != 0]
    # A swap may draw the user itself, one time in seven.
    assert abs(len(others) / ROWS - 0.5 * 6 / 7) < 0.1
    assert sorted(set(others)) == [1, 2, 3, 4, 6, 7], "never the user whom training does not have"
    assert np.bincount(others.astype(int)).max() < 2.5 * len(others) / 6
    assert abs(np.corrcoef(first != 0, swapped[:, 1] != 2)[0, 1]) < 0.2, (
        "sequences of a row swap by themselves"
    )
    np.testing.assert_array_equal(looked_up(user_swap=0.5), looked_up(seed=0, user_swap=0.5))
    assert not np.array_equal(looked_up(user_swap=0.5), looked_up(seed=1, user_swap=0.5))
    np.testing.assert_array_equal(per_sequence(looked_up(False, user_swap=0.5))[0, :, 0], [1, 3])


def test_hidden_users_get_the_learned_vector():
    vectors = per_sequence(looked_up(user_unknown=0.3))[..., 0]
    assert abs((vectors == 100).mean() - 0.3) < 0.08
    assert set(np.unique(vectors)) == {1, 3, 100}
    assert (looked_up(False, users=-1, user_unknown=0.3) == 100).all()
    assert (looked_up(False, users=5, user_unknown=0.3) == 100).all()


@pytest.mark.parametrize("init", ["normal", "xavier"])
def test_the_vector_of_hidden_users_starts_on_the_scale_of_the_known_ones(init):
    encoder = TransformerConfig(width=64, layers=1, user="film", user_unknown=0.1, init=init).build(
        DataSpec(9, 6, n_users=300)
    )
    batch = batch_of(transformer("x"), [[(0, (1, 2, 3))]])
    users = jax.jit(encoder.init, compiler_options=QUICK)(jax.random.key(0), batch)["params"]["users"]
    assert users["new"].shape == (64,)
    assert float(np.std(users["new"])) == pytest.approx(float(np.std(users["table"])), rel=0.3)


def test_new_users_get_the_mean_of_the_known_ones():
    mean = np.arange(1, USERS + 1)[KNOWN > 0].mean()
    for user in (-1, 5):
        np.testing.assert_allclose(looked_up(False, users=user), mean, rtol=1e-6)
    assert (looked_up(False, users=7) == 8).all()
    assert np.isnan(looked_up(False, users=USERS)).all(), "an index beyond the table is no user"


def test_dropout_has_one_mask_for_each_sequence():
    vectors = per_sequence(looked_up(user_dropout=0.25))
    assert abs((vectors == 0).mean() - 0.25) < 0.02
    assert set(np.unique(vectors[:, 0])) == {0, np.float32(4 / 3)}
    assert not np.array_equal(vectors[:, 0] == 0, vectors[:, 1] == 0)


class Film(nn.Module):
    """`modulated` alone."""

    @nn.compact
    def __call__(self, states, vectors):
        return modulated(states, vectors, nn.initializers.zeros, jnp.float32)


def test_film_scales_and_shifts_by_the_vector():
    rng = np.random.default_rng(0)
    states, vectors, kernel = (
        rng.normal(size=size).astype(np.float32) for size in ((2, 3, 4), (2, 3, 5), (5, 8))
    )
    got = jax.jit(Film().apply)({"params": {"user_film": {"kernel": kernel}}}, states, vectors)
    for row in range(2):
        for t in range(3):
            u, h = vectors[row, t].astype(np.float64), states[row, t]
            expected = [h[d] * (1 + u @ kernel[:, d]) + u @ kernel[:, 4 + d] for d in range(4)]
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [None, [[4, 1, 5]]])
def test_a_prefix_is_a_key_of_its_own_sequence_alone(queries):
    """A row of two sequences (columns 1-3 and 4-5) behind padding."""
    segments = np.array([[0, 1, 1, 1, 2, 2]], np.int32)
    rng = np.random.default_rng(0)
    k, v, prefix_k, prefix_v = rng.normal(size=(4, 1, 6, 1, 2)).astype(np.float32)
    asked = np.arange(6)[None] if queries is None else np.array(queries)
    mask = rng.random((1, 1, asked.shape[1], 6)) < 0.5
    chosen = None if queries is None else jnp.asarray(queries, jnp.int32)
    keys, values, sees = jax.jit(with_prefix)(k, v, prefix_k, prefix_v, segments, mask, chosen)
    np.testing.assert_array_equal(keys, np.concatenate([prefix_k, k], axis=1))
    np.testing.assert_array_equal(values, np.concatenate([prefix_v, v], axis=1))
    np.testing.assert_array_equal(sees[..., 6:], mask)
    for place, column in enumerate(asked[0]):
        own = {0: [], 1: [1], 2: [4]}[int(segments[0, column])]
        assert np.flatnonzero(sees[0, 0, place, :6]).tolist() == own
    assert np.asarray(prefix_context(3).allowed()).tolist() == [[[True]]] * 3, "it sees itself alone"


def test_which_parameters_are_vectors_of_users():
    params = {"users": {"table": np.ones((2, 3)), "known": np.ones(2)}, "items": {"table": np.ones((4, 3))}}
    assert user_mask(params) == {"users": {"table": True, "known": False}, "items": {"table": False}}
    assert user_vectors(params) is params["users"]["table"]
    assert TransformerConfig(user="film").needs_users
    assert not TransformerConfig().needs_users
    assert not GRU4RecConfig().needs_users


@pytest.mark.slow
def test_swapping_trains_the_users_that_are_drawn():
    """The gradient of the table is that of the rows that the sequences were given."""
    case = transformer("swap", user="added", user_swap=0.9, layers=1)
    encoder = case.config.build(DataSpec(9, 6, n_users=50))
    batch = batch_of(case, [[(0, (1, 2, 3))]] * 20)
    batch = batch._replace(users=jnp.where(batch.segments > 0, 7, -1))
    params = encoder.init(jax.random.key(0), batch)["params"]

    def loss(params):
        return encoder.apply({"params": params}, batch, True, rngs={"dropout": jax.random.key(1)})[
            ..., 0
        ].sum()

    rows = np.flatnonzero(np.abs(jax.grad(loss)(params)["users"]["table"]).sum(axis=1))
    assert 5 < len(rows) <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_swap": 0.1}, "--encoder.user-swap 0.1 has nothing to act on"),
        ({"user_width": 8}, "--encoder.user-width 8 has nothing to act on"),
        ({"user": "first"}, "--encoder.user must be one of none, added, prefix, film"),
        ({"user": "prefix", "attention": ATTENTION["hstu"]()}, "works with attention 'softmax' alone"),
        ({"user": "prefix", "positions": "rotary"}, "expected positions outside the attention"),
        ({"user": "prefix", "padding_keys": "zero"}, "exclude each other"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**options)


def test_refusals_of_data_and_decay():
    with pytest.raises(ConfigError, match=r"--encoder\.user added has a vector for each user"):
        TransformerConfig(user="added").build(DataSpec(9, 6))
    with pytest.raises(ConfigError, match=r"--optimizer\.user-decay 0\.1 has no vectors of users"):
        RunConfig(optimizer=OptimizerConfig(user_decay=0.1))
    encoder = TransformerConfig(user="film", width=8).build(DataSpec(9, 6, n_users=2))
    batch = batch_of(transformer("x"), [[(0, (1, 2, 3))]])._replace(users=None)
    with pytest.raises(DataError, match=r"expected Batch.users int32\[B, L\], got None"):
        encoder.init(jax.random.key(0), batch)
