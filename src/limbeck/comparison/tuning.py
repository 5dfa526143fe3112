"""Options of one method, found on the validation split with Optuna.

runs/<name>-tuned/
  teacher/          the teacher that all trials share, as `limbeck.experiment.trials` keeps it
  <method>.jsonl    the trials, as a journal of Optuna
  <method>.yaml     the recipe with the best options
  locks/            which process trains what
"""

import math
from collections.abc import Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock
from torch import nn

from limbeck.comparison.locks import is_held, lock
from limbeck.data import Progress
from limbeck.data.targets import NUMBERS
from limbeck.errors import LimbeckError, nearest
from limbeck.experiment.arms import training_of
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Elsewhere, Event, Job, Track, unwatched
from limbeck.experiment.in_memory import InMemory
from limbeck.experiment.run import Experiment
from limbeck.files.atomic import write
from limbeck.files.paths import file_size
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import check, dump, with_absolute_paths
from limbeck.recipe.signatures import known
from limbeck.tasks import TASKS
from limbeck.train.divergence import Diverged
from limbeck.train.loop import Pause

try:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise LimbeckError("tuning needs Optuna, which is not installed: pip install 'limbeck[tune]'") from error

JOURNAL_BYTES = 16 * 2**20
"""The largest journal; a trial takes about 2 kB."""

Options = Mapping[str, float]
Range = tuple[float, float]

_WEIGHTS = ("alpha", "beta", "weight", "lambda_start", "lambda_end")  # those that cannot be schedules
_DIVERGED = "diverged"  # the key of the message in a trial whose training diverged


@dataclass(frozen=True)
class Tried:
    """A finished trial."""

    number: int
    options: Options
    value: float | None  # the task's headline on the validation split; None if the training diverged


