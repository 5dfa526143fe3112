"""Distillation in one call, for your own modules and arrays."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Literal

import torch
from torch import nn

from limbeck.blocks import CacheBlock, as_cache
from limbeck.caching import cached, finished, keep, wanted
from limbeck.core import LimbeckError, Method, Stage
from limbeck.data import Augment, Data
from limbeck.engine import Engine, Precision
from limbeck.exact import copy_of
from limbeck.methods import METHODS, PRESETS, TEACHERLESS
from limbeck.methods.combined import combined
from limbeck.networks import teaches
from limbeck.optimizers import OPTIMIZERS
from limbeck.options import Block, call, fill, validate
from limbeck.outputs import logits_only
from limbeck.preflight import check_run, refuse_shared, unwrapped
from limbeck.rehearsal import settle
from limbeck.schedules import SCHEDULES
from limbeck.session import (
    NO_AUGMENTATION,
    Training,
    logits_of,
    measure,
    plan,
    probe,
    time_together,
    training_batches,
)
from limbeck.store import Store
from limbeck.train import Epoch, run


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    data: Data,
    *,
    method: str | Block | Sequence[str | Block] | Method = "kd",
    networks: Mapping[str, nn.Module] | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    optimizer: str | Block = "adam",
    schedule: str | Block = "cosine",
    augment: Augment | None = None,
    seed: int = 0,
    baseline: bool = True,
    device: str = "auto",
    precision: Precision = "auto",
    compile: bool | Literal["auto"] = "auto",  # noqa: A002 (what torch calls it)
    cache: bool | Literal["auto"] | Mapping[str, Any] = "auto",
    teacher_output: str | None = None,
    student_output: str | None = None,
    allow: Collection[str] = (),
    on_epoch: Callable[[str, Epoch], object] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Distil a trained teacher into a student: your own modules, your own arrays.

    Args:
        teacher: maps inputs to logits (N, K); frozen, and afterwards as it was, buffers too, on the device; a method
            that trains its teacher (``class_distance``, ``mutual``) trains a copy. None for a method without one, such
            as ``alone``, which trains the student on the labels: a way to get a teacher.
        student: maps the same inputs to logits (N, K); trained in place.
        data: from `limbeck.arrays` or `limbeck.load`. Both networks get its inputs as they are there: normalised by the
            training set's mean and deviation unless it was made with ``normalise=False``. A trained teacher must have
            been trained on the same.
        method: a method's name (`limbeck methods` lists them), a block such as ``{"name": "kd", "temperature": 2}``,
            a list of such to combine, or a function ``setup -> stages`` of your own.
        networks: other networks that the method names, such as assistants or peers; trained in place.
        epochs: passes over the training set.
        batch_size: samples a step.
        optimizer: its name, or a block such as ``{"name": "sgd", "lr": 0.05}``.
        schedule: the learning rate's, likewise.
        augment: random changes of the training images; none by default.
        seed: of the data's order, the augmentation and dropout. Same seed, same student, on a CPU to the bit.
        baseline: also train a copy of the student without the teacher, which is the evidence that it helped.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``32`` or ``bf16``.
        compile: compile the teacher and the losses on maps, or ``auto``: where the training is long enough to gain.
        cache: compute the teacher's outputs once and read them back: True, False, ``auto`` (where that changes nothing
            but rounding), or a block such as ``{"views": 4, "dtype": "float16", "folder": "outputs"}``; without a
            folder they lie in a temporary one.
        teacher_output: what of the teacher's output are the logits, where that is no tensor; see `limbeck.outputs`.
        student_output: the same of the student.
        allow: refusals to leave out, see `limbeck.preflight`.
        on_epoch: called with ``"alone"`` or the method's name, and the epoch.

    Returns:
        The student, in eval mode, and the result: ``method``, ``seed``, ``decided`` (what ``auto`` came to), and for
        ``student``, ``teacher`` (if given), ``alone`` (with ``baseline``) and ``teacher_after`` (where the method has
        trained a copy of the teacher) their ``test`` figures, ``parameters``, ``macs`` and ``file_bytes``, and but for
        the last ``latency_ms`` and ``latency_p95_ms``.

    Raises:
        LimbeckError: a name, an option, a layer or a shape is wrong; found before any training.
    """
    if not isinstance(data, Data):
        raise LimbeckError(f"data is a {type(data).__name__}: make it with limbeck.arrays or limbeck.load")
    training = _training(epochs, batch_size, optimizer, schedule, augment)
    taken = sorted({"student", "teacher", "batch"} & set(networks or {}))
    if taken:
        raise LimbeckError(f"networks: the name {taken[0]!r} is taken: choose another")
    given = {"student": student, **(networks or {})} | ({} if teacher is None else {"teacher": teacher})
    inside, looked = unwrapped(given)
    shared = refuse_shared(inside, allow=allow)
    outputs = {"teacher": teacher_output, "student": student_output}
    named = {role: output for role, output in outputs.items() if output is not None}
    with logits_only(inside, probe(data), len(data.classes), outputs=named, layers=_layers(method)) as notes:
        result = _distil(
            inside,
            data,
            method,
            training,
            seed,
            baseline=baseline,
            cache=_cache(cache),
            on_epoch=on_epoch,
            chosen={"device": device, "precision": precision, "compile": compile},
        )
    result["notes"] = [*looked.notes, *shared.notes, *notes, *result.get("notes", [])]
    return student.eval(), result


