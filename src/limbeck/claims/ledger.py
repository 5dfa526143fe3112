"""What was measured: a line of JSON for each claim and scale, in one file for each paper."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from limbeck.claims.checks import Part, Verdict, judge, together
from limbeck.claims.claim import Claim, Results, Scale, System
from limbeck.claims.ensembles import Ensemble, spreads
from limbeck.comparison.locks import lock
from limbeck.comparison.results import ComparisonResult
from limbeck.comparison.statistics import Interval, paired
from limbeck.errors import LimbeckError
from limbeck.experiment.results import from_json, headline_text, plain, spread, spread_text
from limbeck.files.atomic import JSON_BYTES, read, write
from limbeck.recipe.read import SMOKE
from limbeck.tasks import TASKS

RESULTS = "results"
"""The folder of the files."""


@dataclass(frozen=True)
class PartRow:
    """A `Part` with its verdict; without statistics if it is a fact."""

    says: str
    verdict: Verdict
    unit: str
    n: int  # seeds, or ensembles
    mean: float | None  # of the differences
    interval: Interval | None


@dataclass(frozen=True)
class Row:
    """A claim as it was measured at a scale."""

    claim: str
    scale: Scale
    verdict: Verdict
    parts: tuple[PartRow, ...]
    figures: dict[str, str]  # by study and arm, the headline on the test split; of ensembles by study and figure
    lines: dict[str, tuple[tuple[float, float], ...]]  # of the figure
    command: str
    version: str  # of limbeck
    tried: str = ""  # written by hand: if the claim does not hold, what was tried and the likely cause


def row_of(claim: Claim, scale: Scale, results: Results, first_seed: int = 0) -> Row:
    """Decide a claim; ``first_seed`` is that of the students."""
    parts = tuple(map(_judged, claim.parts(results)))
    seeds = f" --first-seed {first_seed}" if first_seed else ""
    return Row(
        claim=claim.name,
        scale=scale,
        verdict=together([part.verdict for part in parts]),
        parts=parts,
        figures=dict(_figures(claim, scale, results)),
        lines={} if claim.curve is None else {name: tuple(line) for name, line in claim.curve.lines(results).items()},
        command=f"limbeck reproduce {claim.name} --scale {scale}{seeds}",
        version=version("limbeck"),
    )


def _judged(part: Part) -> PartRow:
    if part.fact is not None:
        return PartRow(part.says, judge(part), part.unit, 0, None, None)
    found = paired(part.differences)
    return PartRow(part.says, judge(part), part.unit, found.n, found.mean, found.interval)


def _figures(claim: Claim, scale: Scale, results: Results) -> Iterator[tuple[str, str]]:
    for study in claim.studies:
        if study.ensemble > 1:
            name = study.name + SMOKE if scale == "smoke" else study.name
            yield from _of_ensembles(name, results.ensembles[study.name])
            continue
        result = results[study.name]
        headlines = {} if result.teachers is None else {"teacher": result.teachers}
        headlines |= {arm.arm: arm.headline for arm in result.arms}
        figure = TASKS[result.task].headline
        yield from ((f"{result.name}, {arm}", headline_text(one, figure)) for arm, one in headlines.items())
        for arm in headlines:
            if taught := [one.teacher_after for one in result.runs if one.arm == arm and one.teacher_after is not None]:
                own = spread([getattr(one.test, figure.key) for one in taught])
                yield f"{result.name}, {arm}, its teacher", headline_text(own, figure)
            yield from ((f"{result.name}, {arm}, {name}", text) for name, text in _bias_figures(result, arm))


def _bias_figures(result: ComparisonResult, arm: str) -> Iterator[tuple[str, str]]:
    """The errors of an arm that learned some of the classes, before and after its bias is shifted."""
    shifts = [one.bias_shift for one in result.runs if one.arm == arm and one.bias_shift is not None]
    if not shifts:
        return
    classes = shifts[0]["classes"]
    named = f"class{'es' * (len(classes) > 1)} {' and '.join(map(str, classes))}"
    (errors,) = (one for one in TASKS["classification"].others if one.key == "errors")
    for key, name in _BIASES.items():
        every, own = (spread([one[key][count] for one in shifts]) for count in ("errors", "errors_on_classes"))
        told = f"{spread_text(every, errors)} errors, {spread_text(own, errors)} of them on {named}"
        yield name, f"{told}, n = {len(shifts)}"


_BIASES = {
    "before": "bias as trained",
    "validation_tuned": "bias chosen on validation",
    "test_tuned": "bias chosen on the test split, as the paper does",
}
"""The figures of `limbeck.evaluate.bias_study`, and what the page calls them."""


def _of_ensembles(name: str, found: Sequence[Ensemble]) -> Iterator[tuple[str, str]]:
    accuracy = TASKS["classification"].headline
    yield from ((f"{name}, {figure}", headline_text(one, accuracy)) for figure, one in spreads(found).items())


def rows(folder: Path, system: System) -> list[Row]:
    """What was measured of a paper's claims, in their order.

    Raises:
        LimbeckError: the file is not readable, or has lines that are not rows.
    """
    file = folder / RESULTS / f"{system.name}.jsonl"
    lines = (read(file, JSON_BYTES) or b"").decode(errors="replace").splitlines()
    try:
        found = [from_json(Row, json.loads(line)) for line in lines]
    except (LimbeckError, ValueError, RecursionError) as error:
        raise LimbeckError(f"{file} has a line that is no result of limbeck reproduce: {error}") from error
    order = [claim.name for claim in system.claims]
    return sorted((row for row in found if row.claim in order), key=lambda row: order.index(row.claim))


def add(folder: Path, system: System, row: Row) -> None:
    """Write a row in place of the one of the same claim and scale; if its verdict is the same, keep its `Row.tried`."""
    with lock(folder / RESULTS, system.name):  # another process may add a row
        others = rows(folder, system)
        old = next((one for one in others if (one.claim, one.scale) == (row.claim, row.scale)), row)
        kept = [one for one in others if one is not old]
        tried = row.tried or (old.tried if old.verdict == row.verdict else "")
        lines = [json.dumps(plain(one), ensure_ascii=False) for one in (*kept, replace(row, tried=tried))]
        write(folder / RESULTS / f"{system.name}.jsonl", "".join(f"{line}\n" for line in lines))
