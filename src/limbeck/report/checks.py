"""Whether a result can be shown: numbers are finite and parts agree. A file from elsewhere may hold anything."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.comparison.learned import Learned
from limbeck.comparison.results import ArmResult, ComparisonResult, scores_of
from limbeck.comparison.statistics import differences
from limbeck.errors import LimbeckError
from limbeck.experiment.results import plain, spread
from limbeck.exports.card import Card
from limbeck.tasks import TASKS

LARGEST = 1e30
"""No figure of a network is as large."""

LONGEST = 10_000
"""No name or note has as many characters."""

MOST_ARMS, MOST_NETWORKS = 100, 10_000


def check_card(card: Card, folder: Path) -> None:
    """Raise LimbeckError if what an export says cannot be shown."""
    results = card.results
    costs: list[float] = [results.bytes, results.student_bytes]
    costs += [time for one in results.latency.values() for time in (one.median_ms, one.p95_ms)]
    problem = next(_absurd(plain(card), "card"), None)
    if problem is None and min(costs) <= 0:
        problem = "a size or a latency is not above 0"
    if problem is None and any(peak is not None and peak < 0 for peak in results.memory.values()):
        problem = "a memory is below 0"
    if problem is not None:
        raise LimbeckError(f"the export {folder} cannot be shown: {problem}")


def check(result: ComparisonResult, folder: Path) -> None:
    """Raise LimbeckError if a result cannot be shown."""
    try:
        problem = next(_problems(result), None)
    except RecursionError:
        problem = "its values are nested too deeply"
    if problem is not None:
        raise LimbeckError(f"the result in {folder} cannot be shown: {problem}")


def _problems(result: ComparisonResult) -> Iterator[str]:
    yield from _absurd(plain(result))
    if not 0 < len(result.arms) <= MOST_ARMS or len(result.runs) > MOST_NETWORKS:
        yield (
            f"it has {len(result.arms)} arms and {len(result.runs)} networks, allowed are 1 to {MOST_ARMS} arms and "
            f"at most {MOST_NETWORKS:,} networks"
        )
    networks = [*result.runs, *([result.teacher] if result.teacher else [])]
    headline = TASKS[result.task].headline
    if not all(hasattr(one.test, headline.key) for one in networks):
        yield f"it has figures that are not of {result.task}"
    one, several = result.teacher, result.teachers
    if (one is None) != (several is None):
        yield "it has a teacher without its mean, or the reverse"
    if one and several and several.n == 1 and several.mean != getattr(one.test, headline.key, None):
        yield "the mean of the teacher is not that of its network"
    names = Counter([*(arm.arm for arm in result.arms), *(one.name for one in networks)])
    yield from (f"it has {name} {count} times" for name, count in names.items() if count > 1)
    yield from (
        f"the arm {one.arm!r} is not the name of a folder"
        for one in networks
        if any(sign in one.arm for sign in "/\\\0") or not one.arm
    )
    for arm in result.arms:
        yield from _of_arm(result, arm)
    if result.learned is not None:
        yield from _of_learned(result.learned, {"teacher", *(arm.arm for arm in result.arms)})


def _absurd(value: Any, place: str = "result") -> Iterator[str]:
    """Where plain values have numbers that are not finite or too large for any figure, or very long texts."""
    if isinstance(value, float) and not abs(value) < LARGEST:
        yield f"{place} is {value}"
    if isinstance(value, int) and abs(value) >= LARGEST:
        yield f"{place} has {len(str(abs(value)))} digits"
    if isinstance(value, str) and len(value) > LONGEST:
        yield f"{place} has {len(value):,} characters"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _absurd(one, f"{place}.{key}")


def _of_arm(result: ComparisonResult, arm: ArmResult) -> Iterator[str]:
    """Whether the figures of an arm are those of its networks."""
    key, runs = TASKS[result.task].headline.key, result.of(arm.arm)
    if not runs:
        yield f"it has no networks of {arm.arm}"
    elif not math.isclose(arm.headline.mean, spread([getattr(one.test, key) for one in runs]).mean, rel_tol=1e-9):
        yield f"the mean of {arm.arm} is not that of its networks"
    for versus in (arm.alone, arm.kd):
        if versus is not None:
            scores, baseline = (scores_of(result.of(name), result.task) for name in (arm.arm, versus.arm))
            if not scores.keys() & baseline.keys() or differences(scores, baseline) != versus.differences:
                yield f"the differences of {arm.arm} to {versus.arm} are not those of their networks"


def _of_learned(learned: Learned, arms: set[str]) -> Iterator[str]:
    kinds = {tuple(one.corrupted_accuracy) for one in learned.networks if one.corrupted_accuracy is not None}
    names = Counter(one.arm for one in learned.networks)
    for one in learned.networks:
        lengths = {len(values) for values in (one.class_accuracy, one.class_change) if values is not None}
        calibration = one.calibration
        bins = [*calibration.before.bins, *(calibration.after.bins if calibration.after else ())]
        fits = one.arm in arms and names[one.arm] == 1 and lengths == {len(learned.classes)} and len(kinds) <= 1
        fits = fits and (one.clean_accuracy is not None or not one.corrupted_accuracy)
        if not fits or any(part.samples < 0 for part in bins) or (one.class_change and "alone" not in names):
            yield f"what {one.arm} learned does not fit the other figures"
        if one.deferral is not None and not one.deferral.curve:
            yield f"the deferral of {one.arm} has no curve"
