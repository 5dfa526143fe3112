"""Every method on every seed, in one folder that several processes may fill."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from torch import nn

from limbeck.data import Progress
from limbeck.errors import LimbeckError
from limbeck.experiment.arms import teacher_of
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Event, Job, Track
from limbeck.experiment.fit import Shared
from limbeck.experiment.run import Experiment
from limbeck.experiment.trials import Trials
from limbeck.recipe.blocks import Recipe
from limbeck.train.together import SharedBatches, SharedReaders, together


class Sweep:
    """The students of all arms and seeds of a recipe with ``methods``.

    The arms of a seed are trained together: they read the same batches, and one run of the teacher for each batch. A
    process that trains a seed locks it. Finished networks are kept, so that the sweep can be stopped, and seeds and
    methods can be added later.

    Args:
        recipe: with ``methods``.
        folder: see `limbeck.experiment.trials`.
        trust_code: as for `Experiment`.
        progress: as for `Experiment`.

    Raises:
        LimbeckError: as for `Experiment`; the recipe has options that only a run has.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, trust_code: bool = False, progress: Progress | None = None
    ) -> None:
        _check(recipe)
        recipe = recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"use": False})})
        self.experiment = Experiment(
            recipe, folder, resume=True, trust_code=trust_code, keep="trials", progress=progress
        )
        self._path = folder

    @property
    def jobs(self) -> list[Job]:
        """The students, seed by seed."""
        return [Job(arm, seed) for seed in self.experiment.recipe.seeds for arm in self.experiment.arms]

    @property
    def missing(self) -> list[Job]:
        """The students that are not finished."""
        self._trials.refresh()
        return [job for job in self.jobs if self._trials.result(str(job)) is None]

    @property
    def _trials(self) -> Trials:
        folder = self.experiment.folder
        assert isinstance(folder, Trials)
        return folder

    def run(self, track: Track = lambda job, epochs, batches: batches) -> Generator[Event, None, None]:
        """Train the students that no process has trained or trains now."""
        experiment = self.experiment
        with self._lock("folder"):
            self._trials.open(environment() | experiment.decided)
        for seed in experiment.recipe.seeds:
            with self._claimed(f"seed{seed}") as mine:
                if mine:
                    yield from self._seed(seed, track)

    def _seed(self, seed: int, track: Track) -> Generator[Event, None, None]:
        experiment, trials = self.experiment, self._trials
        trials.refresh()
        jobs = [Job(arm, seed) for arm in experiment.arms if trials.result(f"{arm}/seed{seed}") is None]
        if not jobs:
            return
        teacher: nn.Module | None = None
        if experiment.recipe.teacher is not None:
            with self._lock(f"teacher-seed{teacher_of(experiment.recipe, seed).seed}"):
                trials.refresh()  # another process may have trained it meanwhile
                teacher = yield from experiment.teacher(experiment.recipe.teacher, seed, track)
                teacher.eval().requires_grad_(False)
        shared = Shared(SharedBatches(experiment.workspace.batches(seed)), SharedReaders())
        students = [experiment.student(job, teacher, None, track, shared=shared) for job in jobs]
        events: Iterator[Event] = together(students, experiment.engine)
        yield from events

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Wait until no other process holds the lock."""
        with self._file(name):
            yield

    @contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Whether no other process holds the lock; if so, it is held in the block."""
        lock = self._file(name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _file(self, name: str) -> FileLock:
        place = self._path / "locks"
        place.mkdir(parents=True, exist_ok=True)
        return FileLock(place / name)


def _check(recipe: Recipe) -> None:
    """Refuse what several students of one teacher cannot have."""
    if not recipe.methods:
        raise LimbeckError(
            "the recipe lists no methods to compare: write methods: [kd, srrl], or use --methods kd,srrl"
        )
    wrong = {
        "cache: true": recipe.cache.use is True,
        "share_first_stage": recipe.share_first_stage,
        "teacher.table": recipe.teacher is not None and recipe.teacher.table is not None,
        "teacher.untrained": recipe.teacher is not None and recipe.teacher.untrained,
    }
    for key, given in wrong.items():
        if given:
            raise LimbeckError(f"a comparison does not have {key}: its students share one run of the teacher a batch")
