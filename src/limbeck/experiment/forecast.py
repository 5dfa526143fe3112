"""What a run will do, write and cost, and the results of its checks: what `limbeck plan` shows."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.cache.building import Estimate, estimate
from limbeck.cache.fingerprint import Fingerprint
from limbeck.core import TARGETS, Batch, LimbeckError, Networks, Stage, Tap, tap
from limbeck.data.targets import TaskName
from limbeck.evaluate import file_bytes, macs, parameters
from limbeck.experiment.arms import teacher_of
from limbeck.experiment.caching import cached, formats, reading, teacher_taps
from limbeck.experiment.first_step import unprepared
from limbeck.experiment.preflight import Planned
from limbeck.experiment.run import Experiment
from limbeck.experiment.runfiles import holds_epoch
from limbeck.experiment.terms import SAMPLES
from limbeck.experiment.verdicts import CHECKS, Note
from limbeck.experiment.workspace import Workspace, example_batch, training_batches
from limbeck.models import Ensemble
from limbeck.models.inputs import bridge_of
from limbeck.outline import outline
from limbeck.recipe.blocks import Recipe
from limbeck.taps import Taps, shapes
from limbeck.train.copies import NotCopied
from limbeck.train.engine import Engine
from limbeck.train.freeze import frozen, frozen_modules
from limbeck.train.loop import BatchSource, Step
from limbeck.train.timing import time_steps, zeros_for

_LAYERS = {
    "student": ("student_layer", "student_layers", "guided_layer"),
    "teacher": ("teacher_layer", "teacher_layers", "hint_layer"),
}
"""The options of methods that name layers to read, by network."""


@dataclass(frozen=True)
class SplitForecast:
    """One split of the data."""

    samples: int
    origin: str


@dataclass(frozen=True)
class NetworkForecast:
    """One network; ``reads`` is the form of its inputs."""

    parameters: int
    macs: int | None
    reads: str


@dataclass(frozen=True)
class ReadForecast:
    """One tensor that a term reads, with the shape of a sample, and why it is this one."""

    tap: str
    shape: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class TermForecast:
    """One term: its weight (the first and the last one of a schedule), and the parameters of its loss."""

    weight: tuple[float, ...]
    parameters: int
    reads: tuple[ReadForecast, ...]


@dataclass(frozen=True)
class StageForecast:
    """One stage; ``step_seconds`` is measured; None if the networks cannot be copied."""

    name: str
    trainings: int  # 1 if all seeds share the stage
    epochs: int
    steps: int  # of one epoch
    learns: tuple[str, ...]
    terms: Mapping[str, TermForecast]
    step_seconds: float | None


@dataclass(frozen=True)
class ArmForecast:
    """The stages of one kind of training, and how many networks are trained so."""

    trainings: int
    stages: tuple[StageForecast, ...]


@dataclass(frozen=True)
class Kept:
    """Bytes on the disk."""

    weights: int
    checkpoint: int  # the largest one; each replaces the last
    store: int
    folder: str
    in_use: bool  # whether the folder holds a run already


@dataclass(frozen=True)
class Verdict:
    """The result of a check; ``said`` is the reason, and names the override of a refusal."""

    check: str
    state: Literal["ok", "warning", "refused", "skipped"]
    said: str


@dataclass(frozen=True)
class Forecast:
    """A run before it begins. Times and bytes are estimates."""

    name: str
    device: str
    precision: str
    shape: tuple[int, ...]
    task: TaskName
    classes: int  # of other tasks, labels, numbers or points
    splits: Mapping[str, SplitForecast]
    networks: Mapping[str, NetworkForecast]
    arms: Mapping[str, ArmForecast]
    kept: Kept
    store: Estimate | None  # of the outputs of one teacher, if they are stored
    seconds: float | None  # of all training steps, without reading and evaluating
    memory: int  # bytes of data, networks, optimizer and activations, without PyTorch itself
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


def forecast(experiment: Experiment, allow: Collection[str]) -> Forecast:
    """What a run will do. Nothing is written and nothing is trained; a few steps are timed on copies.

    Args:
        experiment: prepared with every refusal allowed, so that all verdicts are known.
        allow: the refusals that the user allows.

    Raises:
        LimbeckError: a step fails with an error that the user can fix.
    """
    recipe, data, engine = experiment.recipe, experiment.data, experiment.engine
    made = experiment.built()
    arms = {arm: _arm(experiment, arm, planned) for arm, planned in made.trainings.items()}
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    shown = {note.said for note in experiment.found if note.check}
    store = _store(experiment, made.trainings[recipe.method["name"]])
    return Forecast(
        name=recipe.name,
        device=engine.device.type,
        precision=engine.precision,
        shape=data.shape,
        task=data.task,
        classes=len(data.classes),
        splits={name: SplitForecast(len(split), data.origins.get(name, "")) for name, split in splits.items()},
        networks={name: _network(network, data.shape) for name, network in made.networks.items()},
        arms=arms,
        kept=_kept(experiment, made.trainings, store),
        store=store,
        seconds=_seconds(arms.values()),
        memory=max(_memory(experiment, planned) for planned in made.trainings.values()),
        verdicts=tuple(_verdicts(experiment.found, allow)),
        notes=tuple(note for note in experiment.notes if note not in shown),
    )


def _network(network: nn.Module, shape: tuple[int, ...]) -> NetworkForecast:
    size = " x ".join(map(str, shape))
    members = network.members if isinstance(network, Ensemble) else [network]
    reads = dict.fromkeys(str(bridge_of(member) or f"{size}, as the data") for member in members)
    return NetworkForecast(parameters(network), macs(network, shape), "; ".join(reads))


def _arm(experiment: Experiment, arm: str, planned: Planned) -> ArmForecast:
    stages, networks, training = planned
    own = arm == experiment.recipe.method["name"]
    workspace = Workspace(
        experiment.data, cached(training, experiment.recipe.cache) if own else training, experiment.engine
    )
    stored = teacher_taps(stages) if own and experiment.recipe.cache.use else frozenset[Tap]()
    batches = workspace.batches(experiment.recipe.seeds[0])
    few = example_batch(experiment.data)
    sizes = shapes(networks, dict.fromkeys(chain.from_iterable(stage.reads for stage in stages)), few)
    reasons = _reasons(experiment.recipe if own else None, networks, few)
    role = "teacher" if arm in ("teacher", "member") else "student"  # a teacher is trained under the name "student"

    def read(one: Tap) -> ReadForecast:
        shown = str(one).replace("student", role, 1)
        return ReadForecast(shown, sizes[one], reasons.get(one, "set by the method"))

    found: list[StageForecast] = []
    count = sum(job.arm == arm for job in experiment.work)
    for stage in stages:
        terms = {
            name: TermForecast(
                (term.weight(0.0), term.weight(1 - 1e-9)) if callable(term.weight) else (term.weight,),
                parameters(term.loss) if isinstance(term.loss, nn.Module) else 0,
                tuple(map(read, term.reads)),
            )
            for name, term in stage.terms.items()
        }
        seconds = _step_seconds(stage, networks, batches, experiment.engine, stored)
        learns = tuple(name.replace("student", role, 1) for name in stage.learns)
        times = 1 if own and experiment.recipe.share_first_stage and not found else count
        found.append(StageForecast(stage.name, times, stage.epochs, len(batches), learns, terms, seconds))
    return ArmForecast(count, tuple(found))


def _reasons(recipe: Recipe | None, networks: Mapping[str, nn.Module], few: Batch) -> Mapping[Tap, str]:
    """Why a term reads a tap, for the taps that the method does not choose; only a recipe's method can name layers."""
    found = {TARGETS: "the labels"} | {Tap(name): "the output" for name in networks}
    for name, network in networks.items():
        try:
            known = outline(name, network, few)
        except LimbeckError:  # a network without a classifier of its own has no outline
            continue
        found.setdefault(known.feature, "found: the input of the classifier")
        for number, section in enumerate(known.sections, start=1):
            where = f"found: the end of section {number} of {len(known.sections)}"
            found.setdefault(section.last, where)
            found.setdefault(section.pre_activation, f"{where}, before its activation")
    return found | dict.fromkeys(_named(recipe) if recipe else (), "named in the recipe")


