"""The test of a claim: whether inequalities hold over the seeds.

An inequality is tested in the direction that the claim states, which is fixed before any training. It holds if the mean
of its differences is above 0, and does not hold if the mean is below 0, where both tests of
`limbeck.comparison.verdicts` agree, one-sided at 5 %: the t-test and the exact sign-flip test. The smallest one-sided p
of the latter is 1/32 with 5 seeds, so fewer seeds are inconclusive. A claim of several inequalities holds if all of
them hold, which needs no adjustment of the p-values. It does not hold if any of them does not hold. This is not
adjusted for their number, so with several of them the probability of a wrong "does not hold" can exceed 5 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.comparison.results import ComparisonResult, scores_of
from limbeck.comparison.statistics import LEVEL, paired
from limbeck.data.targets import TaskName
from limbeck.errors import LimbeckError
from limbeck.experiment.results import NetworkResult
from limbeck.tasks import TASKS

Verdict = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True)
class Part:
    """An inequality of a claim, which is true where a difference is above 0; or a fact that needs no statistics."""

    says: str
    differences: tuple[float, ...] = ()  # by seed, or by ensemble
    unit: str = "points"
    fact: bool | None = None


def judge(part: Part) -> Verdict:
    """The verdict on one inequality or fact."""
    if part.fact is not None:
        return "holds" if part.fact else "does not hold"
    found = paired(part.differences)
    if max(found.p_t, found.p_sign_flip) / 2 > LEVEL:
        return "inconclusive"
    return "holds" if found.mean > 0 else "does not hold"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim from those on its parts."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "inconclusive" if "inconclusive" in verdicts else "holds"


def scores(result: ComparisonResult, arm: str) -> dict[int, float]:
    """The `points` of an arm. Those of ``teacher`` are the same for all seeds, which must share it."""
    if arm != "teacher":
        return points(result.of(arm), result.task)
    if result.teacher is None or result.teachers is None or result.teachers.n != 1:
        raise LimbeckError(f"{result.name} has no teacher that all seeds share")
    return dict.fromkeys(result.seeds, *points([result.teacher], result.task).values())


def points(networks: Sequence[NetworkResult], task: TaskName) -> dict[int, float]:
    """The headline of networks by seed, greater is better; in points if it is a percentage."""
    factor = 100 if TASKS[task].headline.percent else 1
    return {seed: factor * score for seed, score in scores_of(networks, task).items()}


def above(result: ComparisonResult, arm: str, other: str, *, below: float = 0.0, where: str = "") -> Part:
    """An arm is above another one, or less than ``below`` points below it. ``where`` begins the sentence."""
    than = f"less than {below:g} point{'s' * (below != 1)} below" if below else "above"
    return greater(scores(result, arm), scores(result, other), f"{where}{arm} is {than} {other}", below=below)


def greater(
    first: Mapping[int, float], second: Mapping[int, float], says: str, *, below: float = 0.0, unit: str = "points"
) -> Part:
    """Figures by seed are above others, or less than ``below`` below them."""
    return Part(says, tuple(first[seed] - second[seed] + below for seed in sorted(first)), unit)


def closer(middle: Mapping[int, float], near: Mapping[int, float], far: Mapping[int, float], says: str) -> Part:
    """Of scores by seed, the first are closer to ``near`` than to ``far``, which are the lower ones."""
    return Part(says, tuple(middle[seed] - (near[seed] + far[seed]) / 2 for seed in sorted(middle)))
