"""The page on the scale ``paper`` says what its script computes."""

import pytest

from benchmarks.paper_scale import PAGE, cost, row, studies
from limbeck.claims import SYSTEMS

CLAIMS = {claim.name: claim for system in SYSTEMS.values() for claim in system.claims}


def test_the_images_of_a_study_are_those_of_all_its_trainings():
    (study,) = studies(CLAIMS["D1"])
    assert cost(study) == ("cifar100", 21, 21 * 240 * 50_000)  # alone and three methods with five seeds, and a teacher


def test_a_teacher_of_another_study_and_classes_that_are_left_out_are_not_counted():
    teacher, without = studies(CLAIMS["E2"])
    assert cost(teacher) == ("mnist", 11, 3_000 * 60_000 + 10 * 1_000 * 60_000)
    assert cost(without) == ("mnist", 5, pytest.approx(5 * 1_000 * 50_000 * 0.9))


@pytest.mark.parametrize("name", ["D1", "E2"])
def test_the_page_has_the_rows_of_the_script(name):
    assert f"| {' | '.join(row(name, studies(CLAIMS[name])))} |\n" in PAGE.read_text(encoding="utf-8")