def _named(recipe: Recipe) -> Iterator[Tap]:
    """The taps that the options of the method name."""
    for part in recipe.method.get("parts", [recipe.method]):
        for network, keys in _LAYERS.items():
            for value in (part[key] for key in keys if part.get(key)):
                for text in (value,) if isinstance(value, str) else value:
                    yield tap(network, text)


def _step_seconds(
    stage: Stage, networks: Networks, batches: BatchSource, engine: Engine, stored: frozenset[Tap]
) -> float | None:
    """The median time of a few steps on copies; None if the networks cannot be copied.

    A stage with ``prepare`` is timed without it and without its losses. Nothing is compiled. ``stored`` are the
    teacher's taps that are read from a store.
    """
    zeros = zeros_for(networks, stored, batches.example_inputs(), batches.samples + 1)
    try:
        return time_steps(unprepared(stage), networks, batches, engine, zeros)
    except NotCopied:
        return None


def _seconds(arms: Collection[ArmForecast]) -> float | None:
    total = 0.0
    for arm in arms:
        for stage in arm.stages:
            if stage.step_seconds is None:
                return None
            total += stage.trainings * stage.epochs * stage.steps * stage.step_seconds
    return total


def _memory(experiment: Experiment, planned: Planned) -> int:
    """Bytes of the data, the networks with their losses, gradients and optimizers, and the activations of a step."""
    stages, networks, training = planned
    workspace, data = Workspace(experiment.data, training, experiment.engine), experiment.data
    for network in networks.values():
        experiment.engine.place(network)
    held = [one.inputs for one in (data.train, data.validation, data.test) if isinstance(one.inputs, Tensor)]
    batch = workspace.spread(min(SAMPLES, training.batch_size, len(workspace.samples)))
    scale = training.batch_size / len(batch.index)
    steps = (
        sum(_learning(stage, planned)) + scale * _saved_bytes(stage, networks, batch, experiment.engine)
        for stage in stages
    )
    modules = nn.ModuleList([*networks.values(), *(loss for stage in stages for loss in stage.losses)])
    return round(sum(one.nbytes for one in held) + _bytes(modules) + max(steps))


