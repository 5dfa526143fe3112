"""The stores of an experiment's teachers, apart from its run: built, looked at, compared with the teachers."""

from collections.abc import Iterator
from pathlib import Path

from limbeck.cache import info
from limbeck.core import LimbeckError
from limbeck.experiment.arms import teacher_of
from limbeck.experiment.caching import check, folder_of, teacher_taps
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Event, Job, StoreVerified, Track
from limbeck.experiment.run import Experiment
from limbeck.recipe.blocks import TeacherBlock


def stores(experiment: Experiment) -> dict[Job, Path]:
    """Each teacher, and where its outputs are kept, or would be."""
    _block(experiment)
    path = experiment.folder.path
    return {job: folder_of(experiment.recipe, path, job) for job in _teachers(experiment)}


def build_stores(experiment: Experiment, track: Track = lambda job, epochs, batches: batches) -> Iterator[Event]:
    """Build the store of each teacher's outputs; teachers that the recipe trains are trained first, for the run.

    Raises:
        LimbeckError: there is nothing to keep; the disk has too little room; a folder holds another store.
    """
    block = _block(experiment)
    if block.train is not None:
        experiment.folder.open(environment())
    for seed in _teachers(experiment).values():
        teacher = yield from experiment.teacher(block, seed, track)
        yield from experiment.outputs(seed, teacher)


def compare_stores(experiment: Experiment) -> Iterator[Event]:
    """Compare each store with its teacher on random rows.

    Raises:
        LimbeckError: a store is not finished, damaged, of something else, or a row is not what the teacher gives.
    """
    block = _block(experiment)
    for folder in stores(experiment).values():
        info(folder)  # says what is missing before anything is restored
    for job, folder in stores(experiment).items():
        run = experiment.folder.path
        names = [job] if block.members == 1 else [Job("member", job.seed, number) for number in range(block.members)]
        if block.train is not None and any(experiment.folder.result(str(name)) is None for name in names):
            raise LimbeckError(f"{job}, which the store is of, was not trained in {run}: name its run folder by --out")
        seed = _teachers(experiment)[job]
        teacher = yield from experiment.teacher(block, seed, lambda job, epochs, batches: batches)
        stages, training = experiment.reading(seed, teacher)
        cache, data, engine = experiment.recipe.cache, experiment.data, experiment.engine
        found = check(folder, cache, teacher, teacher_taps(stages), data, training, engine)
        yield StoreVerified(job, folder, found.rows, found.deviation, found.allowed)


def _block(experiment: Experiment) -> TeacherBlock:
    block = experiment.recipe.teacher
    if block is None or not experiment.recipe.cache.use:
        raise LimbeckError("the recipe has no teacher whose outputs can be kept")
    return block


def _teachers(experiment: Experiment) -> dict[Job, int]:
    """Each teacher with a seed that it is of."""
    found: dict[Job, int] = {}
    for seed in experiment.recipe.seeds:
        found.setdefault(teacher_of(experiment.recipe, seed), seed)
    return found
