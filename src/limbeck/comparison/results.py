"""The typed results of a comparison. Only this module knows the layout of comparison.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from limbeck.comparison.learned import Learned
from limbeck.comparison.statistics import (
    LEVEL,
    Interval,
    McNemar,
    benjamini_hochberg,
    bootstrap_samples,
    bootstrap_seeds,
    differences,
    holm,
    mcnemar,
)
from limbeck.comparison.verdicts import Judged, compare_methods
from limbeck.data.targets import TaskName
from limbeck.errors import LimbeckError
from limbeck.evaluate import Latency
from limbeck.evaluate.cost import QUIET
from limbeck.experiment.results import NetworkResult, Spread, from_json, headline_text, spread
from limbeck.files.atomic import read_sealed
from limbeck.tasks import TASKS, Shown

COMPARISON = "comparison.json"
COMPARED = "comparison.yaml"
"""The recipe with the methods and seeds of the last start."""

SCHEMA = 1
"""Of comparison.json: every key is always there, and null where it does not apply."""

Adjust = Literal["holm", "fdr"]
ADJUST = {"holm": holm, "fdr": benjamini_hochberg}

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class Versus:
    """A method compared with another arm, seed by seed. Above 0, the method is better."""

    arm: str  # the other one
    differences: tuple[float, ...]  # of the headline's score, in the order of the seeds
    judged: Judged
    seeds_interval: Interval | None  # bootstrap over the seeds; None for one seed
    samples_interval: Interval | None  # bootstrap over seeds and test samples; only for classification
    mcnemar: McNemar | None  # of the predictions of all seeds; only for classification

    @property
    def depends_on_samples(self) -> bool:
        """Whether there is a verdict, but the interval over seeds and test samples contains 0."""
        between = self.samples_interval
        return self.judged.verdict != "no evidence" and between is not None and between.low <= 0 <= between.high


@dataclass(frozen=True)
class ArmResult:
    """An arm over its seeds, on the test split."""

    arm: str
    options: dict[str, Any]  # its method, as in a recipe
    epochs: int  # those in which the student learns
    headline: Spread
    latency: Latency | None  # of one sample, of the first seed
    alone: Versus | None  # compared with the student alone of as many epochs; None for students alone
    kd: Versus | None  # compared with kd; None without it, or if its student learns for another number of epochs


@dataclass(frozen=True)
class ComparisonResult:
    """Every arm, and every network's figures."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    name: str
    task: TaskName
    seeds: tuple[int, ...]
    adjusted: Adjust  # how the p-values are adjusted over the methods
    teacher: NetworkResult | None  # of the first seed, with its latency
    teachers: Spread | None  # the headline of the teachers of all seeds; n is 1 if they share one
    arms: tuple[ArmResult, ...]  # students alone first
    splits: dict[str, str]
    notes: tuple[str, ...]
    decided: dict[str, Any]
    runs: tuple[NetworkResult, ...]  # the students of every seed, without latencies
    learned: Learned | None  # None without the networks' outputs: not classification, or too many outputs

    def __str__(self) -> str:
        """One line for each arm, the headline on the test split and the difference, and what `evidence` says."""
        figure = TASKS[self.task].headline
        lines = [f"{self.name}: test {figure.label}{', lower is better' * figure.falls}"]
        if self.teachers is not None:
            lines.append(f"teacher: {headline_text(self.teachers, figure)}")
        for arm in self.arms:
            than = f", {difference_text(arm.alone, figure)} better than {arm.alone.arm}" if arm.alone else ""
            lines.append(f"{arm.arm}: {headline_text(arm.headline, figure)}{than}")
        return "\n".join([*lines, *evidence(self)])

    def of(self, arm: str) -> tuple[NetworkResult, ...]:
        """An arm's networks, in the order of the seeds."""
        return tuple(result for result in self.runs if result.arm == arm)


def read(folder: Path) -> ComparisonResult:
    """The result of a finished comparison.

    Raises:
        LimbeckError: it is not finished, or its file is damaged, was changed or has another schema.
    """
    file = folder / COMPARISON
    values = read_sealed(file)
    if values is None:
        raise LimbeckError(f"{folder} contains no {COMPARISON}: it has no finished comparison")
    if values.get("schema") != SCHEMA:
        raise LimbeckError(f"{file} has schema {values.get('schema')}, but this version of limbeck reads {SCHEMA}")
    try:
        return from_json(ComparisonResult, values)
    except LimbeckError as error:
        raise LimbeckError(f"{file} is not the result of a comparison: {error}") from error


