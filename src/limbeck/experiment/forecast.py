"""What a run will do, write and cost, and the results of its checks: what `limbeck plan` shows."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from torch import Tensor, nn

from limbeck.cache.encoding import parts_of
from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Tap, tap
from limbeck.data.targets import TaskName
from limbeck.evaluate import file_bytes, macs, parameters
from limbeck.experiment.arms import teacher_of
from limbeck.experiment.caching import cached, formats, teacher_taps
from limbeck.experiment.estimates import saved_bytes, seconds_of_step, tensors_a_weight
from limbeck.experiment.preflight import Planned
from limbeck.experiment.run import Experiment
from limbeck.experiment.runfiles import holds_epoch
from limbeck.experiment.terms import SAMPLES
from limbeck.experiment.verdicts import CHECKS, Note
from limbeck.experiment.workspace import Workspace, example_batch
from limbeck.models.inputs import bridge_of
from limbeck.outline import outline
from limbeck.recipe.blocks import Recipe
from limbeck.taps import shapes

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
        kept=_kept(experiment, made.trainings),
        seconds=_seconds(arms.values()),
        memory=max(_memory(experiment, planned) for planned in made.trainings.values()),
        verdicts=tuple(_verdicts(experiment.found, allow)),
        notes=tuple(note for note in experiment.notes if note not in shown),
    )


def _network(network: nn.Module, shape: tuple[int, ...]) -> NetworkForecast:
    bridge = bridge_of(network)
    size = " x ".join(map(str, bridge.own if bridge else shape))
    return NetworkForecast(parameters(network), macs(network, shape), str(bridge) if bridge else f"{size}, as the data")


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

    found = []
    for stage in stages:
        terms = {
            name: TermForecast(
                (term.weight(0.0), term.weight(1 - 1e-9)) if callable(term.weight) else (term.weight,),
                parameters(term.loss) if isinstance(term.loss, nn.Module) else 0,
                tuple(map(read, term.reads)),
            )
            for name, term in stage.terms.items()
        }
        seconds = seconds_of_step(stage, networks, batches, experiment.engine, stored)
        learns = tuple(name.replace("student", role, 1) for name in stage.learns)
        found.append(StageForecast(stage.name, stage.epochs, len(batches), learns, terms, seconds))
    return ArmForecast(sum(job.arm == arm for job in experiment.work), tuple(found))


def _reasons(recipe: Recipe | None, networks: Mapping[str, nn.Module], few: Batch) -> Mapping[Tap, str]:
    """Why a term reads a tap, for the taps that are not chosen by the method itself.

    Args:
        recipe: whose method may name layers; None for a training that has no such options.
        networks: of the training.
        few: a few samples.
    """
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


def _seconds(arms: Collection[ArmForecast]) -> float | None:
    stages = [(arm.trainings, stage) for arm in arms for stage in arm.stages]
    times = [stage.step_seconds for _, stage in stages]
    if None in times:
        return None
    return sum(
        count * stage.epochs * stage.steps * seconds
        for (count, stage), seconds in zip(stages, times, strict=True)
        if seconds is not None
    )


def _memory(experiment: Experiment, planned: Planned) -> int:
    """Bytes of the data, the networks with their gradients and optimizers, and the activations of a step."""
    stages, networks, training = planned
    workspace = Workspace(experiment.data, training, experiment.engine)
    data = experiment.data
    for network in networks.values():
        experiment.engine.place(network)
    held = [one.inputs for one in (data.train, data.validation, data.test) if isinstance(one.inputs, Tensor)]
    batch = workspace.spread(min(SAMPLES, training.batch_size, len(workspace.samples)))
    scale = training.batch_size / len(batch.index)
    steps = (
        4 * tensors_a_weight(stage) * _learning(stage, networks)
        + scale * saved_bytes(stage, networks, batch, experiment.engine)
        for stage in stages
    )
    return round(sum(one.nbytes for one in held) + sum(_bytes(network) for network in networks.values()) + max(steps))


def _learning(stage: Stage, networks: Mapping[str, nn.Module]) -> int:
    modules = [*(networks[name] for name in stage.networks), *stage.losses]
    return sum(one.numel() for module in modules for one in module.parameters() if one.requires_grad)


def _bytes(network: nn.Module) -> int:
    return sum(one.nbytes for one in (*network.parameters(), *network.buffers()))


def _kept(experiment: Experiment, trainings: Mapping[str, Planned]) -> Kept:
    recipe, data, folder = experiment.recipe, experiment.data, experiment.folder.path
    student = trainings[recipe.method["name"]][1]["student"]
    files = [file_bytes(trainings[job.arm][1]["student"]) for job in experiment.work]
    checkpoints = (
        _bytes(networks["student"]) + 4 * (tensors_a_weight(stage) - 1) * _learning(stage, networks)
        for stages, networks, _ in trainings.values()
        for stage in stages
    )
    store = 0
    stages, networks, training = trainings[recipe.method["name"]]
    if recipe.cache.use:
        taps, few = teacher_taps(stages), example_batch(data)
        forms, sizes = formats(recipe.cache, taps), shapes(networks, taps, few)
        row = sum(part.row_bytes for one in taps for part in parts_of(forms[one], sizes[one]))
        teachers = len({teacher_of(recipe, seed) for seed in recipe.seeds})
        store = teachers * row * (recipe.cache.views or 1) * len(data.train.without(training.exclude))
    weights = sum(files) + file_bytes(student)  # the student of the first seed has a copy
    return Kept(weights, max(checkpoints), store, str(folder), holds_epoch(folder))


def _verdicts(found: Collection[Note], allow: Collection[str]) -> Iterator[Verdict]:
    for check, holds in CHECKS.items():
        notes = [note for note in found if note.check == check]
        refusals = [note.refusal for note in notes if note.refusal and check not in allow]
        warnings = [note.said for note in notes if not note.skipped]
        if refusals:
            yield Verdict(check, "refused", "; ".join(refusals))
        elif warnings:
            yield Verdict(check, "warning", "; ".join(warnings))
        elif notes:
            yield Verdict(check, "skipped", "; ".join(note.said for note in notes))
        else:
            yield Verdict(check, "ok", holds)
