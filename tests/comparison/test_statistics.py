import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from limbeck.comparison.statistics import (
    Interval,
    McNemar,
    benjamini_hochberg,
    bootstrap_samples,
    bootstrap_seeds,
    detectable_difference,
    differences,
    holm,
    mcnemar,
    paired,
    probability_of_improvement,
    sign_flip_test,
    smallest_p,
)
from limbeck.errors import LimbeckError

DARWIN = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
"""Heights of crossed minus self-fertilised maize in 1/8 inch: R. Fisher, "The Design of Experiments" (1935), ch. 3."""

SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
"""Hours of sleep gained: Student, "The probable error of a mean" (1908)."""

BENJAMINI = (0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528)
BENJAMINI += (0.759, 1.0)
"""Y. Benjamini, Y. Hochberg, "Controlling the false discovery rate" (1995)."""


def normal(*shape, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, shape)


def covered(interval, value):
    return interval.low <= value <= interval.high


# Differences


def test_only_common_seeds_are_paired():
    assert differences({2: 0.5, 0: 0.75, 7: 0.1}, {0: 0.5, 1: 0.2, 2: 0.75}) == (0.25, -0.25)


def test_arms_without_a_common_seed_are_refused():
    with pytest.raises(LimbeckError, match=r"no common seed: \[0\] and \[1\]"):
        differences({0: 0.5}, {1: 0.5})


def test_a_failed_seed_is_refused_not_left_out():
    with pytest.raises(LimbeckError, match="value 1 is NaN or infinite"):
        differences({0: 0.5, 1: math.nan}, {0: 0.5, 1: 0.5})


# The t interval and t-test


def test_students_sleep_data_gives_the_published_interval():
    found = paired(SLEEP)  # R: t.test(extra ~ group, data = sleep, paired = TRUE)
    assert (found.mean, found.n) == (pytest.approx(1.58), 10)
    assert found.p_t == pytest.approx(0.002833, abs=1e-6)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert found.improved == 0.95


@pytest.mark.parametrize("n", [2, 3, 6, 50])
def test_the_t_interval_equals_scipys(n):
    values = normal(n, mean=0.3, seed=n)
    found, expected = paired(values), stats.ttest_1samp(values, 0)
    assert found.p_t == pytest.approx(expected.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.deviation == pytest.approx(values.std(ddof=1))


def test_one_seed_has_no_deviation_and_no_interval():
    found = paired([0.3])
    assert (found.deviation, found.interval, found.p_t, found.p_sign_flip) == (None, None, 1, 1)


def test_equal_differences_have_the_p_value_of_the_sign_flip_test():
    found = paired([0.9 - 0.8, 0.8 - 0.7, 0.3 - 0.2])  # equal up to rounding
    assert (found.deviation, found.p_t, found.p_sign_flip) == (0, 0.25, 0.25)
    assert found.interval == Interval(found.mean, found.mean)


def test_arms_without_a_difference_are_equal():
    found = paired([0.0] * 8)
    assert (found.mean, found.deviation, found.p_t, found.p_sign_flip, found.improved) == (0, 0, 1, 1, 0.5)


@pytest.mark.parametrize("n", [3, 6])
def test_the_t_interval_covers_the_true_mean_in_95_percent_of_repetitions(n):
    hits = [covered(paired(values).interval, 0.7) for values in normal(2000, n, mean=0.7, seed=n)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


# The sign-flip test


def test_darwins_maize_gives_fishers_count_of_arrangements():
    found = paired(DARWIN)  # Fisher: 863 of 2^15 arrangements have this sum or more; t = 2.148, p just below 5 %
    assert found.p_sign_flip == 2 * 863 / 2**15
    assert found.p_t == pytest.approx(0.0497, abs=1e-4)


@pytest.mark.parametrize("values", [normal(7), (1, 1, -1, 2, 0, 0), (0.1, 0.2, 0.3, -0.6), (0.3, 0.3, 0.3)])
def test_the_exact_test_equals_scipys_and_plain_loops(values):
    def total(data, axis=-1):
        return np.round(np.sum(data, axis=axis), 9)

    expected = stats.permutation_test((np.array(values),), total, permutation_type="samples", n_resamples=np.inf)
    flips = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=len(values))]
    assert sign_flip_test(values) == pytest.approx(expected.pvalue)
    assert sign_flip_test(values) == np.mean([flip >= abs(sum(values)) - 1e-9 for flip in flips])


