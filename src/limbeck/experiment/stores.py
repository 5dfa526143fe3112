"""Build the stores of an experiment's teachers, and compare them with the teachers, without a run."""

from collections.abc import Iterator

from limbeck.cache.manifest import info
from limbeck.core import LimbeckError
from limbeck.experiment.arms import members_of, teacher_of
from limbeck.experiment.caching import check, teacher_taps
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Event, Job, StoreVerified, Track
from limbeck.experiment.run import Experiment
from limbeck.experiment.store_folders import NOTHING, store_folder
from limbeck.recipe.blocks import TeacherBlock


def build_stores(
    experiment: Experiment, track: Track = lambda job, epochs, batches: batches, part: tuple[int, int] = (0, 1)
) -> Iterator[Event]:
    """Build the store of each teacher's outputs. Teachers that the recipe trains are trained first, for the run.

    Of several writers, each builds a ``part``, as for `limbeck.cache.building.build`; the teachers are trained before.

    Raises:
        LimbeckError: the recipe stores nothing; the disk has not enough space; a folder holds another store; for
            a part, a teacher is not trained.
    """
    block = _block(experiment)
    if block.train is not None and part == (0, 1):
        experiment.folder.open(environment() | experiment.decided)
    elif block.train is not None:
        for seed in _teachers(experiment).values():
            _check_trained(experiment, block, seed)
    for seed in _teachers(experiment).values():
        teacher = yield from experiment.teacher(block, seed, track)
        yield from experiment.outputs(seed, teacher, part)


def compare_stores(experiment: Experiment) -> Iterator[Event]:
    """Compare each store with its teacher on random rows.

    Raises:
        LimbeckError: a store is not finished, damaged or built from something else; a row is not what the teacher
            gives.
    """
    block, run = _block(experiment), experiment.folder.path
    teachers = _teachers(experiment)
    folders = {job: store_folder(experiment.recipe, run, job.seed) for job in teachers}
    for folder in folders.values():
        info(folder)  # a store that does not exist is reported before any teacher is loaded
    for job, folder in folders.items():
        seed = teachers[job]
        if block.train is not None:
            _check_trained(experiment, block, seed)
        teacher = yield from experiment.teacher(block, seed, lambda job, epochs, batches: batches)
        taps, training = teacher_taps(experiment.reading(seed, teacher)), experiment.workspace.training
        found = check(folder, experiment.recipe.cache, teacher, taps, experiment.data, training, experiment.engine)
        yield StoreVerified(job, folder, found.rows, found.deviation, found.allowed)


def _check_trained(experiment: Experiment, block: TeacherBlock, seed: int) -> None:
    names = members_of(experiment.recipe, block, seed)
    if any(experiment.folder.result(str(name)) is None for name in names):
        raise LimbeckError(
            f"{teacher_of(experiment.recipe, seed)}, whose outputs are stored, was not trained in "
            f"{experiment.folder.path}: name its run folder with --out, or train it first with limbeck run"
        )


def _block(experiment: Experiment) -> TeacherBlock:
    block = experiment.recipe.teacher
    if block is None or not experiment.recipe.cache.use:
        raise LimbeckError(NOTHING)
    return block


def _teachers(experiment: Experiment) -> dict[Job, int]:
    """Each teacher, and the seed of a student that learns from it."""
    found: dict[Job, int] = {}
    for seed in experiment.recipe.seeds:
        found.setdefault(teacher_of(experiment.recipe, seed), seed)
    return found
