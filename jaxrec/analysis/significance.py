"""Paired significance tests over users with nested seeds, corrections, and detectable differences.

Models are compared on the same users, so the unit is the difference per user, whose spread is far smaller than that of
either model. Each model may have several seeds; then the value of a user is its mean over seeds, and intervals also
carry the variation between seeds. A user may have several cases (successive targets), which are alike: means are over
cases, and users are drawn with all of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxrec.errors import ConfigError, DataError

#: Below so many seeds of a model, intervals over seeds are too narrow and p-values too small where seeds differ much.
FEW_SEEDS = 5
#: Numbers drawn at once: resamples are made in blocks so that memory does not grow with their count.
_BLOCK = 4_000_000


class Effect(NamedTuple):
    """Difference of means, B - A.

    Attributes:
      difference: mean over users and seeds of B minus that of A.
      low, high: confidence interval of the difference.
      p_value: two-sided.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    *,
    users: np.ndarray | None = None,
    paired_seeds: bool = False,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Effect:
    """Test and estimate a difference by bootstrap over users, and over the seeds of each model where there are several.

    Users are drawn with replacement, the same for both models (Efron and Tibshirani, 1993, chapter 16; for
    ranking metrics Sakai, SIGIR 2006). Seeds are drawn for each model on its own, unless ``paired_seeds`` says that
    seed s is one trained model in both, and their deviations are widened by sqrt(S / (S - 1)), without which S seeds
    understate their own variance. The interval is the percentile interval; the p-value is the share of resamples that
    lie at least as far from the difference as zero does.

    A handful of seeds says little about their spread: where seeds make all of the difference, a test at the 5 % level
    rejects models that are alike in 22 % of all cases with two seeds each, 14 % with three, 9 % with five (`FEW_SEEDS`).
    Where seeds serve different users well, tests err on the other side: draws of users and of seeds count this part of the
    variance up to three times (the pigeonhole bootstrap; Owen, Annals of Applied Statistics 2007), so that intervals are up
    to sqrt(3) times as wide as they need be, and models that are alike are rejected less often than the level says.

    Args:
      a: float[E] or float[S, E], a metric of every case for one or several seeds.
      b: the same of the other model.
      users: int[E], the user of each case; None = a user each.
      paired_seeds: ``b[s]`` comes from the same trained model as ``a[s]``, asked in another way: seeds are drawn for both.
      resamples: how many.
      confidence: of the interval, between 0 and 1.
      seed: of the resampling.

    Raises:
      DataError: the users differ in number, or there are fewer than two; or the seeds do and are paired.
    """
    a, b = _by_seed(a, b, paired_seeds)
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    rng = np.random.default_rng(seed)
    observed = float(b.mean() - a.mean())
    (a, b), sizes = _sums_of_users([a, b], users)
    count = a.shape[1]
    samples = np.empty(resamples)
    block = max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        n = min(block, resamples - start)
        index = rng.integers(0, count, (n, count), dtype=np.int32)
        means_b, means_a = _resampled_means(b, index, sizes), _resampled_means(a, index, sizes)
        samples[start : start + n] = _nested(means_b, rng) - _nested(means_a, rng)
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Effect(observed, float(low), float(high), bootstrap_p_value(samples, observed))


