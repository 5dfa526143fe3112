"""What a run comes to, typed: the one place that knows how result.json is laid out."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from limbeck.data.targets import TaskName
from limbeck.errors import LimbeckError
from limbeck.evaluate import Figures, Latency
from limbeck.files.atomic import read_sealed
from limbeck.tasks import TASKS, Shown

SCHEMA = 3
"""Of result.json: every key is always there, and null where it does not apply."""

RESULT = "result.json"

_KINDS = {kind.__name__ for kind in get_args(Figures)}
_STRICT = ConfigDict(strict=True, extra="forbid")

Result = TypeVar("Result")


class OtherSchema(LimbeckError):
    """A result of another version of limbeck."""


@dataclass(frozen=True)
class NetworkResult:
    """A trained network's figures and cost."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    arm: str  #: "teacher", "member" (of an ensemble teacher), "alone", or the method's name
    seed: int
    member: int | None  #: its number in the ensemble; None where it is in none
    test: Figures
    validation: Figures | None  #: None without a validation split
    parameters: int
    macs: int | None  #: multiply-accumulates of one sample; None where they cannot be counted
    file_bytes: int  #: as safetensors, in 32 bits
    latency: Latency | None = None  #: of one sample; None where it is not measured
    best_epoch: int | None = None  #: the epoch of the last stage that gave the weights; None without `keep: best`
    weights_sha256: str | None = None  #: of the weights' file; None where none is written
    trained_as: str | None = None  #: of a student alone: SHA-256 of all that decides its weights
    teacher_after: "NetworkResult | None" = None  #: the teacher as the method left it, where the method trains one
    bias_shift: dict[str, Any] | None = None  #: see `limbeck.evaluate.bias_study`
    class_scatter: float | None = None  #: only of `teacher_after`: see `limbeck.evaluate.features.class_scatter`
    own_metric: float | None = None  #: `task.metric` on the test split; None without one, or if it is not finite

    @property
    def name(self) -> str:
        """``kd/seed0``, as its folder is called."""
        return f"{self.arm}/seed{self.seed}" + ("" if self.member is None else f"-{self.member}")


@dataclass(frozen=True)
class Spread:
    """Several seeds' values of one figure."""

    mean: float
    deviation: float | None  #: sample standard deviation; None for one value
    n: int


@dataclass(frozen=True)
class Gain:
    """The differences between two arms, paired by seed."""

    mean: float
    deviation: float | None
    n: int
    standard_error: float | None  #: of the mean; None for one pair


@dataclass(frozen=True)
class ArmSummary:
    """An arm over its seeds, on the test split."""

    headline: Spread  #: of the accuracy; of other tasks, of the figure that `limbeck.tasks` names
    better_than_alone: Gain | None  #: of the headline, above 0 is better; None for teacher, alone, or no common seed
    errors: Spread | None = None  #: these two only for classification
    fewer_errors_than_alone: Gain | None = None


@dataclass(frozen=True)
class RunResult:
    """A whole run: the networks of the first seed with their latencies, and every network's figures."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    name: str
    task: TaskName
    method: str
    seeds: tuple[int, ...]
    teacher: NetworkResult | None  #: the whole ensemble, where it is one
    student: NetworkResult
    alone: NetworkResult | None
    summary: dict[str, ArmSummary]
    splits: dict[str, str]  #: where each split came from
    notes: tuple[str, ...]  #: what a user should know
    decided: dict[str, Any]  #: what `auto` came to: device, precision and why, compile, cache
    runs: tuple[NetworkResult, ...]  #: of every seed, without latencies
    metric: str | None  #: the name of the user's function, whose values are `own_metric`

    def __str__(self) -> str:
        """One line for each arm: the headline on the test split, and the number of parameters."""
        figure = TASKS[self.task].headline
        lines = [f"{self.name}: test {figure.label}{', lower is better' * figure.falls}"]
        for arm, row in self.summary.items():
            lines.append(f"{arm}: {headline_text(row.headline, figure)}, {self.of(arm)[0].parameters:,} parameters")
        return "\n".join(lines)

    def of(self, arm: str) -> tuple[NetworkResult, ...]:
        """An arm's networks, one a seed."""
        return tuple(result for result in self.runs if result.arm == arm)


