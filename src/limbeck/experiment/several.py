"""What several processes make of a recipe: the batch size of all of them, and what is refused before any work."""

from collections.abc import Callable

from limbeck.core import LimbeckError
from limbeck.recipe.blocks import Recipe, TrainBlock


def trainings(recipe: Recipe) -> list[TrainBlock]:
    """How the student is trained, and the teacher if this run trains it."""
    return [recipe.train, *([recipe.teacher.train] if recipe.teacher and recipe.teacher.train else [])]


def of_all(recipe: Recipe, count: int) -> Recipe:
    """The recipe for ``count`` processes, with the batch size of all where it has that of each (``per_device``).

    Raises:
        LimbeckError: the recipe needs one process.
    """
    if count > 1 and any(block.quantise for block in trainings(recipe)):
        raise LimbeckError("train.quantise needs one process: run the recipe without torchrun")
    return _with_sizes(recipe, recipe, lambda block, _: count * block.batch_size)


def as_begun(recipe: Recipe, begun: Recipe) -> Recipe:
    """The recipe with the batch size of a run that has ``begun`` where it has that of each process (``per_device``).

    The run may have begun with another number of processes. A size that no number of processes gives is not taken.
    """

    def size(block: TrainBlock, before: TrainBlock) -> int | None:
        return None if before.batch_size % block.batch_size else before.batch_size

    return _with_sizes(recipe, begun, size)


def _with_sizes(recipe: Recipe, other: Recipe, size: Callable[[TrainBlock, TrainBlock], int | None]) -> Recipe:
    """The recipe with the sizes that a function gives for a block ``per_device`` and that of the other recipe."""

    def whole(block: TrainBlock, beside: TrainBlock) -> TrainBlock:
        found = size(block, beside) if block.per_device else None
        return block if found is None else block.model_copy(update={"batch_size": found, "per_device": False})

    update: dict[str, object] = {"train": whole(recipe.train, other.train)}
    teacher, beside = recipe.teacher, other.teacher
    if teacher is not None and teacher.train is not None and beside is not None and beside.train is not None:
        update["teacher"] = teacher.model_copy(update={"train": whole(teacher.train, beside.train)})
    return recipe.model_copy(update=update)
