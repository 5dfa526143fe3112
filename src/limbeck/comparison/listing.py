"""The runs and comparisons in a folder, with their results and the command that makes or resumes each."""

import shlex
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from limbeck.comparison import results as comparisons
from limbeck.comparison.results import COMPARED, COMPARISON, ComparisonResult
from limbeck.data.targets import TaskName
from limbeck.errors import LimbeckError
from limbeck.experiment.epochlog import EpochLog
from limbeck.experiment.launch import torchrun
from limbeck.experiment.results import RESULT, RunResult, read
from limbeck.experiment.runfiles import ENVIRONMENT, LOCKS, LOG, RECIPE
from limbeck.files.alone import LOCK, is_locked
from limbeck.files.atomic import read_sealed
from limbeck.models import GIVEN
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import SMOKE, reread
from limbeck.tasks import TASKS

MOST = 10_000
"""The most entries of a folder that is listed."""

RUNS = "running"
"""The state of a run or comparison in whose folder a process trains."""

LATEST = 2**37
"""The latest date in seconds, in the year 6325. A file from an archive may have a time that is not a date."""


@dataclass(frozen=True)
class ListedRun:
    """A run or comparison, with the headline of the task on the test split, the mean over the seeds."""

    folder: str
    state: str  # "finished", "smoke test", "running", "interrupted" (with the place if a run), "damaged: " and why
    date: str  # of the last change of its result, else of its log or recipe; ISO 8601
    name: str | None = None
    method: str | None = None  # of a comparison, all of them
    task: TaskName | None = None
    seeds: tuple[int, ...] = ()
    teacher: float | None = None
    alone: float | None = None
    student: float | None = None
    best: str | None = None  # the method of a comparison that has the best students, of which `student` is the mean
    command: str | None = None  # makes the run again or resumes it; None if damaged, running, or a call from Python


def list_runs(folder: Path) -> list[ListedRun]:
    """Return the run or comparison in a folder, or those in its subfolders: by task, the best student first.

    Smoke tests come after all other results, and runs without a student last.

    Links are not followed. The networks of a comparison and tunings are left out. A damaged run is listed with the
    reason.

    Raises:
        LimbeckError: the folder does not exist, or has more than `MOST` entries.
    """
    if not folder.is_dir():
        raise LimbeckError(f"there is no folder {folder}")
    entries = list(islice(folder.iterdir(), MOST + 1))
    if len(entries) > MOST:
        raise LimbeckError(f"{folder} has more than {MOST:,} entries, which is the limit")
    inside = [path for path in entries if path.is_dir() and not path.is_symlink() and _is_run(path)]
    runs = [_listed(path) for path in ([folder] if _is_run(folder) else inside)]
    return sorted(runs, key=_rank)


def _rank(run: ListedRun) -> tuple[bool, bool, str, float, str]:
    if run.student is None or run.task is None:
        return True, False, "", 0.0, run.folder
    return False, str(run.name).endswith(SMOKE), run.task, -TASKS[run.task].headline.score(run.student), run.folder


def _is_run(path: Path) -> bool:
    """Whether a folder holds a run or a comparison, and is no part of a comparison or tuning."""
    part = (path.absolute().parent / LOCKS).is_dir()
    holds = {name for name in (RECIPE, ENVIRONMENT, COMPARED, RESULT, LOG, COMPARISON) if (path / name).is_file()}
    begun = RECIPE in holds and holds & {ENVIRONMENT, COMPARED}  # a recipe alone is that of a user
    return not part and bool(begun or holds & {RESULT, LOG, COMPARISON})


def _listed(path: Path) -> ListedRun:
    compares = (path / LOCKS).is_dir() or (path / COMPARISON).is_file()
    names = (COMPARISON, COMPARED, RESULT, LOG, RECIPE)
    last = next(path / name for name in names if (path / name).is_file())
    seconds = min(max(last.stat().st_mtime, 0), LATEST)
    date = datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    try:
        return _comparison(path, date) if compares else _run(path, date)
    except (LimbeckError, OSError) as error:
        return ListedRun(str(path), f"damaged: {error}", date)