class Tuning:
    """Trials of the options of a recipe's method; the first one has the options of the recipe.

    All students have one seed and one teacher, which is not trained for a student alone. The test split is compared
    with the other splits, as before every run, and is then dropped. Several processes may use one folder. A trial that
    was stopped is tried again.

    Args:
        recipe: its ``method`` is tuned.
        folder: see above.
        trials: the number of trials of all processes.
        search: ranges ``key=low..high``, see `space`.
        seed: of the students and of the sampler.
        trust_code: as for `Experiment`.
        progress: as for `Experiment`.

    Raises:
        LimbeckError: as for `Experiment` and `space`; the recipe combines methods, has the seed, a table as a teacher,
            a store or no validation split; the folder holds trials of other options or ranges, or a damaged journal.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        trials: int,
        search: Sequence[str],
        seed: int,
        trust_code: bool = False,
        progress: Progress | None = None,
    ) -> None:
        _check(recipe, seed)
        self.recipe, self.trials = recipe, trials
        self._path, self._seed, self._method = folder, seed, str(recipe.method["name"])
        cache = recipe.cache.model_copy(update={"use": False})
        update = {"methods": (), "baseline": False, "seeds": (seed,), "share_first_stage": False, "cache": cache}
        self.experiment = experiment = Experiment(
            recipe.model_copy(update=update),
            folder / "teacher",
            resume=True,
            trust_code=trust_code,
            keep="trials",
            progress=progress,
        )
        data = experiment.data
        if not len(data.validation):
            raise LimbeckError("tuning needs a validation split: set data.validation to a share such as 0.1")
        experiment.data = replace(data, test=data.validation)  # no network can read the test split any more
        experiment.workspace = replace(experiment.workspace, data=experiment.data)
        self.figure = TASKS[data.task].headline
        self._own, ranges = space(recipe, search, temperature=data.task not in NUMBERS)
        self._space = {key: FloatDistribution(low, high, log=low > 0) for key, (low, high) in ranges.items()}
        self._open(folder / f"{self._method}.jsonl")

    @property
    def work(self) -> dict[Job, float]:
        """The teacher and the trials to come, with about how many multiply-accumulates each takes."""
        work, first = dict(self.experiment.work), len(self._study.get_trials(deepcopy=False))
        each, count = work.pop(Job(self._method, self._seed)), self.trials - len(self.tried)
        trials = {self._job(number): each for number in range(first, first + count)}
        return trials if self._method == "alone" else work | trials

    @property
    def tried(self) -> list[Tried]:
        """The finished trials."""
        return [self._tried(one) for one in self._counted() if one.state.is_finished()]

    @property
    def own(self) -> Tried:
        """The trial with the options of the recipe."""
        return next(one for one in self.tried if one.options == self._own)

    @property
    def best(self) -> Tried:
        """The first of the trials with the best value.

        Raises:
            LimbeckError: there is none.
        """
        scored = [(self.figure.score(one.value), -one.number, one) for one in self.tried if one.value is not None]
        if not scored:
            raise LimbeckError("every training diverged: lower the learning rate, or search other ranges")
        return max(scored)[2]

    def run(self, track: Track = unwatched, *, wait: bool = True) -> Generator[Event | Tried, None, None]:
        """Train the teacher unless it is there, and students until all trials are finished or run elsewhere.

        With ``wait``, wait for the trials that run elsewhere, and repeat those that are stopped.
        """
        experiment, teacher = self.experiment, None
        if is_held(self._path, "teacher"):
            yield Elsewhere("the teacher", waits=True)
        with lock(self._path, "teacher"):
            experiment.folder.open(environment() | experiment.decided)
            if experiment.recipe.teacher is not None and self._method != "alone":
                teacher = yield from experiment.teacher(experiment.recipe.teacher, self._seed, track)
        while True:
            claimed = self._claimed()
            running = [one.number for one in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])]
            if claimed is None:
                if not (wait and running):
                    return
                yield Elsewhere(f"trial {running[0]}", waits=True)
                with lock(self._path, self._name_of(running[0])):
                    continue
            trial, held = claimed
            try:
                if len(running) > 1:
                    yield Elsewhere(f"trial {running[0]}", waits=False)
                value = yield from self._trained(trial, teacher, track)
                self._study.tell(trial, self.figure.score(value))
            except Diverged as error:
                trial.set_user_attr(_DIVERGED, str(error))
                self._study.tell(trial, state=TrialState.FAIL)
            finally:
                held.release()
            yield next(one for one in self.tried if one.number == trial.number)

    def write(self) -> Path:
        """Write the recipe with the best options, and return its path."""
        count, found = len(self.tried), with_options(self.recipe, self.best.options)
        path = self._path / f"{self._method}.yaml"
        head = (
            f"# The options of {self._method} and the learning rate are the best of {count} trials with seed "
            f"{self._seed},\n# by the {self.figure.label} on the validation split. No network read the test split.\n"
        )
        with self._study_lock():
            write(path, head + dump(with_absolute_paths(found)))
        return path

    def _trained(self, trial: optuna.Trial, teacher: nn.Module | None, track: Track) -> Generator[Event, None, float]:
        """Train a student with the options of a trial; return the headline on the validation split."""
        one, job = copy(self.experiment), self._job(trial.number)
        one.recipe = with_options(one.recipe, trial.params)
        one.workspace = replace(one.workspace, training=training_of(one.recipe.train, one.data))
        one.folder = InMemory(self._path)
        for event in one.student(job, one.teacher_of(job.arm, teacher), None, track):
            if not isinstance(event, Pause):
                yield event
        return float(getattr(one.results[job].validation, self.figure.key))

    def _job(self, number: int) -> Job:
        return Job(self._method, self._seed, number)

    def _tried(self, one: FrozenTrial) -> Tried:
        if one.distributions != self._space:
            raise ValueError(f"trial {one.number} has other ranges")
        return Tried(one.number, one.params, None if one.value is None else self.figure.score(float(one.value)))

    def _counted(self) -> list[FrozenTrial]:
        """The trials that are finished or run, without those that were stopped."""
        found = self._study.get_trials(deepcopy=False)
        ended = (TrialState.WAITING, TrialState.FAIL)
        return [one for one in found if one.state not in ended or _DIVERGED in one.user_attrs]

    def _claimed(self) -> tuple[optuna.Trial, FileLock] | None:
        """A new trial with the lock that says that it runs; None if there are enough.

        The sampler depends on the seed and the number of trials, so that a stopped trial is repeated.
        """
        with self._study_lock():
            for one in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if not is_held(self._path, self._name_of(one.number)):
                    self._study.tell(one.number, state=TrialState.FAIL)
            counted = self._counted()
            if len(counted) >= self.trials:
                return None
            self._study.sampler = optuna.samplers.TPESampler(seed=(self._seed + len(counted)) % 2**32)
            if all(one.params != self._own for one in counted):
                self._study.enqueue_trial(dict(self._own))
            trial = self._study.ask(dict(self._space))
            held = lock(self._path, self._name_of(trial.number))
            held.acquire()
            return trial, held

    def _name_of(self, number: int) -> str:
        """The lock of a trial, which says that it runs."""
        return f"{self._method}-trial{number}"

    def _study_lock(self) -> FileLock:
        return lock(self._path, f"{self._method}-study")

    def _open(self, file: Path) -> None:
        """Open the study in a journal. The file is data: lines of JSON."""
        ranges = {key: [one.low, one.high] for key, one in self._space.items()}
        settings = {"options": dict(self._own), "ranges": ranges, "seed": self._seed}
        with self._study_lock():
            if file.is_symlink():
                raise LimbeckError(f"{file} is a link, which limbeck does not write to")
            if file.exists():
                file_size(file, most=JOURNAL_BYTES)
            try:
                self._study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file)))),
                    study_name=self._method,
                    direction="maximize",
                    load_if_exists=True,
                )
                held = self._study.user_attrs  # of a process that was stopped here, some or none
                differ = [key for key, value in settings.items() if held.get(key, value) != value]
                if not differ:
                    _ = self.tried  # reads every trial
            except OSError:
                raise
            except Exception as error:  # a damaged file may contain anything
                raise LimbeckError(f"{file} is damaged ({type(error).__name__}: {error}): delete it") from error
            if differ:
                key = differ[0]
                raise LimbeckError(
                    f"{file} holds trials with {key} {held.get(key)}, so it cannot be resumed with {settings[key]}: "
                    "choose another folder with --out"
                )
            for key, value in settings.items():
                self._study.set_user_attr(key, value)


def space(recipe: Recipe, search: Sequence[str], *, temperature: bool = True) -> tuple[Options, Mapping[str, Range]]:
    """The recipe's values of the options to search, and their ranges, by key.

    By default: the weights above 0 of the terms, except ``hard``, to which the others are relative, from a tenth to ten
    times their value; ``temperature`` from 1 to 20 if its term has a weight; ``lr`` from a fifth to five times its
    value. ``search`` has other ranges, also of the method's other numbers, as texts ``key=low..high``. ``temperature``
    is false if the task has none.

    Raises:
        LimbeckError: a text is wrong, there is no such number, the range does not contain the recipe's value, or an
            end of a range is not allowed.
    """
    block, kinds = recipe.method, known().methods[recipe.method["name"]]
    values = {key: block[key] for key, kind in kinds.items() if kind["type"].startswith("float")}
    values = {key: value for key, value in values.items() if isinstance(value, float)}  # the rest are schedules
    if not temperature:
        values.pop("temperature", None)
    weights = [key for key in values if key in _WEIGHTS or ("Schedule" in kinds[key]["type"] and key != "hard")]
    ranges = {key: (values[key] / 10, values[key] * 10) for key in weights if values[key] > 0}
    if "temperature" in values and block.get("soft") != 0:
        ranges["temperature"] = min(1.0, values["temperature"]), max(20.0, values["temperature"])
    if "lr" in recipe.train.optimizer:
        values["lr"] = recipe.train.optimizer["lr"]
        ranges["lr"] = values["lr"] / 5, values["lr"] * 5
    for text in search:
        key, low, high = _parsed(text)
        if key not in values:
            raise LimbeckError(f"--search {text}: {block['name']} has no number {key!r}: {nearest(key, values)}")
        if not low <= values[key] <= high:
            raise LimbeckError(
                f"--search {text}: the recipe's own {key}, which is tried first, is {values[key]:g}: choose a range "
                "that contains it, or another value with --set"
            )
        ranges[key] = low, high
    for end in (0, 1):
        problems = check(with_options(recipe, {key: limits[end] for key, limits in ranges.items()}).model_dump())[1]
        if problems:
            raise LimbeckError(f"a range is too wide: {'.'.join(map(str, problems[0].path))}: {problems[0].message}")
    return {key: values[key] for key in ranges}, ranges


def with_options(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with these values of the options of its method, and of the learning rate ``lr``."""
    block, optimizer = recipe.method, recipe.train.optimizer
    tuned = {**block, **{key: value for key, value in options.items() if key in block}}
    rate = {**optimizer, **{key: value for key, value in options.items() if key == "lr"}}
    update = {
        "method": tuned,
        "methods": tuple(tuned if other["name"] == block["name"] else other for other in recipe.methods),
        "train": recipe.train.model_copy(update={"optimizer": rate}),
    }
    return recipe.model_copy(update=update)


def _parsed(text: str) -> tuple[str, float, float]:
    key, _, limits = text.partition("=")
    try:
        low, high = map(float, limits.split(".."))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise LimbeckError(f"--search {text}: write it as key=low..high, such as temperature=1..20")
    return key, low, high


def _check(recipe: Recipe, seed: int) -> None:
    """Refuse what cannot be tuned."""
    if "parts" in recipe.method:
        raise LimbeckError(f"tuning finds the options of one method, got {recipe.method['name']}: use --method")
    if seed in recipe.seeds:
        raise LimbeckError(f"--seed {seed} is a seed of the recipe, on which methods are compared: choose another")
    table = recipe.teacher is not None and recipe.teacher.table is not None
    for key, given in {"teacher.table": table, "cache: true": recipe.cache.use is True}.items():
        if given:
            raise LimbeckError(f"tuning does not have {key}: its students run the teacher at every batch")
