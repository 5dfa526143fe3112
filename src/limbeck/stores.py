"""The stores of an experiment's teachers, apart from its run: built, looked at, compared with the teachers."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from limbeck.arms import method_of, teacher_of, training_of
from limbeck.blocks import TeacherBlock
from limbeck.caching import cached, check, folder_of, outputs, wanted
from limbeck.core import LimbeckError, Stage
from limbeck.environment import environment
from limbeck.experiment import Experiment
from limbeck.jobs import Compared, Event, Job, Track
from limbeck.session import Training, plan
from limbeck.store import info


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
        stages, training = _reading(experiment, seed, teacher)
        path, data, engine = experiment.folder.path, experiment.data, experiment.engine
        yield from outputs(experiment.recipe, path, seed, stages, teacher, data, training, engine)


def compare_stores(experiment: Experiment) -> Iterator[Event]:
    """Compare each store with its teacher on random rows.

    Raises:
        LimbeckError: a store is not finished, damaged, of something else, or a row is not what the teacher gives.
    """
    block = _block(experiment)
    for job, folder in stores(experiment).items():
        info(folder)  # says what is missing before anything is trained or restored
        seed = _teachers(experiment)[job]
        teacher = yield from experiment.teacher(block, seed, lambda job, epochs, batches: batches)
        stages, training = _reading(experiment, seed, teacher)
        cache, data, engine = experiment.recipe.cache, experiment.data, experiment.engine
        found = check(folder, cache, teacher, wanted(stages), data, training, engine)
        yield Compared(job, folder, found.rows, found.deviation, found.allowed)


def _block(experiment: Experiment) -> TeacherBlock:
    block = experiment.recipe.teacher
    if block is None or not experiment.recipe.cache.use:
        raise LimbeckError("the recipe has no teacher whose outputs can be kept")
    return block


def _teachers(experiment: Experiment) -> dict[Job, int]:
    """Each teacher with a seed that it is of."""
    return {teacher_of(experiment.recipe, seed): seed for seed in reversed(experiment.recipe.seeds)}


def _reading(experiment: Experiment, seed: int, teacher: nn.Module) -> tuple[tuple[Stage, ...], Training]:
    """What a method's stages read, and on what."""
    recipe, data = experiment.recipe, experiment.data
    student, _, others = experiment.cast.student(seed)
    networks = {"student": student, **others, "teacher": teacher}
    training = cached(training_of(recipe.train, data), recipe.cache)
    return plan(method_of(recipe, recipe.method["name"]), networks, data, training), training