def _run(path: Path, date: str) -> ListedRun:
    finished = (path / RESULT).is_file()
    run = _described(path, _recipe(path / RECIPE), date, finished=finished)
    if finished:
        return _with_result(run, read(path))
    return run if run.state == RUNS else replace(run, state=_interrupted(path))


def _comparison(path: Path, date: str) -> ListedRun:
    recipe = _recipe(path / COMPARED)
    if not (path / COMPARISON).is_file():
        return _described(path, recipe, date, finished=False)
    result = comparisons.read(path)
    asked, arms = {block.get("name") for block in recipe.methods}, {arm.arm for arm in result.arms}
    finished = asked <= arms and set(recipe.seeds) == set(result.seeds)  # else more was asked for since
    return _with_comparison(_described(path, recipe, date, finished=finished), result)


def _recipe(file: Path) -> Recipe:
    if not file.is_file():
        raise LimbeckError(f"{file} is missing: the command that made the folder writes it again")
    return reread(file)


def _described(path: Path, recipe: Recipe, date: str, *, finished: bool) -> ListedRun:
    """What a recipe says of the run or comparison in a folder."""
    verb, resume = ("compare", []) if recipe.methods else ("run", ["--resume"])
    out = ["--out", f"{path}-again"] if finished else ["--out", str(path), *resume]
    command = shlex.join(["limbeck", verb, str(path / (COMPARED if recipe.methods else RECIPE)), *out])
    state = "smoke test" if recipe.name.endswith(SMOKE) else "finished"
    runs = not finished and _runs(path)
    hidden = runs or recipe.data.source.startswith(GIVEN)
    return ListedRun(
        str(path),
        state if finished else RUNS if runs else "interrupted",
        date,
        name=recipe.name,
        method=", ".join(str(block.get("name")) for block in recipe.methods or (recipe.method,)),
        seeds=recipe.seeds,
        command=None if hidden else torchrun(command, *_processes(path)),
    )


def _runs(path: Path) -> bool:
    """Whether a process trains in the folder of a run or comparison; False if this cannot be found out."""
    return any(map(is_locked, (path / LOCK, *(path / LOCKS).glob("seed*"))))


def _processes(path: Path) -> tuple[int, int]:
    """The number of processes that worked last on a run, and of those of the first machine."""
    try:
        environment = read_sealed(path / ENVIRONMENT) or {}
    except LimbeckError:  # a damaged one is written again when the run is resumed
        return 1, 1
    count = environment.get("processes")
    here = environment.get("processes_here", count)  # older files do not have it
    return (count, here) if isinstance(count, int) and isinstance(here, int) else (1, 1)


def _with_comparison(run: ListedRun, result: ComparisonResult) -> ListedRun:
    means = {arm.arm: arm.headline.mean for arm in result.arms}
    methods = [arm.arm for arm in result.arms if arm.options.get("name") != "alone"] or list(means)
    best = max(methods, key=lambda arm: TASKS[result.task].headline.score(means[arm]), default=None)
    teacher = None if result.teachers is None else result.teachers.mean
    student = None if best is None else means[best]
    return replace(run, task=result.task, teacher=teacher, alone=means.get("alone"), student=student, best=best)


def _with_result(run: ListedRun, result: RunResult) -> ListedRun:
    figures = {arm: found.headline.mean for arm, found in result.summary.items()}
    teacher, alone, student = map(figures.get, ("teacher", "alone", result.method))
    return replace(run, task=result.task, teacher=teacher, alone=alone, student=student)


def _interrupted(path: Path) -> str:
    line = EpochLog(path / LOG, kept=True).last
    if line is not None and type(line.get("epoch")) is not int:
        raise LimbeckError(f"the last line of {path / LOG} does not describe an epoch")
    place = "the beginning" if line is None else f"epoch {line['epoch']} of {line['job']}"
    return f"interrupted at {place}"
