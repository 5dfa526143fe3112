import math

import pytest

from limbeck.experiment.summary import spread, summarise


def result(arm, seed, errors, samples=100):
    test = {"errors": errors, "accuracy": (samples - errors) / samples, "samples": samples}
    return {"arm": arm, "seed": seed, "test": test}


def test_the_deviation_is_the_samples():
    found = spread([2.0, 4.0, 9.0])
    assert found["mean"] == 5.0
    assert found["deviation"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert found["n"] == 3


def test_one_value_has_no_deviation():
    assert spread([7]) == {"mean": 7.0, "deviation": None, "n": 1}


def test_equal_values_deviate_by_0():
    assert spread([3, 3, 3]) == {"mean": 3.0, "deviation": 0.0, "n": 3}


def test_the_figures_are_those_by_hand():
    summary = summarise(
        [
            result("teacher", 0, 2),
            *(result("alone", seed, errors) for seed, errors in enumerate([10, 14, 12])),
            *(result("kd", seed, errors) for seed, errors in enumerate([7, 13, 8])),
        ]
    )
    assert list(summary) == ["teacher", "alone", "kd"]
    assert summary["teacher"] == {
        "accuracy": {"mean": 0.98, "deviation": None, "n": 1},
        "errors": {"mean": 2.0, "deviation": None, "n": 1},
    }
    assert summary["alone"]["errors"] == {"mean": 12.0, "deviation": 2.0, "n": 3}
    assert summary["alone"]["accuracy"]["mean"] == pytest.approx(0.88)
    assert summary["alone"]["accuracy"]["deviation"] == pytest.approx(0.02)
    assert summary["kd"]["errors"]["mean"] == pytest.approx(28 / 3)
    gained = summary["kd"]["fewer_errors_than_alone"]  # of 3, 1 and 4
    assert gained["mean"] == pytest.approx(8 / 3)
    deviation = math.sqrt(((3 - 8 / 3) ** 2 + (1 - 8 / 3) ** 2 + (4 - 8 / 3) ** 2) / 2)
    assert gained["deviation"] == pytest.approx(deviation)
    assert gained["standard_error"] == pytest.approx(deviation / math.sqrt(3))
    assert gained["n"] == 3


def test_a_loss_against_the_student_alone_is_negative():
    gained = summarise([result("alone", 0, 5), result("kd", 0, 9)])["kd"]["fewer_errors_than_alone"]
    assert gained == {"mean": -4.0, "deviation": None, "n": 1, "standard_error": None}


def test_pairs_are_of_one_seed_whatever_the_order():
    results = [result("kd", 2, 1), result("alone", 1, 50), result("kd", 1, 45), result("alone", 2, 4)]
    assert summarise(results) == summarise(reversed(results))
    gained = summarise(results)["kd"]["fewer_errors_than_alone"]
    assert (gained["mean"], gained["n"]) == (4.0, 2)
    assert gained["standard_error"] == pytest.approx(1.0)


def test_a_seed_without_a_partner_is_no_pair():
    summary = summarise([result("alone", 0, 10), result("kd", 0, 8), result("kd", 1, 2)])
    assert summary["kd"]["errors"]["n"] == 2
    assert summary["kd"]["fewer_errors_than_alone"]["n"] == 1
    assert "fewer_errors_than_alone" not in summarise([result("alone", 0, 10), result("kd", 1, 2)])["kd"]


def test_without_the_student_alone_nothing_is_compared():
    summary = summarise([result("teacher", 0, 2), result("kd", 0, 8)])
    assert set(summary) == {"teacher", "kd"}
    assert set(summary["kd"]) == {"accuracy", "errors"}


def test_teachers_and_the_student_alone_are_not_compared_with_it():
    results = [result("member", 0, 3), result("member", 0, 5), result("teacher", 0, 2), result("alone", 0, 10)]
    summary = summarise(results)
    assert not any("fewer_errors_than_alone" in figures for figures in summary.values())


def test_an_ensembles_members_are_left_out():
    assert set(summarise([result("member", 0, 3), result("teacher", 0, 2)])) == {"teacher"}


def test_no_result_gives_no_summary():
    assert summarise([]) == {}
