"""Distillation in one call, for your own modules and arrays."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import nn

from limbeck.cache.fingerprint import structure_digest, weights_digest
from limbeck.core import LimbeckError, Method
from limbeck.data import Augment, Data
from limbeck.errors import nearest
from limbeck.experiment.events import Event, Track, Trained
from limbeck.experiment.given import Given, MakeStudent, OwnNetworks
from limbeck.experiment.results import RunResult
from limbeck.experiment.run import Experiment
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
from limbeck.schedules import SCHEDULES
from limbeck.train.engine import Precision
from limbeck.train.loop import Epoch
from limbeck.train.threads import threads_for

OnEpoch = Callable[[str, Epoch], object]
Teacher = nn.Module | Function


def distill(
    teacher: Teacher | Sequence[Teacher] | None,
    student: nn.Module | MakeStudent,
    data: Data,
    *,
    method: str | Block | Sequence[str | Block] | Method = "kd",
    networks: Mapping[str, nn.Module] | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    optimizer: str | Block = "adam",
    schedule: str | Block = "cosine",
    augment: Augment | None = None,
    training: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
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
    progress: bool | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, RunResult]:
    """Distil a trained teacher into a student, with your own modules and arrays.

    During the call, small networks are computed with one thread; see `limbeck.train.threads`.

    Args:
        teacher: maps inputs to logits (N, K). It is frozen, and unchanged afterwards (buffers included), on the device.
            A method that trains its teacher (``class_distance``, ``mutual``) trains a copy. Or a function from inputs
            (N, ...) to logits (N, K), a tensor or a NumPy array, which is called without gradients; ``out`` and a store
            identify it by its name. Or a list of two or more modules and functions: an ensemble whose probabilities are
            averaged. None for a method without a teacher, such as ``alone``, which trains the student on the labels:
            one way to get a teacher.
        student: maps the same inputs to logits (N, K). The method trains it in place with the first seed; all other
            trainings start from copies of it. Or a function without arguments that builds a student: it is called for
            every training, so that each seed has its own initial weights.
        data: from `limbeck.arrays`, `limbeck.dataset` or `limbeck.load`. Both networks get the same inputs, normalised
            by the training set's mean and deviation unless the data was made with ``normalise=False``. Give
            ``teacher_input`` if the teacher was trained on other inputs.
        method: a method's name (`limbeck methods` lists them), a block such as ``{"name": "kd", "temperature": 2}``,
            a list of these to combine, or your own function ``setup -> stages``.
        networks: other networks that the method uses, such as assistants or peers; trained in place with the first
            seed, as copies with the others.
        epochs: passes over the training set.
        batch_size: samples per step.
        optimizer: its name, or a block such as ``{"name": "sgd", "lr": 0.05}``.
        schedule: of the learning rate, likewise.
        augment: random changes of the training images; none by default.
        training: other keys of a recipe's ``train`` block, such as ``{"clip": 1.0, "keep": "best", "mixup": 0.2}``; see
            docs/recipes.md.
        task: options of the task of the data, as in a recipe: ``hard_loss``, ``eyes`` and ``metric``. The loss and the
            metric may be functions ``(outputs, targets)``; ``out`` identifies these by their names and sources.
        seed: of the data's order, the augmentation and dropout. The same seed gives the same student, bit-identical on
            a CPU if ``precision``, which ``auto`` decides by timing, and ``compile`` are the same.
        seeds: several seeds instead of ``seed``: the result then has means and deviations over them.
        baseline: also train a copy of the student without the teacher, as the evidence of what the teacher brought.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``32`` or ``bf16``.
        compile: compile the teacher and the losses on feature maps; see docs/speed.md for when that pays.
        cache: compute the teacher's outputs once and read them back: True, False, ``auto`` (if only rounding changes),
            or a block such as ``{"views": 4, "dtype": "float16", "folder": "outputs"}``. Without a folder they are
            stored in ``out``, or in a temporary folder.
        teacher_input: what the teacher reads, if it was trained on another normalisation, size, range or order of
            channels than the data has: `limbeck.Input(mean="imagenet", std="imagenet", size=224)`. Every augmented view
            is converted for it. For an ensemble, this and the next two arguments are a list with one value per member,
            or one value for all.
        teacher_classes: the teacher's classes in the order of its outputs, by name or by their number in the data, if
            that is another order than ``data.classes``. It may have classes that the data does not have.
        teacher_output: which part of the teacher's output holds the logits, see `limbeck.models.outputs`; detected by
            default.
        student_input: what the student reads, such as `limbeck.Input(size=96)`; as the data by default.
        student_output: the same as ``teacher_output`` for the student.
        allow: names of refusals to leave out, see `limbeck.experiment.verdicts`.
        out: a run folder, as `limbeck run` writes it. If it holds the same run, finished or interrupted, that run is
            resumed; the networks' weights at the call are part of what identifies a run. Without it nothing is written.
        progress: show the progress of the training and what it finds; by default on a terminal and in a notebook.
        on_epoch: called with ``"alone"`` or the method's name, and the epoch.

    Returns:
        The student of the first seed, in eval mode, and the `limbeck.RunResult` that `limbeck run` writes to
        result.json, with the networks of the first seed as ``teacher``, ``alone`` and ``student``, all seeds' under
        ``runs``, and their means under ``summary``.

    Raises:
        LimbeckError: a name, an option, a layer or a shape is wrong, or the teacher cannot be right, all of which is
            found before any training; or ``out`` holds another run.
    """
    (name, function, block), teachers, every = _method(method), _teachers(teacher), _seeds(seed, seeds)
    _check(data, name, teachers, networks or {}, allow)
    task_block, data = _with_task(data, task or {})
    recipe = Recipe.model_construct(
        name="distill",
        task=task_block,
        data=_data_block(data, out),
        teacher=_teacher_block(teachers, teacher_input, teacher_classes, teacher_output, out) if teachers else None,
        student=_student_block(student, student_input, student_output, out),
        method=block,
        train=_train_block(epochs, batch_size, optimizer, schedule, augment, {} if training is None else training),
        baseline=baseline,
        seeds=every,
        device=device,
        precision=precision,
        compile=compile,
        cache=_checked("cache", CacheBlock, as_cache(cache)),
        allow=tuple(allow),
    )
    with _undisturbed(out) as folder:
        own = OwnNetworks(student, teachers, networks or {}, recipe.student, first=(every[0], name), data=data)
        experiment = Experiment(
            recipe, Path(folder), resume=out is not None, given=Given(data, own, function), in_memory=out is None
        )
        with experiment.factory, threads_for(experiment.macs):
            _follow(experiment, on_epoch, progress)
    experiment.networks[name].zero_grad(set_to_none=True)
    result = replace(experiment.result, notes=experiment.notes)  # with what a resumed folder was found to lack
    return (student if isinstance(student, nn.Module) else experiment.networks[name]).eval(), result


@contextmanager
def _undisturbed(out: str | Path | None) -> Iterator[str]:
    """A run folder, or a temporary one; torch's modes and random generators are restored afterwards."""
    with (
        torch.inference_mode(mode=False),  # else what is copied could not learn
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        TemporaryDirectory() if out is None else nullcontext(str(out)) as folder,
    ):
        yield folder


