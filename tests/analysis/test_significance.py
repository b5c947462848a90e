"""Tests that reject, and intervals that cover, as often as they say; corrections by hand."""

import numpy as np
import pytest
from scipy import stats

from jaxrec.analysis.significance import (
    FEW_SEEDS,
    bootstrap_means,
    bootstrap_p_value,
    holm,
    mean_interval,
    minimal_detectable_difference,
    paired_bootstrap,
    paired_permutation,
)
from jaxrec.errors import ConfigError, DataError


def hits(rng, *shape):
    return (rng.random(shape) < 0.2).astype(float)


def test_p_values_are_uniform_where_models_are_alike():
    rng = np.random.default_rng(0)
    bootstrap, permutation = [], []
    for trial in range(200):
        a, b = rng.normal(size=(2, 80))
        bootstrap.append(paired_bootstrap(a, b, resamples=300, seed=trial).p_value)
        permutation.append(paired_permutation(a, b, resamples=300, seed=trial))
    for p_values in (bootstrap, permutation):
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
        assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1


def test_cases_of_a_user_are_drawn_together():
    """Alike cases of one user say little more than one of them: taken as users they reject most of the time."""
    rng = np.random.default_rng(6)
    p_values, permuted, by_case = [], [], []
    for trial in range(200):
        sizes = rng.integers(1, 20, 40)
        users = rng.permutation(np.repeat(np.arange(40) * 3, sizes))
        b = rng.normal(size=120)[users] + 0.1 * rng.normal(size=len(users))
        a = np.zeros(len(users))
        p_values.append(paired_bootstrap(a, b, users=users, resamples=300, seed=trial).p_value)
        permuted.append(paired_permutation(a, b, users=users, resamples=300, seed=trial))
        by_case.append(paired_bootstrap(a, b, resamples=300, seed=trial).p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.12
    assert 0.01 <= np.mean(np.array(permuted) < 0.05) <= 0.1
    assert np.mean(np.array(by_case) < 0.05) > 0.4
    effect = paired_bootstrap(a, b, users=users, resamples=4000)
    totals = np.array([(b[users == user] - b.mean()).sum() for user in np.unique(users)])
    error = np.sqrt(40 / 39 * (totals**2).sum()) / len(users)
    assert effect.difference == pytest.approx(b.mean())
    assert effect.high - effect.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert minimal_detectable_difference(a, b, users=users) == pytest.approx(2.8016 * error, rel=1e-4)


def test_one_case_each_is_the_test_over_users_to_the_bit():
    rng = np.random.default_rng(7)
    a, b, users = rng.normal(size=(2, 50)), rng.normal(size=(3, 50)), rng.permutation(50)
    assert paired_bootstrap(a, b, users=users, resamples=200) == paired_bootstrap(a, b, resamples=200)
    assert paired_permutation(a, b, users=users) == paired_permutation(a, b)
    assert minimal_detectable_difference(a, b, users=users) == minimal_detectable_difference(a, b)


def test_intervals_cover_the_truth_with_seeds_nested():
    """Seeds differ as much as users do: an interval over users alone would miss most of the time."""
    rng = np.random.default_rng(1)
    covered, users_alone, trials, truth = 0, 0, 120, 0.1
    for trial in range(trials):
        users = rng.normal(size=(1, 200))
        a = users + 0.1 * rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 200))
        b = users + 0.1 * rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 200)) + truth
        effect = paired_bootstrap(a, b, resamples=400, seed=trial)
        covered += effect.low <= truth <= effect.high
        plain = paired_bootstrap(a.mean(axis=0), b.mean(axis=0), resamples=400, seed=trial)
        users_alone += plain.low <= truth <= plain.high
    assert covered / trials > 0.85
    assert users_alone / trials < 0.6


def test_few_seeds_that_differ_much_reject_too_often():
    """As the docstring says and `compare` warns: seeds alone make the difference here."""

    def rejected(seeds):
        rng, count = np.random.default_rng(5), 0
        for trial in range(300):
            a, b = rng.normal(size=(2, seeds, 1)) + 0.01 * rng.normal(size=(2, seeds, 50))
            count += paired_bootstrap(a, b, resamples=200, seed=trial).p_value < 0.05
        return count / 300

    two, three, five = map(rejected, (2, 3, FEW_SEEDS))
    assert 0.15 < two < 0.28
    assert 0.1 < three < 0.2
    assert five < 0.12