def _learning(stage: Stage, planned: Planned) -> tuple[int, int]:
    """Bytes of the gradients, and what a checkpoint holds of the optimizer, the average and the best epoch."""
    stages, networks, training = planned
    step, regime = Step(stage, networks), training.regime
    gradients = sum(one.nbytes for one in step.parameters() if one.requires_grad)
    best = _bytes(step) if regime.keep == "best" and stage is stages[-1] else 0
    return gradients, gradients * (_tensors_a_weight(stage) + regime.averages(stage)) + best


def _bytes(module: nn.Module) -> int:
    return sum(one.nbytes for one in (*module.parameters(), *module.buffers()))


def _tensors_a_weight(stage: Stage) -> int:
    """How many numbers the stage's optimizer keeps for each weight."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    optimizer = stage.optimizer([weight])
    optimizer.step()
    kept = (value for state in optimizer.state.values() for value in state.values())
    return sum(isinstance(value, Tensor) and value.shape == weight.shape for value in kept)


def _saved_bytes(stage: Stage, networks: Networks, batch: Batch, engine: Engine) -> int:
    """Bytes that the forward of a stage saves for its backward, without weights; the networks are on the device."""
    known = {one.untyped_storage().data_ptr() for network in networks.values() for one in network.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in known:
            found[memory.data_ptr()] = memory.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        frozen(frozen_modules(stage, networks)),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        Taps(networks, stage.reads, learns=stage.networks) as taps,
        engine.autocast(),
    ):
        taps.read(batch)
    return sum(found.values())


def _store(experiment: Experiment, planned: Planned) -> Estimate | None:
    """What the store of a teacher takes, from a few batches that the teacher runs on."""
    recipe, data, engine, folder = experiment.recipe, experiment.data, experiment.engine, experiment.folder.path
    if not recipe.cache.use:
        return None
    stages, networks, training = planned
    taps, batches = teacher_taps(stages), training_batches(data, training, seed=recipe.cache.seed, engine=engine)
    unknown = Fingerprint(  # only the taps and the views matter here
        weights="",
        structure="",
        data="",
        transform={},
        seed=recipe.cache.seed,
        views=recipe.cache.views or 1,
        taps=formats(recipe.cache, taps),
        precision=engine.precision,
        versions={},
    )
    with reading(networks["teacher"], taps, batches.example_inputs(), engine) as reader:
        rows = len(data.train.without(training.exclude))
        return estimate(Path(recipe.cache.folder or folder), reader, batches, fingerprint=unknown, rows=rows)


def _kept(experiment: Experiment, trainings: Mapping[str, Planned], store: Estimate | None) -> Kept:
    recipe, folder = experiment.recipe, experiment.folder.path
    student = file_bytes(trainings[recipe.method["name"]][1]["student"])  # that of the first seed has a copy
    files = {  # the student is also written after each stage before the last that trains it
        arm: file_bytes(networks["student"]) * (1 + sum("student" in stage.networks for stage in stages[:-1]))
        for arm, (stages, networks, _) in trainings.items()
    }
    files |= dict.fromkeys(experiment.longer, files.get("alone", 0))
    checkpoints = (
        _bytes(nn.ModuleList(Step(one, planned[1]) for one in planned[0])) + _learning(stage, planned)[1]
        for planned in trainings.values()
        for stage in planned[0]
    )
    teachers = len({teacher_of(recipe, seed) for seed in recipe.seeds})
    weights = student + sum(files[job.arm] for job in experiment.work)
    return Kept(weights, max(checkpoints), teachers * store.bytes if store else 0, str(folder), holds_epoch(folder))


def _verdicts(found: Collection[Note], allow: Collection[str]) -> Iterator[Verdict]:
    for check, holds in CHECKS.items():
        notes = [note for note in found if note.check == check]
        said: dict[Literal["refused", "warning", "skipped", "ok"], list[str]] = {
            "refused": [note.refusal for note in notes if note.refusal and check not in allow],
            "warning": [note.said for note in notes if not note.skipped],
            "skipped": [note.said for note in notes],
            "ok": [holds],
        }
        state = next(state for state, texts in said.items() if texts)
        yield Verdict(check, state, "; ".join(dict.fromkeys(said[state])))
