import math

import pytest

from benchmarks.speed.measuring import (
    DISTURBED,
    REPEATS,
    Sample,
    interleaved,
    is_disturbed,
    ratios,
    sample_seconds,
    spread,
    steps_for,
    warm_up,
)
from limbeck.evaluate.machine import Reading


class Machine:
    """A machine of one CPU whose time only passes where it is told to: while a variant runs, and others with it."""

    def __init__(self, seconds, others=()):
        self.seconds = dict(seconds)
        self.others = list(others)  # the shares that others take of one sample after the other, then nothing
        self.wall = self.own = self.busy = 0.0
        self.ran = []

    def runs(self):
        return {name: lambda steps, name=name: self._run(name, steps) for name in self.seconds}

    def read(self):
        return Reading(self.wall, self.own, self.busy, 1)

    def _run(self, name, steps):
        share = self.others.pop(0) if self.others else 0.0
        work = self.seconds[name] * steps
        self.ran.append((name, steps))
        self.own += work
        self.wall += work / (1 - share)
        self.busy += work / (1 - share)


def test_every_round_has_every_variant():
    machine = Machine({"a": 1.0, "b": 2.0, "c": 3.0})
    steps = {"a": 3, "b": 2, "c": 1}
    samples = list(interleaved(machine.runs(), steps, 4, read=machine.read))
    assert [sample.variant for sample in samples] == list("abccbabcaacb")
    assert [sample.round for sample in samples] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert machine.ran[:3] == [("a", 3), ("b", 2), ("c", 1)]
    assert {(sample.variant, sample.seconds) for sample in samples} == {("a", 1.0), ("b", 2.0), ("c", 3.0)}
    assert all(sample.outside == 0.0 and not sample.repeated and not is_disturbed(sample.outside) for sample in samples)


@pytest.mark.parametrize("names", ["ab", "abc", "abcdefgh"])
def test_none_always_follows_the_same_other_or_always_runs_early(names):
    machine = Machine(dict.fromkeys(names, 1.0))
    rounds = 2 * len(names)
    ran = [one.variant for one in interleaved(machine.runs(), dict.fromkeys(names, 1), rounds, read=machine.read)]
    orders = [ran[start : start + len(names)] for start in range(0, len(ran), len(names))]
    assert all(sorted(order) == list(names) for order in orders)
    for name in names:
        places = [order.index(name) for order in orders]
        assert sum(places) / rounds == (len(names) - 1) / 2  # in the middle, on average
        others = [order[order.index(name) - 1] for order in orders if order[0] != name]
        assert max(others.count(other) for other in names) <= rounds / 2


def test_a_disturbed_sample_is_taken_again():
    machine = Machine({"a": 1.0, "b": 1.0}, others=[0.5, 0.0, 0.2, 0.2, 0.0])
    samples = list(interleaved(machine.runs(), {"a": 1, "b": 1}, 1, read=machine.read))
    assert [(one.variant, one.repeated, is_disturbed(one.outside)) for one in samples] == [
        ("a", 1, False),
        ("b", 2, False),
    ]
    assert [one.seconds for one in samples] == pytest.approx([1.0, 1.0])
    assert [name for name, _ in machine.ran] == ["a", "a", "b", "b", "b"]


def test_of_samples_that_stay_disturbed_the_least_disturbed_is_kept():
    machine = Machine({"a": 1.0}, others=[0.5, 0.4, 0.2, 0.3, 0.0])
    (sample,) = interleaved(machine.runs(), {"a": 1}, 1, read=machine.read)
    assert sample.outside == pytest.approx(0.2)
    assert sample.seconds == pytest.approx(1 / 0.8)
    assert is_disturbed(sample.outside)
    assert sample.repeated == REPEATS == 3


def test_two_cores_are_disturbed_from_a_twentieth_of_them_on():
    assert DISTURBED / 2 == 0.05
    assert is_disturbed(0.11)
    assert not is_disturbed(0.1)


