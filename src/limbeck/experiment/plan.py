"""A method's stages for given networks, after a dry run that finds what is wrong before any training."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Method, Networks, Setup, Stage, Tap, from_teacher
from limbeck.data import Data
from limbeck.experiment.workspace import Training, example_batch
from limbeck.methods.shared import rated
from limbeck.models import Ensemble
from limbeck.models.functions import GraphNetwork
from limbeck.outline import outline
from limbeck.schedules import after_warmup
from limbeck.taps import Taps, check, dry_run, evaluation_mode, layer_of, shapes
from limbeck.tasks import task_of
from limbeck.train.copies import deep_copy
from limbeck.train.freeze import check_learns
from limbeck.train.quantise import with_quantised
from limbeck.train.regime import PLAIN, Regime, check_regime


def plan(method: Method, networks: Networks, data: Data, training: Training) -> tuple[Stage, ...]:
    """The method's stages for these networks, after a dry run that has read every tap and evaluated every term.

    Raises:
        LimbeckError: a network does not run on the data, or its output is not one logit a class; a tap does not exist
            or has no one value; an option of the optimizer is out of range.
    """
    task = task_of(data)
    task.check_data(data)
    if len({id(network) for network in networks.values()}) < len(networks):
        raise LimbeckError(f"{' and '.join(networks)} are the same module: pass two modules")
    few = example_batch(data, soft=training.soft)
    for name, network in networks.items():
        try:
            shape = shapes({name: network}, [Tap(name)], few)[Tap(name)]
        except LimbeckError:
            raise
        except Exception as error:  # the network may be the user's, and raise anything
            graph = isinstance(network, GraphNetwork)
            raise LimbeckError(
                f"the {name} does not run on samples of shape {data.shape}: {type(error).__name__}: {error}. If it was "
                f"trained on another size or number of channels, describe them: in a recipe {name}: {{input: {{size: "
                f'224, channels: rgb}}}}, in Python {name}_input=limbeck.Input(size=224, channels="rgb")'
                + (". If its batch size is fixed, export it with a dynamic one" if graph else "")
            ) from error
        task.check_output(name, shape, data)
    teacher = networks.get("teacher")
    logits: tuple[Tap, ...] = (from_teacher(),)
    if isinstance(teacher, Ensemble) and teacher.of_distributions:
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
        classes=len(data.outputs),
        targets=data.train.without(training.exclude).targets,
        batch_size=training.batch_size,
        hard_loss=task.hard_loss,
        soft_loss=task.soft_loss,
        soft_targets=training.soft.reasons if training.soft is not None else (),
        teacher_logits=logits,
    )
    stages: tuple[Stage, ...] = method(setup)
    if not stages:
        raise LimbeckError("the method returns no stages, so nothing would be trained")
    _evaluate_once(stages, networks, few)
    if training.regime.quantise is not None:
        stages = with_quantised(stages, networks, training.regime.quantise)
    if training.regime != PLAIN:
        stages = _with_regime(stages, networks, training.regime)
    for stage in stages:
        try:
            stage.optimizer([nn.Parameter(torch.zeros(1))])
        except ValueError as error:
            raise LimbeckError(f"the optimizer of stage {stage.name!r} cannot be built: {error}") from error
    return stages


def _with_regime(stages: Sequence[Stage], networks: Networks, regime: Regime) -> tuple[Stage, ...]:
    """Return the stages with the regime's warm-up and its factors on the learning rates of layers.

    Raises:
        LimbeckError: the regime does not fit the stages.
    """
    check_regime(regime, stages, networks)
    factors: dict[nn.Parameter, float] = {}
    for layer in sorted(regime.rates, key=len):  # an inner layer comes after the layers around it
        factors |= dict.fromkeys(layer_of(networks["student"], layer).parameters(), regime.rates[layer])
    return tuple(
        replace(
            stage,
            optimizer=rated(stage.optimizer, factors),
            schedule=after_warmup(stage.schedule, regime.warmup / stage.epochs) if regime.warmup else stage.schedule,
        )
        for stage in stages
    )


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
            raise LimbeckError(f"the term {name!r} returns a tensor of shape {tuple(size)}: a loss must be a scalar")
        known = {id(parameter) for network in networks.values() for parameter in network.parameters()}
        known |= {id(parameter) for parameter in (loss.parameters() if isinstance(loss, nn.Module) else ())}
        if any(id(leaf) not in known for leaf in _leaves(value)):
            raise LimbeckError(
                f"the term {name!r} uses parameters that its loss does not own, so they would be neither trained nor "
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
