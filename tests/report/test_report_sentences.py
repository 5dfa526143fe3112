import dataclasses
from itertools import pairwise

import example
import pytest

from limbeck.comparison import results
from limbeck.comparison.results import ArmResult, ComparisonResult, compared, headline_of, scores_of
from limbeck.comparison.statistics import Interval
from limbeck.evaluate import RegressionFigures
from limbeck.experiment.results import Spread
from limbeck.report.costs import costs
from limbeck.report.differences import differences
from limbeck.report.drawing import apart, looks
from limbeck.report.numbers import MINUS, listed, short, some
from limbeck.report.verdict import best_arm, evidence, verdict

STEPS = (0.002, -0.001, 0.001, 0.0, -0.002, 0.001)


def result(gains, seeds=6, task="classification", longer=None):
    """A comparison whose methods differ from the student alone by about these gains.

    With ``longer``, alone@2x differs so much, and fitnets is compared with it.
    """
    data = example.load(**example.DATA)
    base = example.network("alone", 0, data)

    def network(arm, seed, value):
        test = dataclasses.replace(base.test, accuracy=value)
        if task == "regression":
            test = RegressionFigures(**{**dict.fromkeys(RegressionFigures.__annotations__, 0.5), "rmse": 1 - value})
        return dataclasses.replace(base, arm=arm, seed=seed, test=test)

    every = {"alone": 0.0, **gains} | ({} if longer is None else {"alone@2x": longer})
    runs = {
        arm: [network(arm, seed, 0.5 + gain + (STEPS[seed] if gain and arm in gains else 0)) for seed in range(seeds)]
        for arm, gain in every.items()
    }
    scores = {arm: scores_of(of_arm, task) for arm, of_arm in runs.items()}
    against = dict.fromkeys(gains, "alone") | ({} if longer is None else {"fitnets": "alone@2x"})
    versus = compared(scores, against, {}, "holm")
    arms = [
        ArmResult(arm, {"name": arm}, 1, headline_of(of, task), None, versus.get(arm), None) for arm, of in runs.items()
    ]
    everything = tuple(one for of_arm in runs.values() for one in of_arm)
    return ComparisonResult(
        1, "made", task, tuple(range(seeds)), "holm", None, None, tuple(arms), {}, (), {}, everything, None
    )


POINTS = "points of accuracy"

KD = f"kd helps: 2.02 {POINTS} better than the student alone, 95 % interval +1.86 to +2.17 (6 seeds)"
FSP = f"fsp hurts: 3.98 {POINTS} worse than the student alone, 95 % interval {MINUS}4.14 to {MINUS}3.83 (6 seeds)"
SLIGHT = f"0.07 {POINTS} better than the student alone, 95 % interval {MINUS}0.09 to +0.22."
FEW = "No verdict, because 3 seeds cannot show whether a method helps: "

VERDICTS = [
    ({"kd": 0.02}, 6, [f"{KD}."]),
    ({"kd": 0.02, "at": 0.01, "fsp": -0.04}, 6, [f"{KD}; at helps too.", f"{FSP}."]),
    ({"kd": 0.02, "at": 0.01, "rkd": 0.01}, 6, [f"{KD}; at and rkd help too."]),
    ({"kd": 0.02, "at": 0.0005}, 6, [f"{KD}; no evidence that at helps or hurts."]),
    ({"kd": 0.02, "fsp": -0.04, "rkd": -0.03}, 6, [f"{KD}.", f"{FSP}; rkd hurts too."]),
    ({"kd": 0.02} | {f"m{at}": 0.01 for at in range(9)}, 6, [f"{KD}; m0, m1 and 7 others help too."]),
    ({"kd": 0.02}, 3, [f"{FEW}kd, 2.07 {POINTS} better than the student alone, 95 % interval +1.69 to +2.45."]),
    ({"kd": 0.02, "at": 0.01}, 1, ["No verdict, because 1 seed cannot show whether a method helps."]),
    ({"kd": 0.0005}, 6, [f"No evidence that kd helps or hurts (6 seeds): kd, {SLIGHT}"]),
    (
        {"kd": 0.0005, "at": 0.0001, "fsp": -0.04},
        6,
        [
            f"{FSP}.",
            "No evidence that any of kd and at helps or hurts (6 seeds): the greatest mean difference is that of kd, "
            f"{SLIGHT}",
        ],
    ),
    (
        {"kd": 0.0},
        6,
        [
            "No evidence that kd helps or hurts (6 seeds): "
            "kd, no better than the student alone, 95 % interval +0.00 to +0.00."
        ],
    ),
    ({}, 6, ["Nothing is compared: there is no student alone of the same seeds."]),
]


@pytest.mark.parametrize(("gains", "seeds", "expected"), VERDICTS)
def test_the_verdict_in_sentences_with_intervals(gains, seeds, expected):
    assert verdict(result(gains, seeds)) == expected


def test_a_method_of_more_epochs_is_compared_with_the_student_alone_of_as_many_and_the_best_network_is_named():
    found = result({"fitnets": 0.02, "kd": 0.001}, longer=0.03)
    hurts, unknown, best = verdict(found)
    gained = f"0.98 {POINTS} worse than the student alone of as many epochs (alone@2x), 95 % interval {MINUS}1.14 to"
    assert hurts.startswith(f"fitnets hurts: {gained}")
    assert unknown.startswith("No evidence that kd helps or hurts")
    longest = "of the table is the student alone with more epochs (alone@2x): accuracy 53.00 ± 0.00 %."
    assert best == f"The best network {longest}"
    better = dataclasses.replace(found, teachers=Spread(0.9, None, 1))
    assert verdict(better)[2] == f"The best student {longest}"
    worse = result({"fitnets": 0.02, "kd": 0.04}, longer=0.03)
    assert not any("The best" in line for line in verdict(worse))


def test_a_task_whose_figure_falls_is_said_rightly():
    found = result({"kd": 0.02}, task="regression")
    assert verdict(found)[0].startswith("kd helps: 0.0202 of RMSE better than the student alone")
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


def test_a_short_name_keeps_its_end():
    assert [short(name) for name in ("a" * 18, "northern owl, 1st year", "northern owl, 2nd year")] == [
        "a" * 18,
        "northern ow…t year",
        "northern ow…d year",
    ]


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
