"""Distillation and comparison in one call, for your own modules and arrays."""

import inspect
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from limbeck.arguments import OwnMethod, Teacher, called
from limbeck.comparison.results import ADJUST, Adjust, ComparisonResult
from limbeck.comparison.sweep import Sweep
from limbeck.core import LimbeckError
from limbeck.data import Augment, Data
from limbeck.errors import nearest
from limbeck.experiment.events import Event, Job, Track, Trained, unwatched
from limbeck.experiment.given import MakeStudent
from limbeck.experiment.in_memory import Keep
from limbeck.experiment.results import RunResult
from limbeck.experiment.run import Experiment
from limbeck.files.alone import alone
from limbeck.models.inputs import Input
from limbeck.options import Block
from limbeck.recipe.blocks import Refusal
from limbeck.train.engine import Precision
from limbeck.train.loop import Epoch
from limbeck.train.threads import threads_for

OnEpoch = Callable[[str, Epoch], object]

_KEEP: tuple[Keep, Keep] = ("run", "memory")


def distill(
    teacher: Teacher | Sequence[Teacher] | None,
    student: nn.Module | MakeStudent,
    data: Data,
    *,
    method: OwnMethod = "kd",
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
            identify it by its name and source. Or a list of two or more modules and functions: an ensemble whose
            probabilities are averaged. None for a method without a teacher, such as ``alone``, which trains the student
            on the labels: one way to get a teacher.
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
            resumed; the networks' weights and the sources of your functions at the call are part of what identifies a
            run. Without it nothing is written.
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
    steps = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "schedule": schedule}
    engine = {"device": device, "precision": precision, "compile": compile, "cache": cache}
    reads = {"teacher_input": teacher_input, "teacher_classes": teacher_classes, "teacher_output": teacher_output}
    options: dict[str, Any] = {
        **steps,
        **engine,
        **reads,
        "student_input": student_input,
        "student_output": student_output,
        "augment": augment,
        "training": training,
        "task": task,
        "networks": networks,
        "baseline": baseline,
        "allow": allow,
    }
    call = called(teacher, student, data, [method], seeds=_seeds(seed, seeds), out=out, **options)
    with _undisturbed(out) as folder, nullcontext() if out is None else alone(Path(folder)):
        given, keep = call.given(student, networks or {}, in_place=True), _KEEP[out is None]
        experiment = Experiment(call.recipe, Path(folder), resume=out is not None, given=given, keep=keep)
        with experiment.factory, threads_for(experiment.macs):
            _follow(experiment, experiment.run, experiment.work, on_epoch, progress)
    trained = experiment.networks[call.recipe.method["name"]]
    trained.zero_grad(set_to_none=True)
    result = replace(experiment.result, notes=experiment.notes)  # with what a resumed folder was found to lack
    return (student if isinstance(student, nn.Module) else trained).eval(), result


def compare(
    teacher: Teacher | Sequence[Teacher] | None,
    student: nn.Module | MakeStudent,
    data: Data,
    *,
    methods: Sequence[OwnMethod],
    seeds: int | Sequence[int] = 6,
    adjust: Adjust = "holm",
    out: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ComparisonResult:
    """Compare methods over seeds with each other and with the student alone, as `limbeck compare` does.

    Every student has the same initial weights, batches and views as the others of its seed. The students of a seed are
    trained together: the teacher runs once for each batch.

    Args:
        teacher: as for `distill`.
        student: as for `distill`, but no training is in place. Pass a function that builds a student: if it is a
            module, all seeds start from its weights, and the deviations do not include that of the initial weights.
        data: as for `distill`.
        methods: a list of what ``method`` of `distill` may be. Their names must differ.
        seeds: their number, or a list. Fewer than 6 give no verdict.
        adjust: how p-values are adjusted over the methods: ``holm`` or ``fdr`` (Benjamini and Hochberg).
        out: the folder of the comparison, in which report.html is written too. If it holds the same comparison, only
            what is missing is trained. Without it nothing is kept.
        progress: as for `distill`.
        options: other arguments of `distill`, such as ``epochs`` and ``teacher_input``; not ``cache`` or ``on_epoch``.

    Returns:
        The content of comparison.json, see `limbeck.comparison.results`.

    Raises:
        LimbeckError: as for `distill`; or a method is listed twice; or the networks can have none of the methods.
    """
    known = set(inspect.signature(called).parameters) - {"methods", "compares", "seeds", "cache", "baseline"}
    for wrong in options.keys() - known:
        raise LimbeckError(f"compare has no argument {wrong!r}: {nearest(wrong, sorted(known))}")
    if isinstance(methods, str) or not methods:
        raise LimbeckError(f"methods is {methods!r}: pass a list, such as ['kd', 'srrl']")
    if adjust not in ADJUST:
        raise LimbeckError(f"adjust is {adjust!r}: {nearest(adjust, ADJUST)}")
    every = _seeds(0, tuple(range(seeds)) if isinstance(seeds, int) else seeds)
    call = called(teacher, student, data, methods, compares=True, seeds=every, out=out, **options)
    with _undisturbed(out) as folder:
        given = call.given(student, options.get("networks") or {}, in_place=False)
        sweep = Sweep(call.recipe, Path(folder), given=given)
        with sweep.experiment.factory, threads_for(sweep.experiment.macs):
            _follow(sweep.experiment, sweep.run, sweep.work, None, progress)
            result = sweep.conclude(adjust)
    if out is not None:
        from limbeck.report.page import write_report  # what draws takes a while to import

        write_report(Path(out), data=data)
    return result


@contextmanager
def _undisturbed(out: str | Path | None) -> Iterator[str]:
    """A run folder, or a temporary one; torch's modes and random generators are restored afterwards."""
    with (
        torch.inference_mode(mode=False),  # else what is copied could not learn
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        TemporaryDirectory() if out is None else nullcontext(str(out)) as folder,
    ):
        yield folder


def _follow(
    experiment: Experiment,
    run: Callable[[Track], Generator[Event, None, None]],
    work: Mapping[Job, float],
    on_epoch: OnEpoch | None,
    progress: bool | None,
) -> None:
    def start(track: Track) -> Iterator[Event]:
        with closing(run(track)) as events:  # else an error in on_epoch would keep the networks frozen
            for event in events:
                if on_epoch is not None and isinstance(event, Trained):
                    on_epoch(event.job.arm, event.epoch)
                yield event

    if progress is False or (progress is None and not _watched()):
        for _ in start(unwatched):
            pass
        return
    from limbeck.cli.progress import watch  # what shows progress takes a while to import

    watch(experiment, start, work)


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