def test_seeds_that_serve_other_users_well_reject_too_seldom():
    """As the docstring says: users and seeds together make the difference here, and the bootstrap counts it three times."""
    rng = np.random.default_rng(11)
    differences, deviations, rejected, covered = [], [], 0, 0
    for trial in range(200):
        a, b = rng.normal(size=(2, 5, 60))
        effect = paired_bootstrap(a, b, resamples=200, seed=trial)
        differences.append(effect.difference)
        deviations.append((effect.high - effect.low) / (2 * 1.96))
        rejected += effect.p_value < 0.05
        covered += effect.low <= 0 <= effect.high
    truth = np.sqrt(2 / (5 * 60))
    assert np.std(differences) == pytest.approx(truth, rel=0.12)
    assert np.mean(deviations) == pytest.approx(np.sqrt(3) * truth, rel=0.06)
    assert rejected <= 4
    assert covered >= 196


def test_the_same_models_asked_in_two_ways_share_their_seeds():
    """What a seed brings to both sides cancels; what the change does to each model differently stays in the interval."""
    rng = np.random.default_rng(3)
    covered, widths, trials, truth = 0, [], 120, 0.1
    for trial in range(trials):
        before = rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 200))
        after = before + truth + 0.1 * rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 200))
        paired = paired_bootstrap(before, after, paired_seeds=True, resamples=400, seed=trial)
        apart = paired_bootstrap(before, after, resamples=400, seed=trial)
        assert paired.difference == pytest.approx(apart.difference)
        covered += paired.low <= truth <= paired.high
        widths.append((paired.high - paired.low) / (apart.high - apart.low))
    assert covered / trials > 0.85
    assert np.median(widths) < 0.3
    with pytest.raises(DataError, match="the same seeds to be paired, got 5 and 4"):
        paired_bootstrap(before, after[:4], paired_seeds=True)


def test_bootstrap_of_one_seed_agrees_with_the_normal_interval():
    rng = np.random.default_rng(2)
    a = hits(rng, 2000)
    b = np.where(rng.random(2000) < 0.9, a, hits(rng, 2000))
    effect = paired_bootstrap(a, b, resamples=4000)
    error = (b - a).std(ddof=1) / np.sqrt(2000)
    assert effect.difference == pytest.approx((b - a).mean())
    assert effect.low == pytest.approx((b - a).mean() - 1.96 * error, abs=0.15 * error)
    assert effect.high == pytest.approx((b - a).mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("several", [False, True])
def test_means_over_shared_resamples_equal_the_loops(several):
    rng = np.random.default_rng(8)
    sizes = rng.integers(1, 5, 30) if several else np.ones(30, int)
    users = rng.permutation(np.repeat(np.arange(30), sizes))
    models = [rng.normal(size=len(users)) for _ in range(3)]
    got = bootstrap_means(models, users=users, resamples=50, seed=3)
    assert got.shape == (3, 50)
    draws = np.random.default_rng(3).integers(0, 30, (50, 30))
    owners = [np.flatnonzero(users == user) for user in range(30)]
    for model, own in zip(models, got, strict=True):
        # With a case each, users are in the order of their cases.
        own_cases = owners if several else np.arange(30)[:, None]
        want = [model[np.concatenate([own_cases[user] for user in drawn])].mean() for drawn in draws]
        np.testing.assert_allclose(own, want, rtol=1e-12)


def test_pairs_of_shared_resamples_are_tested_as_apart():
    rng = np.random.default_rng(9)
    a = rng.normal(size=(1, 300)) + 0.1 * rng.normal(size=(4, 300))
    b = a[:3] + 0.02 + 0.02 * rng.normal(size=(3, 1))
    means = bootstrap_means([a, b], resamples=4000)
    effect = paired_bootstrap(a, b, resamples=4000)
    low, high = np.quantile(means[1] - means[0], [0.025, 0.975])
    width = effect.high - effect.low
    assert (low, high) == pytest.approx((effect.low, effect.high), abs=0.1 * width)
    assert bootstrap_p_value(means[1] - means[0], effect.difference) == pytest.approx(
        effect.p_value, abs=0.04
    )


def test_permutation_equals_every_flip_of_a_small_case():
    difference = np.array([3.0, 1.0, -2.0, 4.0, 0.0, 2.5])
    flips = np.array([[1 if flip >> i & 1 else -1 for i in range(6)] for flip in range(64)])
    exact = (np.abs(flips @ difference) >= abs(difference.sum()) - 1e-9).mean()
    got = paired_permutation(np.zeros(6), difference, resamples=20_000)
    assert got == pytest.approx(exact, abs=0.012)


def test_a_clear_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(3, 400))
    assert paired_bootstrap(a, a + 0.3, resamples=500).p_value < 0.01
    assert paired_permutation(a, a + 0.3, resamples=500) == pytest.approx(1 / 501)
    same = paired_bootstrap(a[0], a[0], resamples=100)
    assert same == (0.0, 0.0, 0.0, 1.0)
    assert paired_permutation(a, a) == 1.0


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    assert holm([]).shape == (0,)