def read(folder: Path) -> RunResult:
    """What a finished run folder says.

    Raises:
        LimbeckError: the run is not finished, or its result is damaged, was changed or has another schema.
    """
    values = read_values(folder)
    if values is None:
        raise LimbeckError(f"{folder} contains no {RESULT}: it has no finished run")
    values.pop("recipe", None)
    try:
        result = from_json(RunResult, values)
    except LimbeckError as error:
        raise LimbeckError(f"{folder / RESULT} is not the result of a run: {error}") from error
    shown = (TASKS[result.task].headline, *TASKS[result.task].others)
    if not all(hasattr(one.test, figure.key) for one in (*result.runs, result.student) for figure in shown):
        raise LimbeckError(f"{folder / RESULT} is not the result of a run: its figures are not of {result.task}")
    return result


def read_values(folder: Path) -> dict[str, Any] | None:
    """The plain values of a run's result; None without one.

    Raises:
        OtherSchema: they are of another schema.
        LimbeckError: the file is damaged or was changed.
    """
    values = read_sealed(folder / RESULT)
    if values is not None and values.get("schema") != SCHEMA:
        raise OtherSchema(
            f"{folder / RESULT} has schema {values.get('schema')}, but this version of limbeck reads schema {SCHEMA}: "
            "use the version that environment.json beside it names, or run the recipe again in another folder"
        )
    return values


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and number."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def spread_text(spread: Spread, figure: Shown) -> str:
    """``mean ± deviation``; the mean alone if there is one value."""
    mean = figure.number(spread.mean)
    return mean if spread.deviation is None else f"{mean} ± {figure.number(spread.deviation)}"


def headline_text(headline: Spread, figure: Shown) -> str:
    """The same with the unit and the number of values."""
    return f"{spread_text(headline, figure)}{' %' * figure.percent}, n = {headline.n}"


def summarise(results: Iterable[NetworkResult], task: TaskName = "classification") -> dict[str, ArmSummary]:
    """Each arm over its seeds, and what a method gained over the student alone.

    The members of an ensemble are left out: the ensemble is the teacher.
    """
    arms: dict[str, dict[int, Any]] = {}
    for result in results:
        if result.member is None:
            arms.setdefault(result.arm, {})[result.seed] = result.test
    headline = TASKS[task].headline
    found = {}
    for arm, tests in arms.items():
        alone = arms.get("alone", {}) if arm not in ("alone", "teacher") else {}
        values = {seed: getattr(test, headline.key) for seed, test in tests.items()}
        gained = [
            headline.score(value) - headline.score(getattr(alone[seed], headline.key))
            for seed, value in values.items()
            if seed in alone
        ]
        found[arm] = ArmSummary(spread(list(values.values())), _gain(gained))
        if task == "classification":
            fewer = [alone[seed].errors - test.errors for seed, test in tests.items() if seed in alone]
            errors = spread([test.errors for test in tests.values()])
            found[arm] = replace(found[arm], errors=errors, fewer_errors_than_alone=_gain(fewer))
    return found


def _gain(differences: Sequence[float]) -> Gain | None:
    if not differences:
        return None
    found = spread(differences)
    error = None if found.deviation is None else found.deviation / len(differences) ** 0.5
    return Gain(found.mean, found.deviation, found.n, error)


def plain(result: Any) -> dict[str, Any]:
    """A result (a dataclass) as plain values, as they are written to JSON."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(result)))
    return values


def from_json(kind: type[Result], values: Any) -> Result:
    """The `NetworkResult` or `RunResult` whose `plain` values these are.

    Raises:
        LimbeckError: they are no such result.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        tried = Counter(_kind(one["loc"]) for one in found)  # the errors of figures are listed for every task
        first = min(found, key=lambda one: tried[_kind(one["loc"])])
        place = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
        raise LimbeckError(f"{place}: {first['msg']}") from error


def _kind(place: Sequence[int | str]) -> int | str | None:
    return next((part for part in place if part in _KINDS), None)
