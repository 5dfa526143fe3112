"""FitNets: a hint stage, then distillation."""

import math
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.connectors import AsMap, Maxout, Through, as_map, map_shape, valid_conv
from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Sweep, Tap, Term, tap
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import kd
from limbeck.methods.reading import maps
from limbeck.methods.shared import check_at_least, rated, stage_epochs
from limbeck.schedules import linear

PAPER = Paper("Romero, Ballas, Kahou et al.", "FitNets: Hints for Thin Deep Nets", 2015, "1412.6550")

Average = Literal["batch", "code", "elements"]
Regressor = Literal["conv", "full", "upsample"]
Activation = Literal["relu", "maxout", "none"]
Hint = Literal["teacher", "sections", "labels"]

_MOST_WEIGHTS = 2**25  # of a regressor that limbeck chooses


def hint_loss(student: Tensor, teacher: Tensor, *, average: Average = "batch") -> Tensor:
    """1/2 ||u_h - r(v_g)||^2 (Eq. 3). No gradient flows to the teacher.

    Args:
        student: r(v_g), the output of the guided layer after the regressor, (N, ...).
        teacher: u_h, the hint, of the same shape, or tokens or a vector that `limbeck.connectors.as_map` brings to it.
        average: "batch" sums over the hint and averages over N, as in the formula. "code" sums over one spatial
            dimension and averages over all others, as in the authors' code (adri-romsor/FitNets, costs/HintCost.py):
            the formula divided by C * W. "elements" is the mean of the squares without the 1/2, as in other toolkits.
    """
    teacher = teacher if teacher.shape == student.shape else as_map(teacher)
    squares = (student - teacher.detach()).square()
    if average == "elements":
        return squares.mean()
    half = squares.flatten(1).sum(dim=1).mean() / 2
    return half / (teacher.shape[1] * teacher.shape[-1]) if average == "code" and teacher.dim() == 4 else half


def regressor(
    source: tuple[int, ...],
    target: tuple[int, ...],
    *,
    kind: Regressor = "conv",
    activation: Activation = "relu",
    pieces: int = 2,
) -> nn.Module:
    """r: maps the guided layer's output to the hint's shape and applies the hint's non-linearity.

    Args:
        source: shape of the guided layer's output, (C, H, W), (L, D) for tokens, or (D,).
        target: shape of the hint.
        kind: "conv" is a convolution without padding of size k = N_g - N_h + 1 for maps, and a linear layer for tokens
            and vectors. "full" is fully connected. "upsample" enlarges the map bilinearly to the hint's size and
            applies a 1x1 convolution.
        activation: "relu", "maxout" with ``pieces``, or "none".
        pieces: linear pieces of a maxout unit.

    Raises:
        LimbeckError: the kind is "conv" and the hint is larger than the guided map; the shapes are of different kinds.
    """
    count = pieces if activation == "maxout" else 1
    if activation == "maxout" and pieces < 2:
        raise LimbeckError(f"pieces is {pieces}: a maxout unit has at least 2")
    after: nn.Module = {"relu": nn.ReLU(), "maxout": Maxout(count), "none": nn.Identity()}[activation]
    if kind == "full":
        full = nn.Linear(math.prod(source), math.prod(target) * count)
        return nn.Sequential(nn.Flatten(), full, after, nn.Unflatten(1, target))
    if len(source) != len(target) or (len(source) == 2 and source[0] != target[0]):
        raise LimbeckError(
            f"the guided layer gives {source} and the hint is {target}: set regressor: auto or full, or name other "
            "layers"
        )
    if len(source) < 3:
        if len(source) == 2 and activation == "maxout":
            raise LimbeckError("maxout is for maps and vectors, and this hint is tokens: set activation: relu or none")
        return nn.Sequential(nn.Linear(source[-1], target[-1] * count), after)
    if kind == "upsample":
        resize = nn.Upsample(size=target[1:], mode="bilinear")
        return nn.Sequential(resize, nn.Conv2d(source[0], target[0] * count, 1), after)
    if source[1] < target[1] or source[2] < target[2]:
        raise LimbeckError(
            f"the hint map, {target[1]}x{target[2]}, is larger than the guided map, {source[1]}x{source[2]}, and a "
            "convolution without padding cannot enlarge it: set regressor: auto or upsample, or choose a later hint or "
            "an earlier guided layer"
        )
    return nn.Sequential(valid_conv(source, target, pieces=count), after)


class Fit(NamedTuple):
    """The regressor that "auto" selects."""

    kind: Regressor
    source: tuple[int, ...]  # its input shape: that of the guided layer's output, or of that tensor taken as a map
    target: tuple[int, ...]  # the same for the hint
    notes: tuple[str, ...] = ()  # shown before training