def bootstrap_means(
    values: Sequence[np.ndarray], *, users: np.ndarray | None = None, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Means of several models over the same resamples, float64[M, resamples], from which every pair of them is tested.

    Users and seeds are drawn as in `paired_bootstrap`, each resample once for all models rather than for each pair.

    Args:
      values: of M models, each float[E] or float[S, E], a metric of every case for one or several seeds.
      users: see `paired_bootstrap`.
      resamples: how many.
      seed: of the resampling.

    Raises:
      DataError: see `paired_bootstrap`.
    """
    models = [_by_seed(each, values[0])[0] for each in values]
    sums, sizes = _sums_of_users(models, users)
    every, ends = np.concatenate(sums), np.cumsum([len(each) for each in sums])
    rng = np.random.default_rng(seed)
    count = every.shape[1]
    samples = np.empty((len(sums), resamples))
    block = max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        n = min(block, resamples - start)
        index = rng.integers(0, count, (n, count)) + count * np.arange(n)[:, None]
        times = np.bincount(index.reshape(-1), minlength=n * count).reshape(n, count).astype(np.float64)
        means = every @ times.T / (count if sizes is None else times @ sizes)
        for number, own in enumerate(np.split(means, ends[:-1])):
            samples[number, start : start + n] = _nested(own, rng)
    return samples


def bootstrap_p_value(samples: np.ndarray, observed: float) -> float:
    """Two-sided p-value of a difference: share of its resamples that lie at least as far from it as zero does."""
    beyond = np.abs(samples - observed) >= abs(observed) * (1 - 1e-12)
    return float((1 + beyond.sum()) / (len(samples) + 1))


def _sums_of_users(
    values: Sequence[np.ndarray], users: np.ndarray | None
) -> tuple[Sequence[np.ndarray], np.ndarray | None]:
    """Sums over the cases of each user, float64[S, U] each, and float64[U], their number; None where each has one.

    Raises:
      DataError: there are fewer than two users, or another number of entries than of cases.
    """
    if users is None:
        return values, None
    cases = values[0].shape[1]
    names, owner = np.unique(users, return_inverse=True)
    if len(owner) != cases:
        raise DataError(f"users must hold the user of each of the {cases} cases, got {len(owner)} entries")
    if len(names) < 2:
        raise DataError(
            f"a test over users needs cases of at least two users, got {cases} cases of one: hold out interactions of more "
            "users"
        )
    if len(names) == cases:
        return values, None
    sums = [
        np.stack([np.bincount(owner, weights=seed, minlength=len(names)) for seed in each]) for each in values
    ]
    return sums, np.bincount(owner).astype(np.float64)


def _resampled_means(values: np.ndarray, index: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """float64[S, n]: mean of each seed over the cases of each drawn set of users."""
    if sizes is None:
        return np.stack([seed[index].mean(axis=1) for seed in values])
    cases = sizes[index].sum(axis=1)
    return np.stack([seed[index].sum(axis=1) / cases for seed in values])


def _nested(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64[n]: mean over seeds drawn with replacement, deviations widened (see `paired_bootstrap`)."""
    seeds, n = means.shape
    centre = means.mean(axis=0)
    if seeds == 1:
        return centre
    indices = rng.integers(0, seeds, (seeds, n))
    samples = np.take_along_axis(means, indices, axis=0).mean(axis=0)
    return centre + np.sqrt(seeds / (seeds - 1)) * (samples - centre)


def paired_permutation(
    a: np.ndarray,
    b: np.ndarray,
    *,
    users: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the sign-flip test over users (randomisation test; Smucker et al., CIKM 2007).

    Under the hypothesis that the two models are alike, a user's difference is as likely positive as
    negative. With seeds it is the user's mean over seeds that flips: the test speaks about these trained
    models, `paired_bootstrap` also about training them again.

    Args:
      a: see `paired_bootstrap`.
      b: see `paired_bootstrap`.
      users: see `paired_bootstrap`; all cases of a user flip together.
      resamples: number of random sign flips.
      seed: of the flips.

    Returns:
      (1 + #{|flipped mean| >= |mean|}) / (1 + resamples), never 0.
    """
    (a, b), _ = _sums_of_users(_by_seed(a, b), users)
    difference = b.mean(axis=0) - a.mean(axis=0)
    moved = difference[difference != 0].astype(np.float64)  # a user without a difference has no sign to flip
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(moved.sum())
    beyond = 0
    block = max(1, _BLOCK // len(moved))
    for start in range(0, resamples, block):
        n = min(block, resamples - start)
        bits = np.unpackbits(
            rng.integers(0, 256, (n, -(-len(moved) // 8)), dtype=np.uint8), axis=1, count=len(moved)
        )
        flipped = moved.sum() - 2.0 * (bits.astype(np.float64) @ moved)
        beyond += int((np.abs(flipped) >= observed * (1 - 1e-12)).sum())
    return (1 + beyond) / (1 + resamples)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction (1979) of several p-values: float64, in their order, at most 1."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def minimal_detectable_difference(
    a: np.ndarray,
    b: np.ndarray | None = None,
    *,
    users: np.ndarray | None = None,
    paired_seeds: bool = False,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference of means that `paired_bootstrap` detects with probability ``power``, in one comparison.

    (z[1 - alpha/2] + z[power]) * standard error of the difference, which is that of the bootstrap: of the users and, where
    a model has several, of its seeds. A p-value that is corrected for m comparisons needs a larger difference, that of
    ``alpha / m`` if it is the smallest. 0 where no user has a difference, so that there is no spread to judge by. Where
    ``b`` is None the comparison is with a model whose results are independent of ``a`` user by user and vary as much,
    which is the most pessimistic case.

    Args:
      a: float[E] or float[S, E], a metric of every case for one or several seeds.
      b: the same of the other model, or None.
      users: see `paired_bootstrap`.
      paired_seeds: see `paired_bootstrap`.
      alpha: level of the two-sided test.
      power: probability of a significant result.
    """
    pessimistic = b is None
    a, b = _by_seed(a, a if b is None else b, paired_seeds)
    (a, b), sizes = _sums_of_users([a, b], users)
    if sizes is not None:
        # A mean over cases is a ratio of sums over users: what counts are deviations from a user's share of it.
        a, b = (_shares(model, sizes) for model in (a, b))
    difference = a.mean(axis=0) if pessimistic else b.mean(axis=0) - a.mean(axis=0)
    variance = difference.var(ddof=1) / len(difference)
    if variance:
        variance += _variance_of_seeds(a) + (0.0 if pessimistic else _variance_of_seeds(b))
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(z * np.sqrt((2 if pessimistic else 1) * variance))


def _shares(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """float64[S, U]: values of users whose mean over users is that over cases, and whose spread is that of the ratio."""
    means = sums.sum(axis=1, keepdims=True) / sizes.sum()
    return means + (sums - sizes * means) / sizes.mean()


def _variance_of_seeds(values: np.ndarray) -> float:
    """Variance that seeds float64[S, U] add to the mean over them in `paired_bootstrap`: users are drawn there, too."""
    seeds, users = values.shape
    if seeds == 1:
        return 0.0
    own = values - values.mean(axis=0)
    squares = own.mean(axis=1) ** 2 + own.var(axis=1, ddof=1) / users
    return float(squares.sum() / (seeds * (seeds - 1)))


def mean_interval(
    values: np.ndarray, confidence: float = 0.95, *, users: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Mean over cases with its normal interval (mean, low, high).

    Bounds are NaN for fewer than two users and where all values are equal: without a spread an interval would say that the
    mean is certain, as that of a group without a hit.

    Args:
      values: float[E], a metric of every case.
      confidence: of the interval, between 0 and 1.
      users: int[E], the user of each case, whose cases are alike; None = a user each.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    owner = np.arange(len(values)) if users is None else np.unique(users, return_inverse=True)[1]
    count = int(owner.max()) + 1 if len(owner) else 0
    if count < 2:
        return mean, float("nan"), float("nan")
    deviation = values.std(ddof=1) / np.sqrt(count)
    if count < len(values):  # a ratio of sums over users, as in `minimal_detectable_difference`
        own = np.bincount(owner, weights=values - mean)
        deviation = np.sqrt(count / (count - 1) * (own**2).sum()) / len(values)
    half = float(stats.norm.ppf((1 + confidence) / 2) * deviation) if np.ptp(values) else float("nan")
    return mean, mean - half, mean + half


def _by_seed(a: np.ndarray, b: np.ndarray, paired: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """float64[S, E] of both models; of ``paired`` seeds nothing, and the differences."""
    a, b = np.atleast_2d(np.asarray(a, np.float64)), np.atleast_2d(np.asarray(b, np.float64))
    if a.shape[1] != b.shape[1] or a.shape[1] < 2:
        raise DataError(
            f"a paired test of two models (a and b) needs a value for each of the same users, at least two, "
            f"got {a.shape[1]} and {b.shape[1]} users: hold out interactions of more users"
        )
    if not paired:
        return a, b
    if len(a) != len(b):
        raise DataError(f"a and b must hold the same seeds to be paired, got {len(a)} and {len(b)}")
    return np.zeros_like(b), b - a
