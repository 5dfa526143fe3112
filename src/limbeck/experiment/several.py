"""What several processes make of a recipe: the batch size of all of them, and a teacher that is divided among them."""

from collections.abc import Callable, Sequence

from torch import nn

from limbeck.core import LimbeckError, Networks, NoClassifier, Stage
from limbeck.data import Data
from limbeck.experiment.networks import teaches
from limbeck.experiment.verdicts import Note
from limbeck.experiment.workspace import example_batch
from limbeck.outline import outline
from limbeck.recipe.blocks import Recipe, TeacherBlock, TrainBlock
from limbeck.taps import closed_kind
from limbeck.train.engine import Engine
from limbeck.train.shard import Division, division, shard


def trainings(recipe: Recipe) -> list[TrainBlock]:
    """How the student is trained, and the teacher if this run trains it."""
    return [recipe.train, *([recipe.teacher.train] if recipe.teacher and recipe.teacher.train else [])]


def of_all(recipe: Recipe, count: int) -> Recipe:
    """The recipe for ``count`` processes, with the batch size of all where it has that of each (``per_device``).

    Raises:
        LimbeckError: the recipe needs one process, or several.
    """
    if count == 1 and recipe.teacher is not None and recipe.teacher.shard:
        raise LimbeckError("teacher.shard needs several processes: start the run with torchrun")
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


def kept_sizes(recipe: Recipe, known: Recipe) -> tuple[Note, ...]:
    """Notes on the batch sizes of a resumed run that are not those of its recipe, both for all processes."""
    names, pairs = ("train", "teacher.train"), zip(trainings(recipe), trainings(known), strict=True)
    return tuple(
        Note(f"{name}.batch_size is {kept.batch_size}, with which the run began, not {block.batch_size}")
        for name, (block, kept) in zip(names, pairs, strict=False)
        if kept.batch_size != block.batch_size
    )


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


def divided(teacher: nn.Module, block: TeacherBlock, data: Data, engine: Engine) -> nn.Module:
    """The teacher, which is divided in place among the processes if its block says so."""
    if block.shard:
        shard(teacher, example_batch(data).inputs, _division(teacher, data), engine.device)
    return teacher


def check_division(method: str, stages: Sequence[Stage], networks: Networks, data: Data) -> None:
    """Refuse a method that does more with a divided teacher than to run it and to read its layers.

    Raises:
        LimbeckError: the method trains the teacher, or runs some of its layers alone; the teacher cannot be divided.
    """
    if teaches(stages):
        raise LimbeckError(f"teacher.shard: {method} trains the teacher, which needs the whole teacher")
    parts = _division(networks["teacher"], data)
    others = [network for name, network in networks.items() if name != "teacher"]
    modules = [*others, *(loss for stage in stages for loss in stage.losses)]
    used = {weight for module in modules for weight in module.parameters()}
    if any(used & weights for weights in parts.values()):
        raise LimbeckError(f"teacher.shard: {method} runs layers of the teacher alone, which needs the whole teacher")


def _division(teacher: nn.Module, data: Data) -> Division:
    """The division of a teacher. Its classifier stays whole, because methods use it alone."""
    few, kind = example_batch(data), closed_kind(teacher)
    if kind:
        raise LimbeckError(f"teacher.shard: the teacher is {kind}, which cannot be divided")
    try:
        classifier = teacher.get_submodule(outline("teacher", teacher, few).classifier)
    except NoClassifier:
        classifier = nn.Identity()
    found = division(teacher, few.inputs, list(classifier.parameters()))
    if not found:
        raise LimbeckError("teacher.shard: the teacher has no layer that can be divided")
    return found
