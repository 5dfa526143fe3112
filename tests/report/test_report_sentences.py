import dataclasses
from itertools import pairwise

import example
import pytest

from limbeck.comparison import results
from limbeck.comparison.results import ArmResult, ComparisonResult, compared, headline_of, scores_of
from limbeck.comparison.statistics import Interval
from limbeck.evaluate import RegressionFigures
from limbeck.report.costs import costs
from limbeck.report.differences import differences
from limbeck.report.drawing import apart, looks
from limbeck.report.numbers import listed, some
from limbeck.report.verdict import best_arm, evidence, verdict

STEPS = (0.002, -0.001, 0.001, 0.0, -0.002, 0.001)


def result(gains, seeds=6, task="classification"):
    """A comparison whose methods differ from the student alone by about these gains."""
    data = example.load(**example.DATA)
    base = example.network("alone", 0, data)

    def network(arm, seed, value):
        test = dataclasses.replace(base.test, accuracy=value)
        if task == "regression":
            test = RegressionFigures(**{**dict.fromkeys(RegressionFigures.__annotations__, 0.5), "rmse": 1 - value})
        return dataclasses.replace(base, arm=arm, seed=seed, test=test)

    runs = {
        arm: [network(arm, seed, 0.5 + gain + (STEPS[seed] if gain else 0)) for seed in range(seeds)]
        for arm, gain in {"alone": 0.0, **gains}.items()
    }
    scores = {arm: scores_of(of_arm, task) for arm, of_arm in runs.items()}
    versus = compared(scores, dict.fromkeys(gains, "alone"), {}, "holm")
    arms = [
        ArmResult(arm, {"name": arm}, 1, headline_of(of, task), None, versus.get(arm), None) for arm, of in runs.items()
    ]
    everything = tuple(one for of_arm in runs.values() for one in of_arm)
    return ComparisonResult(
        1, "made", task, tuple(range(seeds)), "holm", None, None, tuple(arms), {}, (), {}, everything, None
    )


POINTS = "points of accuracy"

VERDICTS = [
    (
        {"kd": 0.02},
        6,
        f"kd helps: 2.02 {POINTS} better than the student alone, 95 % interval +1.86 to +2.17 (6 seeds).",
    ),
    ({"kd": 0.02, "at": 0.03, "fsp": -0.04}, 6, "; kd helps too; fsp hurts."),
    ({"kd": 0.02, "at": 0.03, "rkd": 0.01}, 6, "; kd and rkd help too."),
    ({"kd": 0.02}, 3, "No verdict, because 3 seeds cannot show whether a method helps: kd, 2.07 points"),
    ({"kd": 0.02, "at": 0.01}, 1, f"the greatest mean difference is that of kd, 2.20 {POINTS} better"),
    ({"kd": 0.0005}, 6, f"No evidence that kd helps (6 seeds): on these seeds kd was 0.07 {POINTS} better"),
    ({"kd": 0.0005, "fsp": -0.04}, 6, "95 % interval \N{MINUS SIGN}0.09 to +0.22; fsp hurts."),
    ({"kd": -0.02, "fsp": -0.04}, 6, f"any of 2 methods helps (6 seeds): on these seeds kd was 1.98 {POINTS} worse"),
    ({"kd": 0.0}, 6, "kd was no better than the student alone, 95 % interval +0.00 to +0.00."),
    ({}, 6, "Nothing is compared"),
]


@pytest.mark.parametrize(("gains", "seeds", "expected"), VERDICTS)
def test_the_verdict_in_one_sentence(gains, seeds, expected):
    assert expected in verdict(result(gains, seeds))


def test_a_task_whose_figure_falls_is_said_rightly():
    found = result({"kd": 0.02}, task="regression")
    assert verdict(found).startswith("kd helps: 0.0202 of RMSE better than the student alone")
    assert differences(found).figures[0].numbers.rows[0][2] == "+0.0220"
    assert costs(found).figures[0].numbers.rows[1] == ["kd", "0.4798", "78,000", "yes"]
    assert costs(found).missing == ["the latencies, which were not measured"]


def test_the_page_says_what_the_seeds_can_show():
    assert (
        "the smallest p-value of the latter is 0.25, so there can be no verdict" in evidence(result({"kd": 0.02}, 3))[0]
    )
    assert "a difference below 0.21 points for kd could not be seen" in evidence(result({"kd": 0.0005}))[1]


def test_the_best_method_is_that_of_the_greatest_mean_difference():
    assert best_arm(result({"kd": 0.02, "at": 0.03, "fsp": 0.01})) == "at"
    assert best_arm(result({})) == "alone"


def test_labels_are_moved_apart_and_stay_in_their_order():
    assert apart([0.0, 1.0, 50.0, 51.0, 52.0], 10) == [-4.5, 5.5, 41.0, 51.0, 61.0]
    assert apart([5.0, 5.0], 4) == [3.0, 7.0]
    moved = apart([0.0, 8.0, 16.0], 10)
    assert min(after - before for before, after in pairwise(moved)) >= 10


def test_no_two_of_fourteen_methods_look_the_same():
    found = looks(result({f"method{place}": 0.01 for place in range(14)}))
    assert len(set(found.values())) == len(found) == 16


def test_lists_in_words_and_parts_of_long_ones():
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert list(some(range(5), 9)) == [0, 1, 2, 3, 4]
    assert list(some(range(101), 5)) == [0, 25, 50, 75, 100]


@pytest.mark.parametrize(("ends", "told"), [((-0.01, 0.05), True), ((0.01, 0.05), False), (None, False)])
def test_a_verdict_that_other_test_samples_may_not_show_says_so(ends, told):
    """The t interval is about the seeds only."""
    found = result({"kd": 0.02})
    versus = dataclasses.replace(found.arms[1].alone, samples_interval=ends and Interval(*ends))
    arms = (found.arms[0], dataclasses.replace(found.arms[1], alone=versus))
    found = dataclasses.replace(found, arms=arms)
    assert versus.judged.verdict == "helps"
    page, screen = " ".join(evidence(found)), " ".join(results.evidence(found))
    assert ("For kd the interval over seeds and test samples contains 0 (\N{MINUS SIGN}1.00 to +5.00)" in page) == told
    assert ("over seeds and test samples the interval is [-1.00, +5.00]" in screen) == told
