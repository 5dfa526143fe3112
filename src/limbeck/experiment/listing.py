"""The runs in a folder, with their results and the command that makes or resumes each."""

import shlex
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from limbeck.data.targets import TaskName
from limbeck.errors import LimbeckError
from limbeck.experiment.epochlog import EpochLog
from limbeck.experiment.results import RESULT, RunResult, read
from limbeck.experiment.runfiles import LOCKS, LOG, RECIPE
from limbeck.models import GIVEN
from limbeck.recipe.read import SMOKE, reread
from limbeck.tasks import TASKS

MOST = 10_000
"""The most entries of a folder that is listed."""

LATEST = 2**37
"""The latest date in seconds, in the year 6325. A file from an archive may have a time that is not a date."""


@dataclass(frozen=True)
class ListedRun:
    """A run folder, with the headline of the task on the test split, the mean over the seeds."""

    folder: str
    state: str  # "finished", "smoke test", "interrupted at epoch 3 of kd/seed0", or "damaged: " and the reason
    date: str  # of the last change of its result, else of its log or recipe; ISO 8601
    name: str | None = None
    method: str | None = None
    task: TaskName | None = None
    seeds: tuple[int, ...] = ()
    teacher: float | None = None
    alone: float | None = None
    student: float | None = None
    command: str | None = None  # makes the run again or resumes it; None if damaged, or a call of `limbeck.distill`


def list_runs(folder: Path) -> list[ListedRun]:
    """Return the run in a folder, or those in its subfolders: by task, the best student first.

    Smoke tests come after all other results, and runs without a student last.

    Links are not followed, and comparisons are left out. A damaged run is listed with the reason.

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
    return not (path / LOCKS).is_dir() and any((path / name).is_file() for name in (RECIPE, RESULT, LOG))


def _listed(path: Path) -> ListedRun:
    last = next(path / name for name in (RESULT, LOG, RECIPE) if (path / name).is_file())
    seconds = min(max(last.stat().st_mtime, 0), LATEST)
    date = datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    try:
        if not (path / RECIPE).is_file():
            raise LimbeckError(f"{path / RECIPE} is missing")
        recipe = reread(path / RECIPE)
        finished = (path / RESULT).is_file()
        options = ["--out", f"{path}-again"] if finished else ["--out", str(path), "--resume"]
        command = ["limbeck", "run", str(path / RECIPE), *options]
        run = ListedRun(
            str(path),
            "smoke test" if recipe.name.endswith(SMOKE) else "finished",
            date,
            name=recipe.name,
            method=str(recipe.method.get("name")),
            seeds=recipe.seeds,
            command=None if recipe.data.source.startswith(GIVEN) else shlex.join(command),
        )
        return _with_result(run, read(path)) if finished else replace(run, state=_interrupted(path))
    except (LimbeckError, OSError) as error:
        return ListedRun(str(path), f"damaged: {error}", date)


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
