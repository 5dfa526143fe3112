"""Put the page together, and write it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from limbeck.comparison.maps import read_maps
from limbeck.data import Data, Progress
from limbeck.experiment.runfiles import REPORT
from limbeck.files.atomic import write
from limbeck.recipe.read import dump
from limbeck.report.arms import arms
from limbeck.report.calibration import calibration
from limbeck.report.classes import classes
from limbeck.report.costs import costs
from limbeck.report.curves import curves
from limbeck.report.deferral import deferral
from limbeck.report.differences import differences
from limbeck.report.features import features
from limbeck.report.found import Found, read
from limbeck.report.numbers import printable
from limbeck.report.parts import Section, Table
from limbeck.report.pictures import Picture, data_of, pictures
from limbeck.report.verdict import verdict

HERE = Path(__file__).parent


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
    yield costs(result)
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
    yield features(found, learned, found.attempt("maps", lambda: read_maps(found.folder, learned.maps_sha256)))
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


def _said(value: Any) -> str:
    """A plain value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return {True: "yes", False: "no", None: "none"}.get(value, str(value)) if not isinstance(value, str) else value
