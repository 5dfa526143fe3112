"""Statistics of two arms that are paired by seed.

A difference is the score of a method minus the score of its baseline for the same seed, in the units of the score.
Above 0, the method is better. Every function raises a `LimbeckError` for an empty, NaN or infinite input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats  # type: ignore[import-untyped]

from limbeck.errors import LimbeckError

LEVEL = 0.05
"""The significance level of the tests; the intervals have the confidence 1 - ``LEVEL``."""

POWER = 0.8
"""The probability with which a difference of `detectable_difference` is significant."""

EXACT_SEEDS = 20
"""The most seeds for which the sign-flip test evaluates all 2^n flips: at 20, half of them take 4 MiB."""

RESAMPLES = 1_999
"""The resamples of a bootstrap interval."""

FLIPS = 99_999
"""The random flips of the sign-flip test for more than ``EXACT_SEEDS`` seeds."""

_ROUNDING = 1e-10  # sums and deviations below this part of the values are rounding errors
_CHUNK = 2**20  # the most numbers that a bootstrap or a test draws at once


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval of a mean difference, in its units."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The differences between two arms over their common seeds."""

    mean: float  # in the units of the score
    deviation: float | None  # sample standard deviation; None for one seed
    n: int  # seeds
    interval: Interval | None  # by Student's t; None for one seed
    p_t: float  # two-sided t-test; that of the sign-flip test if the deviation is 0 or None
    p_sign_flip: float  # two-sided sign-flip test
    improved: float  # probability of improvement in [0, 1]: fraction of seeds above 0, a tie counts as one half


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of the predictions of two arms, pooled over seeds."""

    only_method: int  # predictions that only the method has right
    only_baseline: int
    p_exact: float  # two-sided exact binomial test
    p_mid: float  # two-sided mid-p test


def differences(scores: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[float, ...]:
    """Return the differences of the seeds that both arms have, in ascending order of the seeds.

    Args:
        scores: of the method, by seed; greater is better.
        baseline: the same for the baseline.
    """
    seeds = sorted(scores.keys() & baseline.keys())
    if not seeds:
        raise LimbeckError(f"the arms have no common seed: {sorted(scores)} and {sorted(baseline)}")
    return tuple((_checked([scores[seed] for seed in seeds]) - _checked([baseline[seed] for seed in seeds])).tolist())


def paired(differences: Sequence[float]) -> Paired:
    """Compute the mean of the differences (n,) with its t interval and two tests of "it is 0".

    The t interval assumes that the differences are independent and normal. It covers the variation of the seeds on
    this test split, not that of the split: see `bootstrap_samples`.
    """
    values = _checked(differences)
    n, mean = len(values), float(values.mean())
    p_t = p_sign_flip = sign_flip_test(differences)
    deviation = float(values.std(ddof=1)) if n > 1 else None
    interval = None
    if deviation is not None and deviation <= _ROUNDING * np.abs(values).max():
        deviation, interval = 0.0, Interval(mean, mean)
    elif deviation is not None:
        error = deviation / n**0.5
        p_t = float(2 * special.stdtr(n - 1, -abs(mean) / error))
        half = float(special.stdtrit(n - 1, 1 - LEVEL / 2)) * error
        interval = Interval(mean - half, mean + half)
    return Paired(mean, deviation, n, interval, p_t, p_sign_flip, probability_of_improvement(values, np.zeros(n)))


def sign_flip_test(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip permutation test of the sum of the differences (n,).

    The null hypothesis is that each difference is as likely as its negative, which holds if the method has no effect.
    The test assumes nothing else about the distribution. Up to ``EXACT_SEEDS`` seeds all 2^n flips are evaluated. For
    more seeds the p-value is (1 + extreme flips) / (1 + ``FLIPS``) of random flips, which keeps the level exactly
    [1]; its standard error is below 0.0016, and below 0.0007 if p is 0.05.

    [1] B. Phipson, G. Smyth, "Permutation p-values should never be zero" (2010).
    """
    values = _checked(differences)
    least = abs(values.sum()) - _ROUNDING * np.abs(values).sum()
    if len(values) <= EXACT_SEEDS:
        sums = values[:1]  # the flips with the first sign reversed are the negatives of the others
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= least).mean())
    generator, extreme = np.random.default_rng(seed), 0
    for rows in _chunks(FLIPS, len(values)):
        signs = generator.integers(0, 2, (rows, len(values)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ values) >= least).sum())
    return (1 + extreme) / (1 + FLIPS)