def test_the_detectable_difference_is_detected_in_four_of_five():
    rng = np.random.default_rng(4)
    least = minimal_detectable_difference(np.zeros(100), rng.normal(size=100))
    a = np.zeros(100)
    spread = rng.normal(size=(600, 100))
    least = np.mean([minimal_detectable_difference(a, each) for each in spread])
    found = stats.ttest_1samp(spread + least, 0, axis=1).pvalue < 0.05
    assert 0.74 < found.mean() < 0.86
    # What the first of so many comparisons needs to be certain after Holm's correction.
    for count, times in ((3, 1.2), (13, 1.3), (30, 1.4)):
        corrected = minimal_detectable_difference(a, spread[0], alpha=0.05 / count)
        assert round(corrected / minimal_detectable_difference(a, spread[0]), 1) == times
    one = hits(rng, 1090)
    assert minimal_detectable_difference(one) == pytest.approx(
        2.8016 * np.sqrt(2 * one.var(ddof=1) / 1090), rel=1e-4
    )


def test_the_detectable_difference_has_the_spread_of_seeds_in_it():
    """Over users alone it would be smaller than the interval beside it, and found in a tenth of all cases."""
    rng = np.random.default_rng(10)

    def models(shift=0.0):
        users = rng.normal(size=(1, 100))
        return (
            users + truth + 0.1 * rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 100))
            for truth in (0, shift)
        )

    least = np.mean([minimal_detectable_difference(*models()) for _ in range(60)])
    assert least == pytest.approx(2.8016 * np.sqrt(2 * (0.1**2 / 5 + 2 * 0.1**2 / 500)), rel=0.1)
    found = [
        paired_bootstrap(*models(least), resamples=200, seed=trial).p_value < 0.05 for trial in range(60)
    ]
    assert 0.7 < np.mean(found) < 0.95
    users = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    a, b = rng.normal(size=(2, 4, len(users))) + 0.3 * rng.normal(size=(2, 4, 1))
    for paired in (False, True):
        effect = paired_bootstrap(a, b, users=users, paired_seeds=paired, resamples=4000)
        half = (effect.high - effect.low) / 2
        got = minimal_detectable_difference(a, b, users=users, paired_seeds=paired)
        assert got == pytest.approx(2.8016 / 1.96 * half, rel=0.08)
    assert minimal_detectable_difference(a, a) == 0


def test_mean_interval():
    mean, low, high = mean_interval(np.array([0.0, 1.0, 1.0, 0.0]))
    assert mean == 0.5
    assert high - low == pytest.approx(2 * 1.95996 * np.sqrt(1 / 3) / 2, rel=1e-4)
    assert np.isnan(mean_interval(np.zeros(0))[0])
    # Of thirty users with 2 % hits more than half have none: that is no proof of 0 %.
    mean, *bounds = mean_interval(np.zeros(30))
    assert mean == 0
    assert np.isnan(bounds).all()
    assert np.isnan(mean_interval(np.full(6, 0.1), users=np.repeat(np.arange(3), 2))[1:]).all()


def test_mean_interval_counts_users_and_not_their_cases():
    rng = np.random.default_rng(0)
    values = hits(rng, 40)
    alone = mean_interval(values)
    assert mean_interval(np.repeat(values, 25), users=np.repeat(np.arange(40), 25)) == pytest.approx(alone)
    assert mean_interval(values, users=rng.permutation(40)) == alone
    assert np.isnan(mean_interval(values, users=np.zeros(40))[1]), "one user has no spread"
    # The mean of uneven users lies in its interval in 95 of 100 samples.
    inside = []
    for _ in range(400):
        users = np.repeat(np.arange(60), rng.integers(1, 9, 60))
        _, low, high = mean_interval(rng.normal(size=60)[users] + rng.normal(size=len(users)), users=users)
        inside.append(low <= 0 <= high)
    assert 0.92 < np.mean(inside) < 0.98


def test_bad_values_are_refused():
    with pytest.raises(DataError, match="of the same users, at least two, got 3 and 4 users"):
        paired_bootstrap(np.zeros(3), np.zeros(4))
    with pytest.raises(
        DataError, match="at least two, got 1 and 1 users: hold out interactions of more users"
    ):
        paired_permutation(np.zeros(1), np.zeros(1))
    with pytest.raises(DataError, match="at least two users, got 3 cases of one: hold out"):
        paired_bootstrap(np.zeros(3), np.zeros(3), users=np.zeros(3))
    with pytest.raises(DataError, match="the user of each of the 3 cases, got 2 entries"):
        paired_bootstrap(np.zeros(3), np.zeros(3), users=np.zeros(2))
    with pytest.raises(ConfigError, match="confidence must be between 0 and 1, got 95"):
        paired_bootstrap(np.zeros(3), np.zeros(3), confidence=95)