@pytest.mark.parametrize(("n", "smallest"), [(1, 1), (3, 0.25), (5, 0.0625), (6, 0.03125), (20, 2**-19)])
def test_the_smallest_p_value_is_that_of_equal_signs(n, smallest):
    values = np.abs(normal(n)) + 0.1
    assert sign_flip_test(values) == sign_flip_test(-values) == smallest_p(n) == smallest


def test_more_seeds_use_random_flips_with_a_seed():
    values = normal(25, mean=0.4, seed=3)
    found = sign_flip_test(values, seed=1)
    assert found == sign_flip_test(values, seed=1)
    assert found != sign_flip_test(values, seed=2)
    assert found == pytest.approx(paired(values).p_t, abs=0.01)
    assert sign_flip_test([*values, 0.0]) == pytest.approx(found, abs=0.005)
    assert sign_flip_test([1.0] * 40) == 1e-5  # never 0


def test_random_flips_agree_with_all_flips(monkeypatch):
    exact = sign_flip_test(DARWIN)
    monkeypatch.setattr("limbeck.comparison.statistics.EXACT_SEEDS", 5)
    assert sign_flip_test(DARWIN) == pytest.approx(exact, abs=3 * 0.0007)


# Bootstrap


def test_the_bootstrap_over_seeds_equals_scipys():
    values = normal(12, mean=1)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    ours = bootstrap_seeds(values, resamples=20_000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert bootstrap_seeds(values, seed=1) == bootstrap_seeds(values, seed=1) != bootstrap_seeds(values, seed=2)


def test_the_bootstrap_of_one_seed_is_none_and_of_equal_seeds_a_point():
    assert bootstrap_seeds([0.5]) is None
    assert bootstrap_samples([[1, 0]], [[0, 0]]) is None
    assert bootstrap_seeds([0.5] * 4) == Interval(0.5, 0.5)


def predictions(seeds, samples, gain, seed):
    """Correct predictions of two arms (seeds, samples) with a true difference in accuracy of ``gain``."""
    generator = np.random.default_rng(seed)
    easy = generator.random(samples) < 0.7  # both arms have easy samples right more often
    chances = np.where(easy, 0.85, 0.4)
    noise = generator.normal(0, 0.02, (seeds, 1))  # of the seeds
    return generator.random((seeds, samples)) < chances + gain + noise, generator.random((seeds, samples)) < chances


def test_the_bootstrap_over_samples_equals_plain_loops():
    method, baseline = predictions(5, 40, 0.1, 0)
    generator, means = np.random.default_rng(9), []
    for _ in range(4000):
        seeds, samples = generator.integers(0, 5, 5), generator.integers(0, 40, 40)
        means.append(np.mean([method[seed, samples].mean() - baseline[seed, samples].mean() for seed in seeds]))
    found = bootstrap_samples(method, baseline, resamples=4000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.015)


def test_the_bootstrap_over_samples_contains_the_variation_of_the_samples():
    method, baseline = np.zeros((6, 100), bool), np.zeros((6, 100), bool)
    method[:, :20] = True  # all seeds agree, so only the samples vary
    found = bootstrap_samples(method, baseline)
    exact = stats.binom(100, 0.2)
    assert (found.low, found.high) == pytest.approx((exact.ppf(0.025) / 100, exact.ppf(0.975) / 100), abs=0.011)


@pytest.mark.parametrize("numbers", [5000, 10])  # 10 is less than one resample has
def test_the_bootstrap_over_samples_does_not_depend_on_its_memory(monkeypatch, numbers):
    method, baseline = predictions(4, 300, 0.05, 1)
    whole = bootstrap_samples(method, baseline)
    monkeypatch.setattr("limbeck.comparison.statistics._CHUNK", numbers)
    parts = bootstrap_samples(method, baseline)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_the_bootstrap_over_samples_covers_the_true_difference():
    data = [predictions(8, 200, 0.05, seed) for seed in range(100)]
    hits = [covered(bootstrap_samples(*arms, resamples=300), 0.05) for arms in data]
    assert np.mean(hits) >= 0.93  # single predictions vary most, so that the interval is too wide


# Several methods


def test_holm_equals_the_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.4, 0.9]) == pytest.approx((0.8, 0.9))
    assert holm([0.03]) == (0.03,)


def test_the_published_p_values_have_the_published_rejections():
    # Benjamini and Hochberg: their method rejects four hypotheses at 5 %, methods for all errors the first three
    assert sum(p <= 0.05 for p in benjamini_hochberg(BENJAMINI)) == 4
    assert sum(p <= 0.05 for p in holm(BENJAMINI)) == 3
    assert benjamini_hochberg(BENJAMINI) == pytest.approx(tuple(stats.false_discovery_control(BENJAMINI)))


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusted_p_values_follow_the_order_of_the_arguments(adjust):
    order = np.random.default_rng(0).permutation(len(BENJAMINI))
    shuffled = adjust([BENJAMINI[place] for place in order])
    assert shuffled == tuple(adjust(BENJAMINI)[place] for place in order)
    with pytest.raises(LimbeckError, match=r"must be in \[0, 1\]"):
        adjust([0.1, 1.5])


