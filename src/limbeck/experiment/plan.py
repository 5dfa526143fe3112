"""One network's training and its figures: what `limbeck.experiment.run` and `limbeck.distill` share."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import (
    Batch,
    LimbeckError,
    MakeOptimizer,
    Method,
    Networks,
    Schedule,
    Setup,
    Stage,
    Tap,
    from_teacher,
)
from limbeck.data import Augment, Batches, Data, Split, normalise
from limbeck.evaluate import Latency, file_bytes, latency, macs, metrics, parameters, predict
from limbeck.models import Ensemble
from limbeck.outline import outline
from limbeck.taps import Taps, check, dry_run, evaluation_mode, layer_of, shapes
from limbeck.train.copies import deep_copy
from limbeck.train.engine import Engine
from limbeck.train.freeze import check_learns

EVALUATION_BATCH = 500
NO_AUGMENTATION = Augment()


@dataclass(frozen=True)
class Training:
    """How a network is trained; ``exclude`` holds the classes left out of its training set.

    With ``views`` the epochs take turns over so many augmented views of each sample, which are those of ``view_seed``.

    Raises:
        LimbeckError: the epochs or the batch size are not a whole number of at least 1.
    """

    epochs: int
    batch_size: int
    optimizer: MakeOptimizer
    schedule: Schedule
    augment: Augment = NO_AUGMENTATION
    exclude: tuple[int, ...] = ()
    views: int | None = None
    view_seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if not isinstance(value, int) or value < 1:
                raise LimbeckError(f"{name} is {value!r}: allowed are whole numbers from 1")


def plan(method: Method, networks: Networks, data: Data, training: Training) -> tuple[Stage, ...]:
    """The method's stages for these networks, after a dry run that has read every tap and evaluated every term.

    Raises:
        LimbeckError: a network does not run on the data, or its output is not one logit a class; a tap does not exist
            or has no one value; an option of the optimizer is out of range.
    """
    if len(data.classes) < 2:
        raise LimbeckError(f"the data has {len(data.classes)} class, so there is nothing to learn: it takes 2 or more")
    if len({id(network) for network in networks.values()}) < len(networks):
        raise LimbeckError(f"{' and '.join(networks)} are one and the same module: give each its own")
    few = probe(data)
    for name, network in networks.items():
        try:
            shape = shapes({name: network}, [Tap(name)], few)[Tap(name)]
        except LimbeckError:
            raise
        except Exception as error:  # the network may be the user's, and raise anything
            raise LimbeckError(
                f"the {name} does not run on samples of shape {data.shape}: {type(error).__name__}: {error}"
            ) from error
        if shape != (len(data.classes),):
            raise LimbeckError(f"the {name} gives {shape} a sample, but the data has {len(data.classes)} classes")
    teacher = networks.get("teacher")
    logits: tuple[Tap, ...] = (from_teacher(),)
    if isinstance(teacher, Ensemble) and teacher.mean == "arithmetic":
        logits = tuple(from_teacher(f"members.{index}") for index in range(len(teacher.members)))
    setup = Setup(
        epochs=training.epochs,
        optimizer=training.optimizer,
        schedule=training.schedule,
        shape=functools.cache(lambda tap: shapes(networks, [tap], few)[tap]),
        module=lambda source, layer: _module(networks, source, layer),
        below=lambda tap: _below(networks, tap, few),
        outline=functools.cache(lambda source: outline(source, networks[source], few)),
        networks=tuple(networks),
        classes=len(data.classes),
        targets=data.train.without(training.exclude).targets,
        batch_size=training.batch_size,
        teacher_logits=logits,
    )
    stages: tuple[Stage, ...] = method(setup)
    if not stages:
        raise LimbeckError("the method gives no stages, so nothing would be trained")
    _evaluate_once(stages, networks, few)
    for stage in stages:
        try:
            stage.optimizer([nn.Parameter(torch.zeros(1))])
        except ValueError as error:
            raise LimbeckError(f"the optimizer of stage {stage.name!r} cannot be built: {error}") from error
    return stages


def training_batches(data: Data, training: Training, *, seed: int, engine: Engine) -> Batches:
    """The training set in the order and the augmented views that the seed gives."""
    return Batches(
        data.train.without(training.exclude),
        batch_size=training.batch_size,
        seed=seed,
        mean=data.mean,
        std=data.std,
        augment=training.augment,
        views=training.views,
        view_seed=training.view_seed,
        device=engine.device,
    )


def logits_of(network: nn.Module, split: Split, data: Data, engine: Engine, *, name: str = "network") -> Tensor:
    """The logits (N, K) on a split of what errors call ``name``, in 32 bits, in eval mode, without augmentation."""
    batches = Batches(
        split,
        batch_size=EVALUATION_BATCH,
        seed=0,
        mean=data.mean,
        std=data.std,
        shuffle=False,
        device=engine.device,
    )
    return predict(engine.place(network), batches(0), name=name)


def measure(
    network: nn.Module, data: Data, engine: Engine, *, teacher: Tensor | None = None, name: str = "network"
) -> dict[str, Any]:
    """A trained network's figures: quality on the test split (and on validation where there is one), and cost.

    Args:
        network: the trained network.
        data: the splits; the test split is read to evaluate trained networks, never to train or select.
        engine: the device to run on.
        teacher: the teacher's logits on the test split, for agreement and KL.
        name: what errors call the network.
    """
    splits = {"test": data.test} | ({"validation": data.validation} if len(data.validation) else {})
    figures: dict[str, Any] = {}
    for which, split in splits.items():
        logits, guide = logits_of(network, split, data, engine, name=name), teacher if which == "test" else None
        known: Any = {"name": name, "split": which, "files": split.names}
        figures[which] = metrics(logits, split.targets, teacher_logits=guide, **known)
    figures["parameters"] = parameters(network)
    figures["macs"] = macs(network, data.shape)
    figures["file_bytes"] = file_bytes(network)
    return figures


def time_together(networks: Networks, data: Data, runs: int) -> dict[str, dict[str, Any]]:
    """Batch-1 latency of several networks, interleaved so that a slow phase of the machine hits all alike."""
    return {name: _times(found) for name, found in latency(networks, data.shape, runs=runs).items()}


def _times(found: Latency | None) -> dict[str, Any]:
    """None of a network that cannot take one sample."""
    return {
        "latency_ms": found and found.median_ms,
        "latency_p95_ms": found and found.p95_ms,
        "latency_disturbed": found and found.disturbed,
    }


def _module(networks: Networks, source: str, layer: str) -> nn.Module:
    check(networks, Tap(source, layer))
    return layer_of(networks[source], layer)


def _below(networks: Networks, tap: Tap, probe: Batch) -> tuple[nn.Parameter, ...]:
    network = networks[tap.source]
    check_learns(tap.source, network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        return ()
    probe = replace(probe, inputs=probe.inputs.to(parameters[0].device))
    tapped = Taps(networks, [tap], learns=[tap.source])
    with evaluation_mode([network]), torch.enable_grad(), tapped as taps:
        value = taps.read(probe)[tap]
        found = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
    return tuple(one for one, gradient in zip(parameters, found, strict=True) if gradient is not None)


def _evaluate_once(stages: Sequence[Stage], networks: Networks, probe: Batch) -> None:
    """Evaluate every term once, on copies of the losses that have state."""
    terms = [(name, term) for stage in stages for name, term in stage.terms.items()]
    values = dry_run(networks, {tap for _, term in terms for tap in term.reads}, probe)
    for name, term in terms:
        reads = [values[tap].cpu() for tap in term.reads]
        loss = deep_copy(term.loss, {"loss": term.loss}).cpu() if isinstance(term.loss, nn.Module) else term.loss
        try:
            with torch.enable_grad():
                value = loss(*reads)
                size = value.shape
        except Exception as error:  # the loss may be the user's, and raise anything
            listed = ", ".join(f"{tap} {tuple(value.shape)}" for tap, value in zip(term.reads, reads, strict=True))
            raise LimbeckError(f"the term {name!r} cannot read {listed}: {type(error).__name__}: {error}") from error
        if size:
            raise LimbeckError(f"the term {name!r} gives a tensor of shape {tuple(size)}: a loss is a scalar")
        known = {id(parameter) for network in networks.values() for parameter in network.parameters()}
        known |= {id(parameter) for parameter in (loss.parameters() if isinstance(loss, nn.Module) else ())}
        if any(id(leaf) not in known for leaf in _leaves(value)):
            raise LimbeckError(
                f"the term {name!r} uses parameters that its loss does not own, so they would not learn and not be "
                "saved: make the loss an nn.Module that holds them, such as limbeck.connectors.Through(connector, loss)"
            )


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The parameters in a tensor's graph."""
    ahead, seen = [value.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # autograd's nodes of parameters have it, and there is no public class of them
            yield node.variable
        ahead += [following for following, _ in node.next_functions]


def probe(data: Data) -> Batch:
    """The first one or two training samples, to try networks on."""
    few = torch.arange(min(2, len(data.train)))
    return Batch(normalise(data.train.inputs[few], data.mean, data.std), data.train.targets[few], few, 0)


def label_indices(labels: Sequence[int | str], classes: Sequence[str]) -> tuple[int, ...]:
    """Class names or indices to indices.

    Raises:
        LimbeckError: there is no such class.
    """
    for label in labels:
        if type(label) is bool or (label not in classes and label not in range(len(classes))):
            raise LimbeckError(
                f"there is no class {label!r}: allowed are 0 to {len(classes) - 1}, or {', '.join(classes)}"
            )
    return tuple(label if isinstance(label, int) else classes.index(label) for label in labels)