def smallest_p(n: int) -> float:
    """Return the smallest p-value that the exact sign-flip test can have with ``n`` seeds: 2^(1 - n)."""
    return 2.0 ** (1 - n)


def bootstrap_seeds(differences: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """Return the percentile bootstrap interval of the mean of the differences (n,); None for one seed.

    It assumes no distribution, but with few seeds it is too narrow: the 95 % interval of normal differences covers
    the true mean with probability 75, 86 and 90 % with 3, 6 and 10 seeds.
    """
    values = _checked(differences)
    return None if len(values) == 1 else _bootstrap(values[:, None], np.ones(1, int), seed, resamples)


def bootstrap_samples(
    correct: ArrayLike, baseline: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """Return the bootstrap interval of the difference in accuracy over seeds and test samples; None for one seed.

    All seeds share the test samples, so each resample draws n seeds and, independently of them, N samples with
    replacement, and every drawn seed is evaluated on all drawn samples [1]. Drawing other samples for each seed would
    treat n evaluations of one sample as n samples. Variation of single predictions, which is neither of the seed nor
    of the sample, counts three times [1]: if most variation is of this kind, the interval is too wide by a factor of
    up to 1.7. If most is of the seeds and they are few, it is too narrow, like that of `bootstrap_seeds`. The memory is
    bounded apart from a few copies of the arguments.

    [1] A. Owen, "The pigeonhole bootstrap" (2007).

    Args:
        correct: (n, N), whether each sample is classified correctly by the method for each seed: bool, or 0 and 1.
        baseline: the same for the baseline, with the same seeds and samples in the same order.
        seed: of the resamples.
        resamples: their number.
    """
    method, other = _correct(correct, baseline)
    if len(method) == 1:
        return None
    # Samples with equal differences for all seeds are interchangeable: the resamples need only their numbers.
    kinds, counts = np.unique(method - other, axis=1, return_counts=True)
    return _bootstrap(kinds.astype(float), counts, seed, resamples)


def _bootstrap(values: NDArray[Any], counts: NDArray[Any], seed: int, resamples: int) -> Interval:
    # values (n, K): of n seeds and K kinds of samples; counts (K,): the samples of each kind
    generator, n, samples = np.random.default_rng(seed), len(values), int(counts.sum())
    means = []
    for rows in _chunks(resamples, n + len(counts)):
        seeds = generator.multinomial(n, np.full(n, 1 / n), rows) / n
        kinds = generator.multinomial(samples, counts / samples, rows) / samples
        means.append(np.einsum("rn,rn->r", seeds, kinds @ values.T))
    return Interval(*np.quantile(np.concatenate(means), (LEVEL / 2, 1 - LEVEL / 2)).tolist())


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values (m,) by Holm's method: the probability of one or more false rejections is at most the level."""
    values = _probabilities(p_values)
    order = values.argsort(kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.arange(len(values), 0, -1) * values[order]).clip(max=1)
    return tuple(adjusted.tolist())


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values (m,) by Benjamini and Hochberg: the expected fraction of false rejections is at most the level.

    This holds for independent tests and for some kinds of positive dependence.
    """
    return tuple(stats.false_discovery_control(_probabilities(p_values)).tolist())


def mcnemar(correct: ArrayLike, baseline: ArrayLike) -> McNemar:
    """Test whether two arms have equally many correct predictions, with McNemar's test.

    Use the mid-p value, because the exact test is conservative [1]. No chi-square approximation is needed for any
    number of predictions. The test concerns these networks on these samples, not the method: it ignores the
    variation of the seeds. If n > 1, its p-values are too small, because predictions of one sample are dependent.

    [1] M. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data" (2013).

    Args:
        correct: (n, N), whether each sample is classified correctly by the method for each seed: bool, or 0 and 1.
        baseline: the same for the baseline, with the same seeds and samples in the same order.
    """
    method, other = _correct(correct, baseline)
    first, second = int((method > other).sum()), int((method < other).sum())
    if first == second == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = float(stats.binomtest(first, first + second).pvalue)
    equal = float(stats.binom.pmf(first, first + second, 0.5)) * (1 if first == second else 2)
    return McNemar(first, second, exact, exact - equal / 2)


def probability_of_improvement(scores: ArrayLike, baseline: ArrayLike, *, pairs: bool = True) -> float:
    """Return the probability in [0, 1] that the method's score is above the baseline's; a tie counts as one half.

    Args:
        scores: (n,).
        baseline: (n,) of the same seeds in the same order, or (m,) without ``pairs``.
        pairs: whether to compare the arms seed by seed. Otherwise every score of one arm is compared with every score
            of the other, as U / (n m) of the Mann-Whitney test.
    """
    first, second = _checked(scores), _checked(baseline)
    if pairs and len(first) != len(second):
        raise LimbeckError(f"the arms have {len(first)} and {len(second)} seeds: pairs need the same seeds")
    signs = np.sign(first - second if pairs else first[:, None] - second)
    return float((1 + signs.mean()) / 2)


def detectable_difference(deviation: float, n: int) -> float:
    """Return the smallest true difference that a two-sided t-test at ``LEVEL`` finds with ``POWER``.

    The power is that of the noncentral t distribution. It takes the deviation as the true one.

    Args:
        deviation: standard deviation of the differences, in their units.
        n: seeds, at least 2.
    """
    _checked([deviation])
    if deviation < 0 or n < 2:
        raise LimbeckError(f"the deviation is {deviation} and n is {n}: they must be at least 0 and at least 2")
    critical = special.stdtrit(n - 1, 1 - LEVEL / 2)
    shift = special.nctdtrinc(n - 1, 1 - POWER, critical)  # the other tail is below 1e-6
    return float(shift * deviation / n**0.5)


def _chunks(rows: int, width: int) -> list[int]:
    """Divide rows of ``width`` numbers into parts of at most ``_CHUNK`` numbers, or one row."""
    most = max(1, _CHUNK // width)
    return [most] * (rows // most) + [rows % most] * (rows % most > 0)


def _checked(values: ArrayLike) -> NDArray[Any]:
    numbers = np.asarray(values, float)
    if numbers.ndim != 1 or not numbers.size:
        raise LimbeckError(f"the values have shape {numbers.shape}: they must be (n,) with n of at least 1")
    if not np.isfinite(numbers).all():
        raise LimbeckError(f"value {int(np.isfinite(numbers).argmin())} is NaN or infinite: every seed needs a number")
    return numbers


def _probabilities(values: ArrayLike) -> NDArray[Any]:
    numbers = _checked(values)
    if numbers.min() < 0 or numbers.max() > 1:
        raise LimbeckError(f"the p-values are from {numbers.min()} to {numbers.max()}: they must be in [0, 1]")
    return numbers


def _correct(*arms: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    method, baseline = (np.asarray(arm) for arm in arms)
    if method.shape != baseline.shape or method.ndim != 2 or not method.size:
        raise LimbeckError(
            f"the arms have shapes {method.shape} and {baseline.shape}: they must be the same (seeds, samples)"
        )
    if not all(np.isin(arm, (0, 1)).all() for arm in (method, baseline)):
        raise LimbeckError("whether a prediction is correct must be 0 or 1")
    return method.astype(np.int8), baseline.astype(np.int8)
