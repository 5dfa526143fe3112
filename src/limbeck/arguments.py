"""The arguments of a Python call as a recipe, with the networks, data and functions that it stands for."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import CodeType
from typing import Any, Literal, get_args

from torch import nn

from limbeck.cache.fingerprint import structure_digest, weights_digest
from limbeck.core import LimbeckError, Method
from limbeck.data import Augment, Data
from limbeck.errors import nearest
from limbeck.experiment.given import Given, MakeStudent, OwnNetworks
from limbeck.experiment.task_options import with_options
from limbeck.experiment.workspace import NO_AUGMENTATION
from limbeck.methods import METHODS, PRESETS, TEACHERLESS
from limbeck.methods.combined import combined
from limbeck.models import GIVEN
from limbeck.models.functions import Function, as_network
from limbeck.models.inputs import Input
from limbeck.optimizers import OPTIMIZERS
from limbeck.options import Block, Model, call, fill, validate
from limbeck.recipe.blocks import (
    AugmentBlock,
    CacheBlock,
    DataBlock,
    InputBlock,
    MemberBlock,
    Recipe,
    Refusal,
    StudentBlock,
    TaskBlock,
    TeacherBlock,
    TrainBlock,
    as_cache,
)
from limbeck.recipe.contradictions import task_problems
from limbeck.recipe.read import complete_methods
from limbeck.schedules import SCHEDULES
from limbeck.train.engine import Precision

Teacher = nn.Module | Function
OwnMethod = str | Block | Sequence[str | Block] | Method


@dataclass(frozen=True)
class Called:
    """The arguments of a call, checked."""

    recipe: Recipe
    data: Data
    teachers: Sequence[nn.Module]
    methods: Mapping[str, Method]  # by name

    def given(self, student: nn.Module | MakeStudent, networks: Mapping[str, nn.Module], *, in_place: bool) -> Given:
        """What the recipe cannot hold. With ``in_place``, the first training is that of the networks themselves."""
        recipe = self.recipe
        first = (recipe.seeds[0], recipe.method["name"]) if in_place else None
        own = OwnNetworks(student, self.teachers, networks, recipe.student, first=first, data=self.data)
        if not in_place:
            own.keep()
        return Given(self.data, own, self.methods)


def called(
    teacher: Teacher | Sequence[Teacher] | None,
    student: nn.Module | MakeStudent,
    data: Data,
    methods: Sequence[OwnMethod],
    *,
    compares: bool = False,
    networks: Mapping[str, nn.Module] | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    optimizer: str | Block = "adam",
    schedule: str | Block = "cosine",
    augment: Augment | None = None,
    training: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    seeds: Sequence[int],
    baseline: bool = True,
    device: str = "auto",
    precision: Precision = "auto",
    compile: bool = False,  # noqa: A002 (what torch calls it)
    cache: bool | Literal["auto"] | Mapping[str, Any] = "auto",
    teacher_input: Input | Sequence[Input | None] | None = None,
    teacher_classes: Sequence[str | int] | Sequence[Sequence[str | int] | None] | None = None,
    teacher_output: str | Sequence[str | None] | None = None,
    student_input: Input | None = None,
    student_output: str | None = None,
    allow: Sequence[Refusal] = (),
    out: str | Path | None = None,
) -> Called:
    """Check the arguments of `limbeck.distill` and turn them into a recipe, for one or more ``methods``.

    With ``compares`` it is that of a comparison.

    Raises:
        LimbeckError: an argument is wrong; or two methods have one name.
    """
    if not isinstance(networks, Mapping | None):
        kind = type(networks).__name__
        raise LimbeckError(f"networks is a {kind}: pass a dict of networks by name, such as {{'assistant': network}}")
    found, teachers = [_method(method, out) for method in methods], _teachers(teacher)
    names = [name for name, _, _ in found]
    for method in names:
        if names.count(method) > 1:
            raise LimbeckError(f"methods lists {method!r} twice: each method can be compared once")
        _check(data, method, teachers, networks or {}, allow)
    task_block, data = _with_task(data, task or {})
    recipe = Recipe.model_construct(
        name="compare" if compares else "distill",
        task=task_block,
        data=_data_block(data, out),
        teacher=_teacher_block(teachers, teacher_input, teacher_classes, teacher_output, out) if teachers else None,
        student=_student_block(student, networks or {}, student_input, student_output, out),
        method=found[0][2],
        methods=tuple(block for _, _, block in found) if compares else (),
        train=_train_block(epochs, batch_size, optimizer, schedule, augment, {} if training is None else training),
        baseline=baseline,
        seeds=seeds,
        device=device,
        precision=precision,
        compile=compile,
        cache=_checked("cache", CacheBlock, as_cache(cache)),
        allow=tuple(allow),
    )
    return Called(recipe, data, teachers, {name: function for name, function, _ in found})


def _teachers(teacher: Teacher | Sequence[Teacher] | None) -> list[nn.Module]:
    """The teacher, or the members of an ensemble, as modules."""
    if isinstance(teacher, list | tuple) and len(teacher) < 2:
        raise LimbeckError(f"teacher is a list of {len(teacher)}: pass two or more networks, or one without a list")
    every = teacher if isinstance(teacher, list | tuple) else () if teacher is None else (teacher,)
    for one in every:
        if not callable(one) or isinstance(one, type):
            raise LimbeckError(f"teacher is a {type(one).__name__}: it must be a torch.nn.Module or a function")
    networks = [as_network(one, identity="" if isinstance(one, nn.Module) else _described(one)) for one in every]
    if len(set(networks)) < len(networks):
        raise LimbeckError("teacher lists the same module twice: pass a copy, for example with copy.deepcopy")
    return networks


def _check(
    data: Data, method: str, teachers: Sequence[nn.Module], networks: Mapping[str, nn.Module], allow: Sequence[str]
) -> None:
    for role, network in networks.items():
        if not isinstance(network, nn.Module):
            raise LimbeckError(f"{role} is a {type(network).__name__}: it must be a torch.nn.Module")
    if not isinstance(data, Data):
        raise LimbeckError(f"data is a {type(data).__name__}: use limbeck.arrays, limbeck.dataset or limbeck.load")
    for name in networks:
        if not name.isidentifier():
            raise LimbeckError(f"networks: got the name {name!r}: allowed are letters, digits and _")
    taken = sorted({"student", "teacher", "batch"} & set(networks))
    if taken:
        raise LimbeckError(f"networks: the name {taken[0]!r} is taken: choose another")
    known = get_args(Refusal)
    wrong = [name for name in ((allow,) if isinstance(allow, str) else allow) if name not in known]
    if wrong or isinstance(allow, str):
        hint = nearest(wrong[0], known) if wrong else "it takes a list of names"
        raise LimbeckError(f"allow is {allow!r}: {hint}")
    if not teachers and method in set(METHODS) - set(TEACHERLESS):
        raise LimbeckError(f"the method {method} needs a teacher, got None")
    if method in ("teacher", "member"):
        raise LimbeckError(f"a method cannot be called {method!r}: rename the function")


def _model_block(network: nn.Module | MakeStudent, out: str | Path | None) -> dict[str, Any]:
    """What stands for a network in the recipe: with a run folder, also its weights or code at the call."""
    if out is None:
        return {"name": GIVEN}
    if not isinstance(network, nn.Module):
        return {"name": GIVEN, **_code_block(network)}
    weights, structure = weights_digest(network), structure_digest(network)
    return {"name": GIVEN, "weights_at_the_call": weights, "structure_at_the_call": structure}


def _data_block(data: Data, out: str | Path | None) -> DataBlock:
    digests = () if out is None else [split.digest() for split in (data.train, data.validation, data.test)]
    return DataBlock.model_construct(source=" ".join([GIVEN, *digests]))


def _teacher_block(
    teachers: Sequence[nn.Module],
    expected: Input | Sequence[Input | None] | None,
    classes: Sequence[Any] | None,
    output: str | Sequence[str | None] | None,
    out: str | Path | None,
) -> TeacherBlock:
    """The block of one teacher, or of an ensemble with one block per member."""
    if classes is not None and all(isinstance(one, str | int) for one in classes):
        classes = [classes] * len(teachers)
    inputs = _each("teacher_input", expected, len(teachers))
    orders = _each("teacher_classes", classes, len(teachers))
    outputs = _each("teacher_output", output, len(teachers))
    blocks: list[dict[str, Any]] = [
        {
            "model": _model_block(teacher, out),
            "weights": (GIVEN,),
            "input": _input_block(its_input),
            "classes": None if order is None else tuple(order),
            "output": its_output,
        }
        for teacher, its_input, order, its_output in zip(teachers, inputs, orders, outputs, strict=True)
    ]
    if len(blocks) == 1:
        return TeacherBlock.model_construct(**blocks[0])
    return TeacherBlock.model_construct(members=tuple(MemberBlock.model_construct(**block) for block in blocks))


def _each(name: str, value: Any, count: int) -> Sequence[Any]:
    """Return a value for each of ``count`` teachers, from a list of these values or one value for all."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise LimbeckError(f"{name} has {len(value)} values, but the number of teachers is {count}")
    return value