def _distil(
    networks: dict[str, nn.Module],
    data: Data,
    method: str | Block | Sequence[str | Block] | Method,
    training: Training,
    seed: int,
    *,
    baseline: bool,
    cache: CacheBlock,
    on_epoch: Callable[[str, Epoch], object] | None,
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    name, function = _method(method)
    student, teacher = networks["student"], networks.get("teacher")
    others = {role: network for role, network in networks.items() if role not in ("student", "teacher")}
    arms = _arms(name, function, student, teacher, others, baseline=baseline, data=data)
    notes: list[str] = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        plans = {role: plan(arm, group, data, training) for role, (_, arm, group) in arms.items()}
        if teacher is not None and any(teaches(stages) for stages in plans.values()):
            arms["student"][2]["teacher"] = copy_of(teacher, probe(data).inputs, name="teacher")
        block, engine = settle(
            plans["student"],
            arms["student"][2],
            data,
            training,
            seed=seed,
            cache=cache,
            folder=Path(gettempdir()),
            **chosen,
        )
        for role, (_, _, group) in arms.items():
            notes += check_run(plans[role], group, data, training, engine).notes
    decided = engine.decided | {"cache": block.model_dump()}
    result: dict[str, Any] = {"method": name, "seed": seed, "decided": decided, "notes": list(dict.fromkeys(notes))}
    guide = None
    if teacher is not None:
        guide = logits_of(teacher, data.test, data, engine, name="teacher")
        result["teacher"] = measure(teacher, data, engine, name="teacher")
    training = cached(training, block)
    with _store(block, plans["student"], arms["student"][2], data, training, engine) as store:
        for role, (label, arm, group) in arms.items():
            _train(arm, group, data, training, seed, engine, store, on_epoch and partial(on_epoch, label))
            if group.get("teacher", teacher) is not teacher:  # the copy that the method has trained
                result["teacher_after"] = measure(group["teacher"], data, engine, name="teacher")
                guide = logits_of(group["teacher"], data.test, data, engine, name="teacher")
            result[role] = measure(group["student"], data, engine, teacher=guide, name="student")
    trained = {role: group["student"].eval() for role, (_, _, group) in arms.items()}
    student.zero_grad(set_to_none=True)
    for role, times in time_together(trained | ({} if teacher is None else {"teacher": teacher}), data, 100).items():
        result[role] |= times
    return result


def _layers(method: str | Block | Sequence[str | Block] | Method) -> dict[str, str]:
    """The layers that a method's options name as the networks' logits."""
    named = (
        {role: method.get(f"{role}_layer") for role in ("student", "teacher")} if isinstance(method, Mapping) else {}
    )
    return {role: layer for role, layer in named.items() if isinstance(layer, str) and layer}


def _arms(
    name: str,
    method: Method,
    student: nn.Module,
    teacher: nn.Module | None,
    networks: Mapping[str, nn.Module],
    *,
    baseline: bool,
    data: Data,
) -> dict[str, tuple[str, Method, dict[str, nn.Module]]]:
    """What is trained, the student last: by role, its label, its method and the networks that take part."""
    if teacher is None and name in set(METHODS) - set(TEACHERLESS):
        raise LimbeckError(f"the method {name} needs a teacher, got None")
    given = dict(networks) | ({} if teacher is None else {"teacher": teacher})
    arms = {"student": (name, method, {"student": student, **given})}
    if baseline and name != "alone":
        twin = copy_of(student, probe(data).inputs, name="student", otherwise="; baseline=False goes without")
        arms = {"alone": ("alone", METHODS["alone"], {"student": twin}), **arms}
    return arms


@contextmanager
def _store(
    block: CacheBlock,
    stages: Sequence[Stage],
    networks: Mapping[str, nn.Module],
    data: Data,
    training: Training,
    engine: Engine,
) -> Iterator[Store | None]:
    """The teacher's outputs, built before any student is trained, so that what hinders it is told then."""
    taps = wanted(stages)
    with TemporaryDirectory() as temporary:
        if block.use and taps:
            folder = Path(block.folder or temporary)
            yield finished(keep(folder, block, networks["teacher"], taps, data, training, engine))
        else:
            yield None


def _train(
    method: Method,
    networks: Mapping[str, nn.Module],
    data: Data,
    training: Training,
    seed: int,
    engine: Engine,
    store: Store | None,
    watch: Callable[[Epoch], object] | None,
) -> None:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        engine.seed(seed)
        stages = plan(method, networks, data, training)
        batches = training_batches(data, training, seed=seed, engine=engine)
        for epoch in run(stages, networks, batches, engine, store=store):
            if watch is not None:
                watch(epoch)


def _cache(asked: bool | str | Mapping[str, Any]) -> CacheBlock:
    block, problems = validate(CacheBlock, as_cache(asked))
    if block is None:
        raise LimbeckError("; ".join(f"cache: {'.'.join(map(str, one.path))}: {one.message}" for one in problems))
    return block


def _training(
    epochs: int, batch_size: int, optimizer: str | Block, schedule: str | Block, augment: Augment | None
) -> Training:
    return Training(
        epochs,
        batch_size,
        call(OPTIMIZERS, fill(OPTIMIZERS, optimizer, kind="optimizer")),
        call(SCHEDULES, fill(SCHEDULES, schedule, kind="schedule")),
        augment or NO_AUGMENTATION,
    )


def _method(method: str | Block | Sequence[str | Block] | Method) -> tuple[str, Method]:
    if callable(method):
        return getattr(method, "__name__", "method"), method
    if not isinstance(method, str | Mapping):
        named = [_method(part) for part in method]
        return "+".join(name for name, _ in named), partial(combined, parts=[part for _, part in named])
    block = fill(METHODS, method, kind="method", presets=PRESETS)
    return block["name"], partial(call, METHODS, block)
