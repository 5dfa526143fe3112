"""Put the page together, and write it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from limbeck.comparison.learned import Learned
from limbeck.comparison.maps import MAPS, Maps, read_maps
from limbeck.data import Data, Progress
from limbeck.errors import LimbeckError
from limbeck.experiment.runfiles import REPORT
from limbeck.files.atomic import write
from limbeck.recipe.read import dump
from limbeck.report.arms import arms
from limbeck.report.calibration import calibration
from limbeck.report.classes import classes
from limbeck.report.colours import DARK, LIGHT
from limbeck.report.costs import costs
from limbeck.report.curves import curves
from limbeck.report.deferral import deferral
from limbeck.report.differences import differences
from limbeck.report.drawing import looks, variables
from limbeck.report.features import features
from limbeck.report.found import Found, read
from limbeck.report.numbers import printable
from limbeck.report.parts import Section, Table
from limbeck.report.pictures import Picture, data_of, pictures
from limbeck.report.verdict import verdict

HERE = Path(__file__).parent

MOST_SAID = 500
"""The most characters of a value of an environment."""

MOST_SAMPLES = 5_000
"""The most samples of a map."""


def write_report(
    folder: Path, out: Path | None = None, *, data: Data | None = None, progress: Progress | None = None
) -> Path:
    """Write the page on a run or comparison, and return its path.

    Args:
        folder: of the run or comparison.
        out: the file; by default report.html in the folder.
        data: that of the networks, if it is in memory; otherwise it is loaded as the recipe says.
        progress: is called while the data is read, see `limbeck.data.load`.

    Raises:
        LimbeckError: the folder has no finished run or comparison, or its result is damaged.
    """
    path = out or folder / REPORT
    write(path, page(read(folder), data, progress))
    return path


def page(found: Found, data: Data | None = None, progress: Progress | None = None) -> str:
    """The page as HTML; the arguments are those of `write_report`."""
    result = found.result
    shown: list[Picture] = []
    if result.task == "classification" and not found.is_run:
        shown = found.attempt("pictures", lambda: pictures(found, data or data_of(found, progress))) or []
    jinja = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = jinja.get_template("page.html").render(
        name=result.name,
        kind="Run" if found.is_run else "Comparison",
        verdict=verdict(result),
        facts=_facts(found),
        sections=list(_sections(found)),
        pictures=shown,
        student=found.best,
        student_colour=variables(looks(result)[found.best].colour),
        light="; ".join(f"--{name}: {colour}" for name, colour in LIGHT.items()),
        dark="; ".join(f"--{name}: {colour}" for name, colour in DARK.items()),
        seed=result.seeds[0],
        settings=_settings(found),
        notes=result.notes,
        recipe=None if found.recipe is None else dump(found.recipe),
        command=found.command,
        is_run=found.is_run,
        missing=found.missing,
    )
    return printable(text)


def _sections(found: Found) -> Iterator[Section]:
    result = found.result
    yield differences(result)
    yield costs(result, found.exports, found.missing.get("exports", []))
    yield curves(found)
    yield arms(found)
    if result.task != "classification" or found.is_run:
        return
    learned = result.learned
    disagreement = Section("pictures", "Where teacher and student disagree", missing=found.missing.get("pictures", []))
    if learned is None:
        yield Section("learned", "What the student learned", missing=["its figures, which are not in the folder"])
        yield disagreement
        return
    yield calibration(found, learned)
    yield classes(learned)
    yield features(found, learned, found.attempt("maps", lambda: _maps(found, learned)))
    yield disagreement
    yield deferral(found, learned)


def _facts(found: Found) -> list[tuple[str, str]]:
    """The size of the study, in words."""
    result = found.result
    methods = [arm.arm for arm in result.arms if arm.alone is not None]
    networks = [*result.runs, *([result.teacher] if result.teacher else [])]
    return [
        ("task", result.task.replace("_", " ")),
        ("compared with the student alone", ", ".join(methods) or "none"),
        ("seeds", ", ".join(map(str, result.seeds))),
        ("test samples", f"{networks[0].test.samples:,}"),
    ]


def _settings(found: Found) -> list[tuple[str, Table]]:
    """Where the data came from, and in which environments the networks were trained."""
    result = found.result
    tables = [("Splits", Table(["split", "source"], list(result.splits.items())))]
    if result.decided:
        rows = [(key, _said(value)) for key, value in result.decided.items()]
        tables.append(("Decided", Table(["key", "value"], rows)))
    for place, environment in enumerate(found.environments[:3]):
        rows = [
            (key, _said(value)) for key, value in environment.items() if key not in result.decided and value is not None
        ]
        name = "Environment" if len(found.environments) == 1 else f"Environment {place + 1}"
        tables.append((name, Table(["", ""], rows)))
    return tables


def _said(value: Any, depth: int = 3) -> str:
    """A plain value in words, of limited length."""
    if isinstance(value, dict | list) and not depth:
        return "…"
    if isinstance(value, dict):
        said = ", ".join(f"{key} {_said(one, depth - 1)}" for key, one in value.items() if one is not None)
    elif isinstance(value, list):
        said = ", ".join(_said(one, depth - 1) for one in value) or "none"
    elif isinstance(value, bool):
        said = "yes" if value else "no"
    else:
        said = str(value)
    return said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}…"


def _maps(found: Found, learned: Learned) -> Maps:
    """The maps of the features, if they fit what the networks learned."""
    maps = read_maps(found.folder, learned.maps_sha256)
    inside = (maps.labels >= 0).all() and (maps.labels < len(learned.classes)).all()
    finite = all(np.isfinite(points).all() for points in maps.points.values())
    if not (0 < len(maps.labels) <= MOST_SAMPLES and inside and finite):
        raise LimbeckError(f"{found.folder / MAPS} has other classes or samples than the result")
    return maps