def _student_block(
    student: nn.Module | MakeStudent,
    networks: Mapping[str, nn.Module],
    expected: Input | None,
    output: str | None,
    out: str | Path | None,
) -> StudentBlock:
    """The block of the student, with what identifies the other networks that the method uses."""
    model = _model_block(student, out)
    if networks and out is not None:
        model["networks_at_the_call"] = {name: _model_block(network, out) for name, network in networks.items()}
    return StudentBlock.model_construct(model=model, input=_input_block(expected), output=output)


def _input_block(expected: Input | None) -> InputBlock | None:
    return None if expected is None else InputBlock.model_construct(**asdict(expected) | {"size": expected.sides})


def _checked(name: str, model: type[Model], values: Any) -> Model:
    block, problems = validate(model, values)
    if block is None:
        raise LimbeckError("; ".join(f"{name}: {'.'.join(map(str, one.path))}: {one.message}" for one in problems))
    return block


def _train_block(
    epochs: int,
    batch_size: int,
    optimizer: str | Block,
    schedule: str | Block,
    augment: Augment | None,
    more: Mapping[str, Any],
) -> TrainBlock:
    """The training as a block of a recipe; the arguments are validated when the training is made from the block."""
    own = [key for key in ("epochs", "batch_size", "optimizer", "schedule", "augment") if key in more]
    if own:
        raise LimbeckError(f"training: {own[0]} is an argument of distill: write {own[0]}=...")
    block = _checked("training", TrainBlock, {"epochs": 1, **more})
    return block.model_copy(
        update={
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": fill(OPTIMIZERS, optimizer, kind="optimizer"),
            "schedule": fill(SCHEDULES, schedule, kind="schedule"),
            "augment": AugmentBlock(**asdict(augment or NO_AUGMENTATION)),
        }
    )