def fitting(source: tuple[int, ...], target: tuple[int, ...]) -> Fit:
    """The regressor for "auto": "conv" where possible, as published, otherwise "upsample", otherwise "full".

    Tokens that are compared with maps, vectors or a different number of tokens are taken as maps
    (`limbeck.connectors`), and so is a vector that is the hint of a map.

    Args:
        source: shape of the guided layer's output, (C, H, W), (L, D) or (D,).
        target: shape of the hint.

    Raises:
        LimbeckError: the regressor is not the published one and would have more than 2**25 weights.
    """
    what = f"fitnets: the guided layer gives {source} and the hint is {target}"
    alike = len(source) == len(target) and (len(source) != 2 or source[0] == target[0])
    if alike and len(source) < 3:
        return Fit("conv", source, target)
    guided, hint = map_shape(source), map_shape(target)
    if guided is None or hint is None or (len(source) == 1 and not alike):
        check_weights(math.prod(source) * math.prod(target), what)
        return Fit("full", source, target, (f"{what}: the regressor is fully connected (regressor: full)",))
    larger = guided[1] < hint[1] or guided[2] < hint[2]
    if not alike:
        places = 1 if larger else (guided[1] - hint[1] + 1) * (guided[2] - hint[2] + 1)
        check_weights(guided[0] * hint[0] * places, what)
        what += f", which are compared as maps {guided} and {hint}"
    if larger:
        note = f"{what}: the regressor enlarges the guided map bilinearly (regressor: upsample)"
        return Fit("upsample", guided, hint, (note,))
    return Fit("conv", guided, hint, () if alike else (what,))


def check_weights(count: int, what: str) -> None:
    """Raise LimbeckError if a regressor that limbeck chooses would have more than 2**25 weights."""
    if count > _MOST_WEIGHTS:
        raise LimbeckError(
            f"{what}: a regressor from one to the other would have {count:,} weights; name a guided_layer and a "
            "hint_layer of fewer elements"
        )


def annealed(start: float, end: float, *, begin_epoch: int, end_epoch: int, epochs: int) -> Schedule:
    """The weight lambda of the authors' code (extensions/TeacherDecayOverEpoch.py), which changes once per epoch.

    It is ``start`` before ``begin_epoch``, then ``start - step * (epoch - begin_epoch + 1)`` with
    ``step = (start - end) / (end_epoch - begin_epoch + 1)``, and ``end`` from ``end_epoch`` on. It is never below 0.

    Raises:
        LimbeckError: ``begin_epoch``, the option ``anneal_from``, is negative or not below ``end_epoch``.
    """
    if not 0 <= begin_epoch < end_epoch:
        raise LimbeckError(f"anneal_from is {begin_epoch} and anneal_until {end_epoch}: anneal_from must be smaller")
    step = (start - end) / (end_epoch - begin_epoch + 1)

    def value(progress: float) -> float:
        epoch = math.floor(progress * epochs + 1e-6)
        if epoch < begin_epoch:
            return start
        return max(end if epoch >= end_epoch else start - step * (epoch - begin_epoch + 1), 0.0)

    return value


