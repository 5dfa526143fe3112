"""Interleaved rounds: every variant once a round, in an order that changes, disturbed samples again.

A machine has slow phases, and they hit whatever runs then. What is compared is therefore measured side by side, ratios
are taken round by round, and a sample during which others took cores is taken once more.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from limbeck.evaluate import machine
from limbeck.evaluate.machine import Reading, outside_cores

Run = Callable[[int], object]
"""Runs as many steps as it is told."""

DISTURBED = 0.1
"""Cores: a sample during which others took more on average is taken again. A share of the machine would hide, on
many cores, a process that takes a whole one.
"""
AGAIN = 3
"""How often at most."""


@dataclass(frozen=True)
class Sample:
    """One variant in one round."""

    variant: str
    round: int
    seconds: float  # a step
    outside: float | None  # see `outside_cores`
    repeated: int  # samples that were thrown away for this one

    @property
    def disturbed(self) -> bool:
        """Whether others took more than `DISTURBED`, and no repetition helped."""
        return self.outside is not None and self.outside > DISTURBED


@dataclass(frozen=True)
class Spread:
    """A median and its range."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """The median and the range of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def warm_up(run: Run, seconds: float, read: Callable[[], Reading] = machine.read) -> tuple[float, float]:
    """Run one step, then others for that long, one at least; give the seconds that the first and the last one took.

    The first does what is done once, such as compiling, and says nothing of the others.
    """
    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < seconds:
        before = read().wall
        run(1)
        times.append(read().wall - before)
    return times[0], times[-1]


def steps_for(step_seconds: Mapping[str, float], sample_seconds: float) -> dict[str, int]:
    """How many steps each variant runs in a sample of about that length; one at least."""
    return {name: max(1, int(sample_seconds / seconds)) for name, seconds in step_seconds.items()}


def sample_seconds(step_seconds: Mapping[str, float], rounds: int, budget: float, most: float) -> float:
    """The length of a sample with which all rounds fit into the budget, in seconds; at most ``most``.

    A variant whose one step is longer than that takes its one step, at the cost of the others.
    """
    left, sharing = budget / rounds, sorted(step_seconds.values(), reverse=True)
    while sharing and sharing[0] > left / len(sharing):
        left -= sharing.pop(0)
    return min(most, left / len(sharing)) if sharing else 0.0


def interleaved(
    runs: Mapping[str, Run],
    steps: Mapping[str, int],
    rounds: int,
    *,
    until: float = float("inf"),
    read: Callable[[], Reading] = machine.read,
) -> Iterator[Sample]:
    """Measure every variant in every round.

    Two rounds at a time have the same order, there and back; the next two begin one variant later. So none always runs
    early, or always after the same other.

    Args:
        runs: by the variant's name; warmed up.
        steps: that a sample of each runs.
        rounds: at least 1.
        until: the moment, as in `Reading.wall`, to end before: nothing is repeated in time that later samples need.
        read: the clock.
    """
    names = list(runs)
    start, ran = read().wall, 0
    for place in range(rounds * len(names)):
        number, position = divmod(place, len(names))
        name = _order(names, number)[position]
        tries: list[tuple[float, float | None]] = []
        again = True
        while again:
            tries.append(_sample(runs[name], steps[name], read))
            ran += 1
            now = read().wall
            ahead = (rounds * len(names) - place) * (now - start) / ran  # with one more of this
            again = _is_disturbed(tries[-1][1]) and len(tries) <= AGAIN and now + ahead <= until
        seconds, outside = min(tries, key=lambda one: one[1] or 0.0)
        yield Sample(name, number, seconds, outside, len(tries) - 1)


def _order(names: Sequence[str], number: int) -> list[str]:
    first = number // 2 % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def ratios(samples: Sequence[Sample], over: str, under: str) -> Spread:
    """The seconds of one variant over those of another, round by round."""
    of = {(sample.variant, sample.round): sample.seconds for sample in samples}
    return spread([of[over, number] / of[under, number] for name, number in of if name == over])


def _is_disturbed(outside: float | None) -> bool:
    return outside is not None and outside > DISTURBED


def _sample(run: Run, steps: int, read: Callable[[], Reading]) -> tuple[float, float | None]:
    before = read()
    run(steps)
    after = read()
    return (after.wall - before.wall) / steps, outside_cores(before, after)
