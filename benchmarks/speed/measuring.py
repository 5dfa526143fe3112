"""Interleaved rounds: every variant once a round, in changing order; disturbed samples are taken again.

A machine has slow phases, and they affect whatever runs then. So variants are measured side by side, ratios are taken
round by round, and a sample during which other processes used the cores is repeated.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from limbeck.evaluate import machine
from limbeck.evaluate.machine import Reading, outside_cores

Run = Callable[[int], object]
"""Runs the given number of steps."""

DISTURBED = 0.1
"""Cores: a sample during which other processes used more on average is repeated. A share of the machine would not do:
on many cores it would hide a process that uses a whole one.
"""
REPEATS = 3
"""At most, for one sample."""


def is_disturbed(outside: float | None) -> bool:
    """Whether other processes used more cores than `DISTURBED`; None, where that is unknown, counts as no."""
    return outside is not None and outside > DISTURBED


@dataclass(frozen=True)
class Sample:
    """One variant in one round."""

    variant: str
    round: int
    seconds: float  # per step
    outside: float | None  # cores that other processes used; see `outside_cores`
    repeated: int  # samples that were discarded before this one


def spread(values: Sequence[float]) -> dict[str, float]:
    """The ``median``, ``least`` and ``most`` of at least one value."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def warm_up(run: Run, seconds: float, read: Callable[[], Reading] = machine.read) -> tuple[float, float]:
    """Run one step, then at least one more until ``seconds`` have passed; return the first and the last step's seconds.

    The first step includes what is done once, such as compiling.
    """
    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < seconds:
        before = read().wall
        run(1)
        times.append(read().wall - before)
    return times[0], times[-1]


def steps_for(step_seconds: Mapping[str, float], sample_seconds: float) -> dict[str, int]:
    """How many steps each variant runs in a sample of that length; at least one."""
    return {name: max(1, int(sample_seconds / seconds)) for name, seconds in step_seconds.items()}


def sample_seconds(step_seconds: Mapping[str, float], rounds: int, budget: float, most: float) -> float:
    """The length of a sample in seconds with which all rounds fit into the budget; at most ``most``.

    A variant whose single step is longer takes that step, and the other variants share what is left.
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
    end: float = inf,
    read: Callable[[], Reading] = machine.read,
) -> Iterator[Sample]:
    """Measure every variant in every round.

    Every second round has the reverse order of the round before, and every two rounds the order starts one variant
    later. So no variant always runs early, or always after the same other variant.

    Args:
        runs: by the variant's name; warmed up.
        steps: that each variant runs in a sample.
        rounds: at least 1.
        end: a moment on the clock of `Reading.wall`. A sample is repeated only where all others still fit before it.
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
            ahead = (rounds * len(names) - place) * (now - start) / ran  # includes one repetition of this sample
            again = is_disturbed(tries[-1][1]) and len(tries) <= REPEATS and now + ahead <= end
        seconds, outside = min(tries, key=lambda one: one[1] or 0.0)
        yield Sample(name, number, seconds, outside, len(tries) - 1)


def _order(names: Sequence[str], number: int) -> list[str]:
    first = number // 2 % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def _sample(run: Run, steps: int, read: Callable[[], Reading]) -> tuple[float, float | None]:
    before = read()
    run(steps)
    after = read()
    return (after.wall - before.wall) / steps, outside_cores(before, after)


def ratios(samples: Sequence[Sample], over: str, under: str) -> dict[str, float]:
    """The `spread` of one variant's seconds over another's, round by round."""
    seconds = {(sample.variant, sample.round): sample.seconds for sample in samples}
    return spread([seconds[over, number] / seconds[under, number] for name, number in seconds if name == over])