def evidence(result: ComparisonResult) -> Iterator[str]:
    """The verdicts in sentences, and what the number of seeds can show."""
    compared = [(arm, arm.alone) for arm in result.arms if arm.alone is not None]
    for arm, versus in compared:
        yield _sentence(arm, versus, TASKS[result.task].headline)
    for arm in result.arms:
        if arm.kd is not None and arm.kd.judged.verdict != "no evidence":
            better = "better" if arm.kd.judged.verdict == "helps" else "worse"
            yield f"{arm.arm} is {better} than kd (p {arm.kd.judged.p_adjusted:.3f})"
    smallest = max((versus.judged.smallest_p for _, versus in compared), default=0.0)
    if smallest > LEVEL:
        yield (
            f"with {len(result.seeds)} seed{'s' * (len(result.seeds) > 1)} the smallest p of an exact test is "
            f"{smallest:.3g}, so there can be no verdict: use at least 6 seeds"
        )
    times = [one.latency for one in (result.teacher, *result.arms) if one is not None and one.latency is not None]
    busy = max((latency.others_cores or 0.0 for latency in times), default=0.0)
    if busy > QUIET:
        yield f"the latencies are unreliable: other processes used {busy:.1f} cores meanwhile"


def _sentence(arm: ArmResult, versus: Versus, figure: Shown) -> str:
    judged, points = versus.judged, " points" * figure.percent
    said = {"helps": "helps", "hurts": "hurts", "no evidence": "no evidence that it helps or hurts"}[judged.verdict]
    text = f"{arm.arm}: {said} (compared with {versus.arm}, n = {judged.paired.n}"
    if judged.detectable is not None and judged.verdict == "no evidence":
        text += f"; a difference below {figure.number(judged.detectable)}{points} cannot be seen"
    if versus.depends_on_samples and versus.samples_interval is not None:
        low, high = (_signed(end, figure) for end in (versus.samples_interval.low, versus.samples_interval.high))
        text += (
            f"; over seeds and test samples the interval is [{low}, {high}]: other test samples may show no difference"
        )
    return f"{text})"


def difference_text(versus: Versus, figure: Shown) -> str:
    """The mean difference with its 95 % interval."""
    found, interval = versus.judged.paired, versus.judged.paired.interval
    between = "" if interval is None else f" [{_signed(interval.low, figure)}, {_signed(interval.high, figure)}]"
    return f"{_signed(found.mean, figure)}{between}"


def _signed(value: float, figure: Shown) -> str:
    return ("-" if value < 0 else "+") + figure.number(abs(value))


Scores = Mapping[int, float]
"""The headline's score by seed; greater is better."""

Correct = NDArray[np.bool_]
"""(seeds, samples): whether each test sample is classified correctly."""


def scores_of(results: Sequence[NetworkResult], task: TaskName) -> dict[int, float]:
    """The headline's score of the networks of an arm, by seed."""
    headline = TASKS[task].headline
    return {one.seed: headline.score(getattr(one.test, headline.key)) for one in results}


def compared(
    scores: Mapping[str, Scores], against: Mapping[str, str], correct: Mapping[str, Correct], adjust: Adjust
) -> dict[str, Versus]:
    """Compare methods with other arms; their p-values are adjusted together.

    Args:
        scores: of every arm.
        against: by method, the arm that it is compared with.
        correct: of every arm, with the seeds in ascending order; empty if the task is not classification.
        adjust: how the p-values of the t-tests are adjusted.
    """
    found = {arm: differences(scores[arm], scores[other]) for arm, other in against.items()}
    if not found:
        return {}
    judged = compare_methods(found, adjust=ADJUST[adjust])
    return {
        arm: Versus(
            other,
            found[arm],
            judged[arm],
            bootstrap_seeds(found[arm]),
            bootstrap_samples(correct[arm], correct[other]) if correct else None,
            mcnemar(correct[arm], correct[other]) if correct else None,
        )
        for arm, other in against.items()
    }


def headline_of(results: Sequence[NetworkResult], task: TaskName) -> Spread:
    """The task's headline over the networks of an arm."""
    return spread([getattr(one.test, TASKS[task].headline.key) for one in results])