def test_a_share_at_the_threshold_is_not_a_disturbance():
    machine = Machine({"a": 1.0}, others=[DISTURBED - 1e-9])
    (sample,) = interleaved(machine.runs(), {"a": 1}, 1, read=machine.read)
    assert sample.repeated == 0
    assert not is_disturbed(sample.outside)


@pytest.mark.parametrize(
    ("end", "repeated"),
    [
        (math.inf, (3, 3, 3)),
        (24.0, (3, 3, 3)),  # 12 samples of 2 s
        (16.0, (3, 2, 0)),
        (7.9, (0, 0, 0)),  # one more and the others would end at 8 s
        (8.0, (1, 0, 0)),
        (0.0, (0, 0, 0)),
    ],
)
def test_nothing_is_repeated_in_time_that_later_rounds_need(end, repeated):
    machine = Machine({"a": 1.0}, others=[0.5] * 20)
    samples = list(interleaved(machine.runs(), {"a": 1}, 3, end=end, read=machine.read))
    assert tuple(sample.repeated for sample in samples) == repeated
    assert all(is_disturbed(sample.outside) for sample in samples)
    assert machine.wall <= max(end, 6.0)


def test_nothing_is_repeated_where_the_share_is_not_known():
    class Silent(Machine):
        def read(self):
            return Reading(self.wall, self.own, None, 1)

    machine = Silent({"a": 1.0}, others=[0.9])
    (sample,) = interleaved(machine.runs(), {"a": 1}, 1, read=machine.read)
    assert sample.outside is None
    assert not is_disturbed(sample.outside)
    assert machine.ran == [("a", 1)]


def test_warming_up_gives_the_first_and_the_last_step():
    machine = Machine({"a": 0.5}, others=[0.75])
    assert warm_up(machine.runs()["a"], 1.5, read=machine.read) == pytest.approx((2.0, 0.5))
    assert machine.ran == [("a", 1)] * 4  # the first does not count


@pytest.mark.parametrize("seconds", [0.0, 0.1, 7.0])
def test_warming_up_runs_two_steps_at_least(seconds):
    machine = Machine({"a": 7.0})
    assert warm_up(machine.runs()["a"], seconds, read=machine.read) == (7.0, 7.0)
    assert len(machine.ran) == 2


def test_samples_have_as_many_steps_as_fit():
    assert steps_for({"fast": 0.1, "slow": 0.7, "slower": 3.0}, 1.5) == {"fast": 15, "slow": 2, "slower": 1}


@pytest.mark.parametrize(
    ("seconds", "rounds", "budget", "length"),
    [
        ({"a": 0.1, "b": 0.1}, 5, math.inf, 2.0),  # no hurry: the most
        ({"a": 0.1, "b": 0.1}, 5, 5.0, 0.5),
        ({"a": 0.7, "b": 0.1}, 5, 5.0, 0.3),  # a takes 0.7 of each round's second
        ({"a": 0.7, "b": 0.2, "c": 0.05}, 5, 5.0, 0.1),  # b takes its 0.2
        ({"a": 3.0, "b": 2.0}, 5, 5.0, 0.0),  # one step each is too much already
        ({"a": 0.1}, 5, 0.0, 0.0),
    ],
)
def test_samples_are_as_long_as_the_budget_allows(seconds, rounds, budget, length):
    found = sample_seconds(seconds, rounds, budget, 2.0)
    assert found == pytest.approx(length)
    taken = sum(steps * seconds[name] for name, steps in steps_for(seconds, found).items())
    assert taken * rounds <= max(budget, rounds * sum(seconds.values())) + 1e-9


def test_ratios_are_taken_round_by_round():
    samples = [
        Sample(variant, number, seconds, None, 0)
        for number, pair in enumerate([(2.0, 1.0), (30.0, 10.0), (5.0, 1.0)])
        for variant, seconds in zip("ab", pair, strict=True)
    ]
    assert ratios(samples, "a", "b") == {"median": 3.0, "least": 2.0, "most": 5.0}
    assert ratios(samples[::-1], "b", "a") == {"median": 1 / 3, "least": 1 / 5, "most": 1 / 2}


def test_a_spread_is_median_and_range():
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "least": 1.0, "most": 10.0}
