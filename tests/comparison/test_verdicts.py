import numpy as np
import pytest

from limbeck.comparison.statistics import benjamini_hochberg, detectable_difference, paired
from limbeck.comparison.verdicts import compare_methods
from limbeck.errors import LimbeckError

GAIN = (0.011, 0.014, 0.012, 0.016, 0.013, 0.015)
REPETITIONS = 2000


def verdict(values):
    return compare_methods({"kd": values})["kd"].verdict


def test_six_seeds_that_agree_give_a_verdict():
    assert verdict(GAIN) == "helps"
    assert verdict([-gain for gain in GAIN]) == "hurts"
    assert verdict([0.01, -0.01, 0.02, -0.02, 0.01, 0.0]) == "no evidence"
    assert verdict([0.01] * 6) == "helps"


def test_five_seeds_never_give_a_verdict():
    found = compare_methods({"kd": GAIN[:5]})["kd"]
    assert found.paired.p_t < 0.001
    assert (found.verdict, found.smallest_p, found.detectable) == ("no evidence", 0.0625, None)


def test_eight_seeds_may_have_one_small_difference_of_the_other_sign():
    assert verdict([*GAIN, 0.014, -0.0001]) == "helps"


def test_one_seed_gives_no_evidence():
    assert verdict([0.5]) == "no evidence"


def test_one_seed_that_disagrees_gives_no_evidence_with_six_seeds():
    values = [*GAIN[:5], -0.0001]
    assert paired(values).p_t < 0.01
    assert verdict(values) == "no evidence"


def test_more_methods_need_a_smaller_p_value():
    weak = (0.004, 0.02, 0.001, 0.012, 0.013, 0.002)
    assert verdict(weak) == "helps"
    others = {str(number): (0.01, -0.01, 0.02, -0.02, 0.01, -0.01) for number in range(4)}
    found = compare_methods({"kd": weak, **others})
    assert found["kd"].p_adjusted == pytest.approx(5 * found["kd"].paired.p_t)
    assert found["kd"].verdict == "no evidence"


def test_a_verdict_of_ten_methods_is_possible_with_six_seeds():
    found = compare_methods({str(number): GAIN for number in range(10)})
    assert {one.verdict for one in found.values()} == {"helps"}


def test_the_adjustment_can_be_chosen():
    values = {"kd": GAIN, "fsp": [2 * gain for gain in GAIN]}  # equal p-values
    p = paired(GAIN).p_t
    assert [one.p_adjusted for one in compare_methods(values).values()] == pytest.approx([2 * p] * 2)
    found = compare_methods(values, adjust=benjamini_hochberg)
    assert [one.p_adjusted for one in found.values()] == pytest.approx([p] * 2)


def test_a_verdict_agrees_with_the_interval():
    for values in np.random.default_rng(0).normal(0.8, 1, (300, 7)):
        found = compare_methods({"a": values, "b": -values})["a"]
        low, high = found.paired.interval.low, found.paired.interval.high
        assert found.verdict == "no evidence" or low > 0 or high < 0


def test_the_detectable_difference_is_that_of_the_deviation():
    found = compare_methods({"kd": GAIN, "fsp": GAIN})["kd"]
    assert found.detectable == detectable_difference(found.paired.deviation, 6)
    assert compare_methods({"kd": [0.01] * 6})["kd"].detectable is None


def test_nothing_to_compare_is_refused():
    with pytest.raises(LimbeckError):
        compare_methods({})


NULL = {
    "normal": lambda generator, shape: generator.normal(0, 1, shape),
    "heavy tails": lambda generator, shape: generator.standard_t(2, shape),
    "two values": lambda generator, shape: generator.choice([-1.0, 1.0], shape),
    "differences of skewed values": lambda generator, shape: np.subtract(*generator.exponential(1, (2, *shape))),
    "accuracies of 40 samples": lambda generator, shape: np.subtract(*generator.binomial(40, 0.95, (2, *shape))) / 40,
}


@pytest.mark.parametrize("draw", NULL.values(), ids=NULL)
def test_a_method_without_effect_has_no_evidence_in_95_percent_of_repetitions(draw):
    data = draw(np.random.default_rng(0), (REPETITIONS, 6))
    assert sum(verdict(values) == "no evidence" for values in data) >= 0.95 * REPETITIONS


def test_five_methods_without_effect_have_no_evidence_together_in_95_percent_of_repetitions():
    arms = np.random.default_rng(0).normal(0, 1, (1000, 6, 8))
    families = [
        compare_methods({str(arm): one[arm] - one[5] for arm in range(5)}) for one in arms
    ]  # the baseline is shared
    wrong = sum(any(found.verdict != "no evidence" for found in family.values()) for family in families)
    assert wrong <= 0.05 * len(families)


@pytest.mark.parametrize(("n", "power"), [(6, 0.61), (10, 0.8)])
def test_the_detectable_difference_bounds_the_probability_of_a_verdict(n, power):
    data = np.random.default_rng(0).normal(detectable_difference(1, n), 1, (1000, n))
    assert sum(verdict(values) == "helps" for values in data) == pytest.approx(power * len(data), abs=0.04 * len(data))


def test_a_large_effect_is_found_and_has_the_right_sign():
    data = np.random.default_rng(0).normal(-3, 1, (500, 6))
    assert sum(verdict(values) == "hurts" for values in data) >= 0.95 * len(data)