# McNemar


def test_mcnemar_gives_the_published_p_values():
    # Airway hyper-responsiveness before and after a transplantation, 1, 1, 7 and 12 children of 21: Bentur et al.
    # (2009), in Fagerland, Lydersen and Laake (2013): exact 0.0703, mid-p 0.0391.
    before = [[1] + [1] + [0] * 7 + [0] * 12]
    after = [[1] + [0] + [1] * 7 + [0] * 12]
    found = mcnemar(before, after)
    assert (found.only_method, found.only_baseline) == (1, 7)
    assert (round(found.p_exact, 4), round(found.p_mid, 4)) == (0.0703, 0.0391)


def test_mcnemar_pools_the_seeds_and_is_symmetric():
    method, baseline = predictions(3, 50, 0.1, 2)
    found, flat = mcnemar(method, baseline), mcnemar(method.reshape(1, -1), baseline.reshape(1, -1))
    assert found == flat
    other = mcnemar(baseline, method)
    assert other == McNemar(found.only_baseline, found.only_method, found.p_exact, found.p_mid)


def test_mcnemar_of_ties():
    assert mcnemar([[1, 0, 1]], [[1, 0, 1]]) == McNemar(0, 0, 1, 1)
    assert mcnemar([[1, 0]], [[0, 1]]) == McNemar(1, 1, 1, pytest.approx(0.75))  # P(more extreme) + P(equal) / 2


@pytest.mark.parametrize("function", [mcnemar, bootstrap_samples])
def test_predictions_must_be_correct_or_not(function):
    with pytest.raises(LimbeckError, match=r"shapes \(2, 3\) and \(2, 4\)"):
        function(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(LimbeckError, match=r"shapes \(3,\) and \(3,\)"):
        function(np.ones(3), np.ones(3))
    with pytest.raises(LimbeckError, match="must be 0 or 1"):
        function([[1, math.nan]], [[1, 0]])


# Probability of improvement


def test_the_probability_of_improvement_counts_ties_as_one_half():
    assert probability_of_improvement([3, 2, 1], [1, 2, 3]) == 0.5
    assert probability_of_improvement([3, 2, 4], [1, 2, 3]) == pytest.approx(2.5 / 3)
    assert probability_of_improvement([1.0], [0.0]) == 1


def test_without_pairs_it_equals_the_mann_whitney_statistic():
    first, second = np.round(normal(9, mean=0.5), 1), np.round(normal(7, seed=1), 1)
    expected = stats.mannwhitneyu(first, second).statistic / 63
    assert probability_of_improvement(first, second, pairs=False) == pytest.approx(expected)
    with pytest.raises(LimbeckError, match="9 and 7 seeds"):
        probability_of_improvement(first, second)


# Power


def test_half_a_deviation_takes_34_seeds():
    # R: pwr.t.test(d = 0.5, power = 0.8, type = "paired") gives n = 33.37
    assert detectable_difference(1, 34) < 0.5 < detectable_difference(1, 33)


@pytest.mark.parametrize("n", [3, 6, 10, 40])
def test_the_detectable_difference_has_the_power_of_the_noncentral_t(n):
    found = detectable_difference(2.5, n)
    critical = stats.t.isf(0.025, n - 1)
    assert stats.nct.sf(critical, n - 1, found / 2.5 * n**0.5) == pytest.approx(0.8, abs=1e-4)


def test_the_detectable_difference_is_found_in_80_percent_of_repetitions():
    data = normal(4000, 6, mean=detectable_difference(1, 6))
    assert np.mean(stats.ttest_1samp(data, 0, axis=1).pvalue <= 0.05) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("deviation", "n"), [(-1.0, 5), (1.0, 1), (math.nan, 5)])
def test_an_impossible_deviation_is_refused(deviation, n):
    with pytest.raises(LimbeckError):
        detectable_difference(deviation, n)


# Refused values


@pytest.mark.parametrize("function", [paired, sign_flip_test, bootstrap_seeds, holm, benjamini_hochberg])
@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf], [[0.1, 0.2]]])
def test_values_that_are_not_finite_numbers_are_refused(function, values):
    with pytest.raises(LimbeckError):
        function(values)
