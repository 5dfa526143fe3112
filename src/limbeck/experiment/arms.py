"""The arms of a recipe: their methods, trainings and teachers."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import nn

from limbeck.core import LimbeckError, Method
from limbeck.data import Augment, Data
from limbeck.data.soft_targets import soft_targets
from limbeck.data.targets import NUMBERS, TaskName
from limbeck.experiment.events import Job
from limbeck.experiment.store_folders import teacher_seed
from limbeck.experiment.workspace import Training
from limbeck.methods import ABOUT, METHODS
from limbeck.methods.combined import combined
from limbeck.optimizers import OPTIMIZERS
from limbeck.options import Block, call, signature
from limbeck.recipe.blocks import Recipe, RegimeBlock, TeacherBlock, TrainBlock
from limbeck.schedules import SCHEDULES
from limbeck.tasks import HARD_LOSSES
from limbeck.train.quantise import Quantise
from limbeck.train.regime import Regime


def arms_of(recipe: Recipe) -> tuple[str, ...]:
    """The student's arms: alone where the recipe has a baseline, then the method, or those that are compared."""
    names = [block["name"] for block in recipe.methods or (recipe.method,)]
    return tuple(dict.fromkeys(["alone", *names] if recipe.baseline else names))


def method_of(recipe: Recipe, arm: str, own: Mapping[str, Method]) -> Method:
    """The method of an arm's student; ``own`` has the functions that names of the recipe stand for."""
    if arm in own:
        return own[arm]
    block = block_of(recipe, arm)
    if "parts" in block:
        return partial(combined, parts=[partial(call, METHODS, part) for part in block["parts"]])
    return partial(call, METHODS, block)


def block_of(recipe: Recipe, arm: str) -> Block:
    """The options of the method of an arm."""
    named = {block["name"]: block for block in (recipe.method, *recipe.methods)}
    return named.get(arm.partition("@")[0], {"name": "alone"})  # alone@2x


def check_task(recipe: Recipe, task: TaskName) -> None:
    """Raise LimbeckError with every method and option of the recipe that makes no sense for the task of the data."""
    parts = [part for block in recipe.methods or (recipe.method,) for part in block.get("parts", [block])]
    problems = [*_method_problems(parts, task)]
    given: dict[str, object] = {}
    if task != "landmarks":
        given["task.eyes is for landmarks"] = recipe.task.eyes
    if task not in NUMBERS:
        told = f"is for {' and '.join(NUMBERS)} (path/to/file.py:function is for every task)"
        given[f"task.hard_loss: {recipe.task.hard_loss} {told}"] = recipe.task.hard_loss in HARD_LOSSES
    if task != "classification":
        options = {
            "teacher.table": recipe.teacher and recipe.teacher.table,
            "cache.top_k": recipe.cache.top_k,
            "evaluate.shift_bias": recipe.evaluate.shift_bias,
        }
        trains = {"train": recipe.train, "teacher.train": recipe.teacher.train if recipe.teacher else None}
        for key, block in trains.items():
            for option in ("exclude", "label_smoothing", "mixup", "cutmix", "balanced") if block else ():
                options[f"{key}.{option}"] = getattr(block, option)
        given |= {f"{option} is for classification": value for option, value in options.items()}
    problems += [f"{said}; the task of the data is {task}" for said, value in given.items() if value]
    if problems:
        raise LimbeckError("\n".join(problems))


def _method_problems(parts: Sequence[Block], task: TaskName) -> Iterator[str]:
    """What makes no sense for the task in each method of a recipe."""
    for name in (part["name"] for part in parts):
        if name in ABOUT and task not in ABOUT[name].tasks:
            fitting = ", ".join(other for other, about in ABOUT.items() if task in about.tasks)
            classes = "the class of each sample or the distribution over the classes"
            reads = classes if ABOUT[name].tasks == ("classification",) else "one vector of each sample"
            yield (
                f"method: {name} is for {', '.join(ABOUT[name].tasks)}, because its loss reads {reads}; "
                f"the task of the data is {task}: allowed are {fitting}"
            )
    for block in parts if task in NUMBERS else ():  # outputs that are numbers have no temperature
        known = signature(METHODS[block["name"]]) if block["name"] in METHODS else {}
        for key in ("temperature", "temperature_squared"):
            default = known[key]["default"] if key in known else None
            if block.get(key, default) != default:
                yield (
                    f"method: {block['name']} with {key}: {block[key]}, which has no effect on numbers; the task of "
                    f"the data is {task}: leave it out, or the preset that sets it"
                )