def _follow(experiment: Experiment, on_epoch: OnEpoch | None, progress: bool | None) -> None:
    def start(track: Track) -> Iterator[Event]:
        with closing(experiment.run(track)) as events:  # else an error in on_epoch would keep the networks frozen
            for event in events:
                if on_epoch is not None and isinstance(event, Trained):
                    on_epoch(event.job.arm, event.epoch)
                yield event

    if progress is False or (progress is None and not _watched()):
        for _ in start(lambda job, epochs, batches: batches):
            pass
        return
    from limbeck.cli.progress import watch  # what shows progress takes a while to import

    watch(experiment, start)


def _watched() -> bool:
    """Whether a user sees the output: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _seeds(seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    every = (seed,) if seeds is None else tuple(seeds) if isinstance(seeds, Sequence) else ()
    whole = all(type(one) is int and 0 <= one < 2**32 for one in every)
    if not every or not whole or len(set(every)) < len(every):
        got = seed if seeds is None else seeds
        raise LimbeckError(f"got the seeds {got}: allowed are one or more whole numbers from 0 to 2**32 - 1, each once")
    return every


def _teachers(teacher: Teacher | Sequence[Teacher] | None) -> list[nn.Module]:
    """The teacher, or the members of an ensemble, as modules."""
    if isinstance(teacher, list | tuple) and len(teacher) < 2:
        raise LimbeckError(f"teacher is a list of {len(teacher)}: pass two or more networks, or one without a list")
    every = teacher if isinstance(teacher, list | tuple) else () if teacher is None else (teacher,)
    for one in every:
        if not callable(one) or isinstance(one, type):
            raise LimbeckError(f"teacher is a {type(one).__name__}: it must be a torch.nn.Module or a function")
    networks = [as_network(one) for one in every]
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
    """What stands for a network in the recipe: with a run folder, its weights at the call."""
    if out is None or not isinstance(network, nn.Module):
        return {"name": GIVEN}
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
    student: nn.Module | MakeStudent, expected: Input | None, output: str | None, out: str | Path | None
) -> StudentBlock:
    return StudentBlock.model_construct(model=_model_block(student, out), input=_input_block(expected), output=output)


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
    """What stands for a function in the recipe: its name and a hash of its source, if Python finds the source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = ""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{GIVEN} {name} {sha256(source.encode()).hexdigest()}"


def _method(method: str | Block | Sequence[str | Block] | Method) -> tuple[str, Method, dict[str, Any]]:
    """A method's name, its function, and its block in a recipe."""
    if callable(method):
        name = re.sub(r"[^\w.+-]", "", getattr(method, "__name__", "method"))
        return name, method, {"name": name}
    if not isinstance(method, str | Mapping):
        named = [_method(part) for part in method]
        name = "+".join(name for name, _, _ in named)
        parts = [block for _, _, block in named]
        return name, partial(combined, parts=[part for _, part, _ in named]), {"name": name, "parts": parts}
    block = fill(METHODS, method, kind="method", presets=PRESETS)
    return block["name"], partial(call, METHODS, block), block
