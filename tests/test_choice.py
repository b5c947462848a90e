"""Choosing the best item of a row of scores, and drawing one from their softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn.choice import BLOCK, best_index, draw_index

NEARLY_ONE = np.nextafter(np.float32(1), np.float32(0))
draw = jax.jit(draw_index)


def scores_with_gaps(seed=0, rows=40, width=2 * BLOCK + 45):
    """float32[rows, width], a third of them -inf, whole blocks and both ends among these in some rows."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (rows, width)).astype(np.float32)
    scores[rng.random(scores.shape) < 1 / 3] = -np.inf
    scores[::4, :BLOCK] = scores[1::4, BLOCK : 2 * BLOCK] = scores[2::4, -60:] = -np.inf
    return scores


def inverted(scores, uniform):
    """Bounds in the cumulative distribution, float64[rows, width], and the index that each uniform number falls on."""
    exact = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    bounds = np.cumsum(exact, axis=1) / exact.sum(axis=1, keepdims=True)
    return bounds, np.array(
        [np.searchsorted(row, u, side="right") for row, u in zip(bounds, uniform, strict=True)]
    )


def test_a_draw_inverts_the_cumulative_distribution():
    """Where the number is not within rounding of a bound, the index is that of exact arithmetic."""
    compared = 0
    for seed in range(20):
        scores = scores_with_gaps(seed=seed)
        uniform = np.random.default_rng(100 + seed).random(len(scores)).astype(np.float32)
        bounds, expected = inverted(scores, uniform.astype(np.float64))
        clear = np.abs(bounds - uniform[:, None]).min(axis=1) > 1e-5
        compared += int(clear.sum())
        np.testing.assert_array_equal(np.asarray(draw(scores, uniform))[clear], expected[clear])
    assert compared > 700


@pytest.mark.parametrize("number", [0.0, 1e-7, NEARLY_ONE])
def test_the_ends_of_the_distribution_are_candidates(number):
    """The least and the greatest random number draw the first and the last candidate, or one within rounding of it."""
    scores = scores_with_gaps()
    drawn = np.asarray(draw(scores, jnp.full(len(scores), number, jnp.float32)))
    assert np.isfinite(scores[np.arange(len(scores)), drawn]).all()
    first = np.isfinite(scores).argmax(axis=1)
    last = scores.shape[1] - 1 - np.isfinite(scores)[:, ::-1].argmax(axis=1)
    if number == 0:
        np.testing.assert_array_equal(drawn, first)
    if number == NEARLY_ONE:
        bounds, _ = inverted(scores, np.ones(len(scores)))
        assert (1 - bounds[np.arange(len(scores)), drawn] < 1e-5).all()
        assert (drawn <= last).all()


def test_columns_of_no_candidates_after_the_others_change_no_draw():
    """So that a table with rows for a mesh gives the same draws as one without."""
    scores, uniform = scores_with_gaps(), np.random.default_rng(3).random(40).astype(np.float32)
    wider = np.pad(scores, ((0, 0), (0, 3 * BLOCK)), constant_values=-np.inf)
    np.testing.assert_array_equal(draw(scores, uniform), draw(wider, uniform))


def test_a_row_without_candidates_gives_the_first_column():
    scores = np.full((2, 7), -np.inf, np.float32)
    scores[1, 5] = 3.0
    assert draw(scores, np.float32([0.9, 0.9])).tolist() == [0, 5]


def test_the_best_of_equal_ones_is_the_first():
    scores = np.float32([[1, 3, 3, 2], [-np.inf, -np.inf, 0, -1], [-np.inf] * 4])
    assert best_index(scores).tolist() == [1, 2, 0]