def longer(recipe: Recipe, epochs: Mapping[str, int]) -> dict[str, int]:
    """The arms of students alone that are trained for as many epochs as methods that are compared, if those are more.

    ``epochs``: by arm, those in which its student learns. The result has the epochs of ``alone@2x`` and so on.
    """
    own = recipe.train.epochs
    more = sorted({epochs[block["name"]] for block in recipe.methods if epochs[block["name"]] > own})
    return {f"alone@{count / own:g}x": count for count in more if recipe.baseline}


def needed(recipe: Recipe, arm: str, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks that an arm uses."""
    alone = block_of(recipe, arm)["name"] == "alone"
    return {"student": networks["student"]} if alone else dict(networks)


def training_of(block: TrainBlock, data: Data) -> Training:
    """The training that a block of a recipe describes.

    Raises:
        LimbeckError: a class does not exist, no class is left, an option is out of range or needs a validation split.
    """
    exclude = label_indices(block.exclude, data.classes)
    regime = _regime_of(block)
    if regime.selects and len(data.validation) == 0:
        raise LimbeckError(
            "keep: best and stop_after need a validation split, but the data has none: set data.validation to a share "
            "such as 0.1 (in Python, limbeck.arrays(..., validation=0.1)), or remove these keys"
        )
    if len(data.train.without(exclude)) == 0:
        raise LimbeckError(f"exclude removes all classes of the data: {', '.join(data.classes)}")
    return Training(
        epochs=block.epochs,
        batch_size=block.batch_size,
        optimizer=call(OPTIMIZERS, block.optimizer),
        schedule=call(SCHEDULES, block.schedule),
        augment=Augment(**block.augment.model_dump()),
        exclude=exclude,
        soft=soft_targets(
            data.train,
            len(data.classes),
            label_smoothing=block.label_smoothing,
            mixup=block.mixup,
            cutmix=block.cutmix,
        ),
        balanced=block.balanced,
        regime=regime,
    )


def _regime_of(block: RegimeBlock) -> Regime:
    values = {name: getattr(block, name) for name in RegimeBlock.model_fields if name not in ("freeze", "quantise")}
    freeze, quantise = block.freeze, block.quantise
    return Regime(
        **values,
        freeze=freeze.layers if freeze else (),
        freeze_epochs=freeze.epochs if freeze else 0,
        quantise=None if quantise is None else Quantise(**quantise.model_dump()),
    )


def teacher_of(recipe: Recipe, seed: int) -> Job:
    """The teacher of a student's seed: one for each seed, or one for all."""
    return Job("teacher", teacher_seed(recipe, seed))


def members_of(recipe: Recipe, block: TeacherBlock, seed: int) -> list[Job]:
    """What is trained as the teacher of a student's seed: one network, or the members of an ensemble."""
    teacher = teacher_of(recipe, seed)
    count = block.new_members
    return [teacher] if count == 1 else [Job("member", teacher.seed, number) for number in range(count)]


def label_indices(
    labels: Sequence[int | str], classes: Sequence[str], *, what: str = "there is no class"
) -> tuple[int, ...]:
    """Names or indices of classes, or of other outputs, to indices; ``what`` begins the message of an error.

    Raises:
        LimbeckError: there is no such class.
    """
    for label in labels:
        if type(label) is bool or (label not in classes and label not in range(len(classes))):
            raise LimbeckError(f"{what} {label!r}: allowed are 0 to {len(classes) - 1}, or {', '.join(classes)}")
    return tuple(label if isinstance(label, int) else classes.index(label) for label in labels)