def fitnets(
    setup: Setup,
    *,
    hint_layer: str = "",
    guided_layer: str = "",
    hint: Hint = "teacher",
    regressor: Literal["auto", "conv", "full", "upsample"] = "auto",
    activation: Literal["auto", "relu", "maxout", "none"] = "auto",
    pieces: int = 2,
    average: Average = "batch",
    hint_epochs: int | None = None,
    hint_rate: float = 1.0,
    guided_rate: float = 1.0,
    conv_rate: float = 1.0,
    temperature: float = 3.0,
    hard: float = 1.0,
    lambda_start: float = 4.0,
    lambda_end: float = 1.0,
    anneal: Literal["linear", "code"] = "linear",
    anneal_from: int = 5,
    anneal_until: int = 400,
    init: Literal["paper", "modern"] = "modern",
) -> tuple[Stage, ...]:
    """Hints: the student's lower layers first regress a middle layer of the teacher; then the whole student is trained.

    Stage ``hint`` trains the guided layers and the regressor *together* (Algorithm 1); the regressor is then dropped.
    Stage ``kd`` trains the whole student with H(y, P_S) + lambda * H(P_T, P_S) at temperature tau, without tau^2
    (Eq. 2), where lambda is annealed. The authors' code softens the teacher only; here both networks are softened, as
    in Eq. 1. Some toolkits call one stage with both terms FitNet: that is `fitnets_one_stage`.

    Args:
        setup: epochs, optimizer and schedule; the paper trains with RMSProp.
        hint_layer: the teacher's layer that gives the hint, u_h; the default is the output of its middle section. For
            the networks of the paper, name its choice: ``layer2`` of the maxout teachers, and as guided layer
            ``layer6``, ``layer6``, ``layer8`` or ``layer11`` of FitNets 1 to 4, which are after pooling.
        guided_layer: the student's guided layer, v_g; the default is the output of its middle section.
        hint: "teacher" is one hint, as published. "sections" is a hint for each section, its last map, with a
            regressor each. Sections are paired from the deepest, and those without a partner are left out; the losses
            are added up, as in the comparison of Yim et al. (2017). "labels" trains the guided layers with the labels
            in the first stage, by a linear classifier on the guided layer. It is for comparison: the authors report
            that it fails. With "labels", regressor, activation, pieces and average have no effect.
        regressor: "conv", the published one, is a convolution without padding. "upsample" first enlarges the guided map
            bilinearly. "full" is fully connected. "auto" is "conv" where possible, "upsample" where the hint map is
            larger than the guided map, and "full" from vectors to maps; tokens that are compared with maps are taken
            as the map of their patches. A note before training says if "auto" differs from "conv" on maps.
        activation: the non-linearity of the regressor, which is that of the hint layer: "relu", "maxout" or "none".
            "auto" is "maxout" with the pieces of the layer if it has a maxout, "none" if the hint is not the output of
            an activation (the maps of a wide ResNet, a transformer's tokens), otherwise "relu".
        pieces: pieces of "maxout" where "auto" does not find them.
        average: mean of the hint's squared distance: "batch" as published, "code" as in the authors' code, "elements".
        hint_epochs: epochs of the first stage; the default is the recipe's. 0 skips the stage.
        hint_rate: factor on the learning rate in the first stage.
        guided_rate: factor on the learning rate of the guided layers in the second stage (the code's ``lr_scale``).
        conv_rate: factor on the learning rate of the student's convolutions in both stages; the authors use 0.05.
        temperature: tau.
        hard: weight of the cross-entropy with the labels; 1 as published.
        lambda_start: lambda at the start of the second stage.
        lambda_end: lambda at the end of the second stage.
        anneal: "linear" over the stage, as in the paper; "code" in steps of an epoch from ``anneal_from`` to
            ``anneal_until``.
        anneal_from: the epoch in which "code" starts to lower lambda; the authors use 5.
        anneal_until: the epoch from which lambda is ``lambda_end``; the authors use 400 on CIFAR-10 and 150 on MNIST.
        init: "paper" draws all parameters of the student from U(-0.005, 0.005) and those of the regressor from
            U(-0.05, 0.05) before training; without BatchNorm, deep thin networks then only learn with hints. "modern"
            leaves the networks as they were built.

    Raises:
        LimbeckError: the regressor cannot map the guided layer's shape to the hint's, or would have more than 2**25
            weights; an option is out of range.
    """
    hinting = stage_epochs(setup, "hint_epochs", hint_epochs, least=0)
    numbers = {"hint_rate": hint_rate, "guided_rate": guided_rate, "conv_rate": conv_rate}
    numbers |= {"lambda_start": lambda_start, "lambda_end": lambda_end}
    for name, number in numbers.items():
        check_at_least(0, name, number)
    pairs = _hints(setup, hint, guided_layer, hint_layer)
    guided = [*pairs.values()][-1][0]  # the deepest
    made = {one: _loss(setup, *pair, regressor, activation, pieces, average) for one, pair in pairs.items()}
    soft = (
        linear(start=lambda_start, end=lambda_end)
        if anneal == "linear"
        else annealed(lambda_start, lambda_end, begin_epoch=anneal_from, end_epoch=anneal_until, epochs=setup.epochs)
    )
    convolutions = _convolutions(setup.module("student", ""), conv_rate)
    first = Stage(
        "hint",
        {name: Term(loss, pairs[name]) for name, (loss, _) in made.items()},
        hinting,
        rated(setup.optimizer, convolutions),
        lambda progress: hint_rate * setup.schedule(progress),
        notes=tuple(note for _, notes in made.values() for note in notes),
    )
    below = setup.below(guided) if guided_rate != 1 else ()
    slower = {one: guided_rate * convolutions.get(one, 1.0) for one in below}
    setup = replace(setup, optimizer=rated(setup.optimizer, convolutions | slower))
    (task,) = kd(setup, temperature=temperature, hard=hard, soft=soft, temperature_squared=False)
    stages = (first, task) if first.epochs else (task,)
    if init == "paper":
        for loss, _ in made.values():
            _uniform(loss, 0.05)
        stages = (replace(stages[0], prepare=partial(_restart, setup.module("student", ""))), *stages[1:])
    return stages


