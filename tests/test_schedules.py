import math

import pytest

from limbeck.core import LimbeckError
from limbeck.schedules import constant, cosine, linear, steps


def test_constant_is_constant():
    assert [constant(value=0.3)(progress) for progress in (0.0, 0.5, 0.99)] == [0.3, 0.3, 0.3]


def test_linear_goes_from_start_to_end_and_stays_there():
    schedule = linear(start=4, end=1, until=0.5)
    assert [schedule(progress) for progress in (0.0, 0.25, 0.5, 0.9)] == [4, 2.5, 1, 1]


def test_cosine_falls_from_one_to_its_end():
    schedule = cosine(end=0.1)
    assert schedule(0.0) == 1
    assert schedule(0.5) == pytest.approx(0.55)
    assert schedule(1.0) == pytest.approx(0.1)


def test_cosine_rises_first_where_there_is_a_warmup():
    schedule = cosine(warmup=0.2)
    assert [schedule(progress) for progress in (0.0, 0.1)] == [0.0, 0.5]
    assert schedule(0.2) == 1
    assert schedule(0.4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_steps_multiply_at_each_share():
    schedule = steps(at=[0.5, 0.75], factor=0.1)
    assert [schedule(progress) for progress in (0.0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize("make", [lambda: linear(until=0), lambda: steps(at=[1.5]), lambda: cosine(warmup=1)])
def test_a_share_outside_the_stage_is_refused(make):
    with pytest.raises(LimbeckError, match="allowed are fractions of the stage"):
        make()