def _with_task(data: Data, options: Mapping[str, Any]) -> tuple[TaskBlock, Data]:
    """The options of the task as a block of a recipe, and the data with them."""
    if not isinstance(options, Mapping):
        raise LimbeckError(
            f"task is {options!r}; allowed is a dict with hard_loss, eyes or metric. The task itself belongs to the "
            "data: limbeck.arrays(..., task=...)"
        )
    own = {key: value for key, value in options.items() if key in ("hard_loss", "metric") and callable(value)}
    block = _checked("task", TaskBlock, {key: value for key, value in options.items() if key not in own})
    for problem in task_problems(block):
        raise LimbeckError(f"{'.'.join(map(str, problem.path))}: {problem.message}")
    block = block.model_copy(update={key: _described(value) for key, value in own.items()})
    return block, with_options(data, block, own)


def _described(function: Callable[..., Any]) -> str:
    """What stands for a function in the recipe: its name and the hash of its code."""
    return f"{GIVEN} {getattr(function, '__qualname__', type(function).__qualname__)} {_code(function)}"


def _code_block(function: Callable[..., Any]) -> dict[str, str]:
    """The key of a block that identifies a function, short enough for one line of a recipe."""
    return {"code_at_the_call": _code(function)[:32]}


def _code(function: Callable[..., Any]) -> str:
    """The hash of the source of a function, or of its instructions if Python does not find the source."""
    if isinstance(function, partial):
        values = re.sub(" at 0x[0-9a-f]+", "", repr((function.args, function.keywords)))  # addresses vary
        return sha256(f"{_code(function.func)} {values}".encode()).hexdigest()
    named = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    compiled = getattr(named, "__code__", None)
    try:  # the source of a lambda is that of the lines around it
        text = inspect.getsource(named) if compiled is None or named.__name__ != "<lambda>" else _instructions(compiled)
    except (OSError, TypeError):  # it was typed at a prompt, or is not written in Python
        text = "" if compiled is None else _instructions(compiled)
    return sha256(text.encode()).hexdigest()


def _instructions(code: CodeType) -> str:
    """The instructions of a function, wherever it is written, with its names and constants."""
    inner = [_instructions(one) for one in code.co_consts if isinstance(one, CodeType)]
    sets = [sorted(map(repr, one)) for one in code.co_consts if isinstance(one, frozenset)]  # their order varies
    rest = [one for one in code.co_consts if not isinstance(one, CodeType | frozenset)]
    return repr((code.co_code, code.co_names, inner, sets, rest))


def _method(
    method: str | Block | Sequence[str | Block] | Method, out: str | Path | None
) -> tuple[str, Method, dict[str, Any]]:
    """A method's name, its function, and its block in a recipe: with a run folder, its code at the call."""
    if callable(method):
        name = re.sub(r"[^\w.+-]", "", getattr(method, "__name__", "method"))
        return name, method, {"name": name, **({} if out is None else _code_block(method))}
    if not isinstance(method, str | Mapping):
        named = [_method(part, out) for part in method]
        name = "+".join(name for name, _, _ in named)
        parts = [block for _, _, block in named]
        return name, partial(combined, parts=[part for _, part, _ in named]), {"name": name, "parts": parts}
    if isinstance(method, Mapping) and "as" in method:
        block, problems = complete_methods(method)
        for problem in problems:
            raise LimbeckError(f"{'.'.join(map(str, problem.path))}: {problem.message}")
        return block["name"], partial(call, METHODS, block["parts"][0]), block
    block = fill(METHODS, method, kind="method", presets=PRESETS)
    return block["name"], partial(call, METHODS, block), block