def _hints(setup: Setup, hint: Hint, guided_layer: str, hint_layer: str) -> dict[str, tuple[Tap, Tap]]:
    """The pairs of guided layer and hint, or targets, by the names of their terms, shallow to deep."""
    if hint == "sections" and (guided_layer or hint_layer):
        raise LimbeckError(
            "hint: sections chooses the layers itself: leave out hint_layer and guided_layer, or write hint: teacher"
        )
    if hint == "sections":
        return {f"hint{number}": pair for number, pair in enumerate(maps(setup, method="hint: sections"), start=1)}
    if hint == "labels" and hint_layer:
        raise LimbeckError("hint: labels reads no layer of the teacher: leave out hint_layer, or write hint: teacher")
    if hint == "labels":
        return {"hint": (_guided(setup, guided_layer), TARGETS)}
    return {"hint": guided_and_hint(setup, guided_layer, hint_layer)}


def guided_and_hint(setup: Setup, guided_layer: str, hint_layer: str) -> tuple[Tap, Tap]:
    """The taps of the guided layer and of the hint: the named layers, or by default the middle of each network."""
    return _guided(setup, guided_layer), tap("teacher", hint_layer) if hint_layer else middle(setup, "teacher")


def _guided(setup: Setup, layer: str) -> Tap:
    return tap("student", layer) if layer else middle(setup, "student")


def middle(setup: Setup, network: str) -> Tap:
    """The output of the middle section of a network, or of its middle token block or hidden layer.

    Raises:
        LimbeckError: the network has none of them.
    """
    outline = setup.outline(network)
    places = [section.last for section in outline.sections] or list(outline.hidden)
    if not places:
        option = "guided_layer" if network == "student" else "hint_layer"
        raise LimbeckError(f"no middle layer was found in the {network}: name {option}")
    return places[(len(places) - 1) // 2]


def _loss(
    setup: Setup,
    guided: Tap,
    hint: Tap,
    kind: Literal["auto", "conv", "full", "upsample"],
    activation: Literal["auto", "relu", "maxout", "none"],
    pieces: int,
    average: Average,
) -> tuple[Through, tuple[str, ...]]:
    """The loss of a guided layer, through a regressor to its hint or through a classifier to targets, and notes."""
    if hint == TARGETS:
        return Through(_classifier(setup, guided), hard_loss), ()
    own, pieces = (activation, pieces) if activation != "auto" else _own_activation(setup, hint, pieces)
    shapes = setup.shape(guided), setup.shape(hint)
    fit = fitting(*shapes) if kind == "auto" else Fit(kind, *shapes)
    connector = regressor(fit.source, fit.target, kind=fit.kind, activation=own, pieces=pieces)
    connector = connector if fit.source == shapes[0] else nn.Sequential(AsMap(), connector)
    return Through(connector, partial(hint_loss, average=average)), fit.notes


def _classifier(setup: Setup, guided: Tap) -> nn.Module:
    """A linear classifier on the guided layer.

    Raises:
        LimbeckError: the task has another loss than cross-entropy, or the classifier would have more than 2**25
            weights.
    """
    if setup.hard_loss is not None:
        raise LimbeckError(
            "hint: labels needs the cross-entropy of classes, and the task or task.hard_loss has another loss: "
            "write hint: teacher"
        )
    shape = setup.shape(guided)
    check_weights(math.prod(shape) * setup.classes, f"fitnets: hint: labels, and the guided layer gives {shape}")
    return regressor(shape, (setup.classes,), kind="full", activation="none")


def _own_activation(setup: Setup, hint: Tap, pieces: int) -> tuple[Activation, int]:
    """The non-linearity of the hint layer and its pieces of maxout."""
    layers = setup.module("teacher", hint.layer).modules()
    maxout = next((layer.pieces for layer in layers if isinstance(layer, Maxout)), None)
    if maxout is not None:
        return "maxout", maxout
    try:
        outline = setup.outline("teacher")
    except LimbeckError:  # without a classifier there is no outline
        return "relu", pieces
    bare = [section.last for section in outline.sections if not section.activation]
    tokens = [one for one in outline.hidden if len(setup.shape(one)) == 2]
    return "none" if hint in (*bare, *tokens) else "relu", pieces


def _convolutions(student: nn.Module, factor: float) -> dict[nn.Parameter, float]:
    layers = [module for module in student.modules() if isinstance(module, nn.Conv2d)]
    return {parameter: factor for layer in layers for parameter in layer.parameters()}


@torch.no_grad()
def _uniform(module: nn.Module, bound: float) -> None:
    for parameter in module.parameters():
        parameter.uniform_(-bound, bound)


def _restart(student: nn.Module, sweep: Sweep) -> None:
    if sweep.epoch == 0:
        _uniform(student, 0.005)


ABOUT = About(fitnets, PAPER, is_system=True, tasks=EVERY_TASK)
