"""The typed results of a comparison. Only this module knows the layout of comparison.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from limbeck.comparison.learned import Learned
from limbeck.comparison.statistics import (
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
from limbeck.experiment.results import NetworkResult, Spread, from_json, spread
from limbeck.files.atomic import read_sealed
from limbeck.tasks import TASKS

COMPARISON = "comparison.json"

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
