"""FitNets: a hint stage, then distillation."""

import math
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.connectors import AsMap, Maxout, Through, as_map, map_shape, valid_conv
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Sweep, Tap, Term, tap
from limbeck.methods.about import About, Paper
from limbeck.methods.kd import kd
from limbeck.methods.shared import rated

Average = Literal["batch", "code", "elements"]
Regressor = Literal["conv", "full", "upsample"]
Activation = Literal["relu", "maxout", "none"]

_MOST_WEIGHTS = 2**25  # of a regressor that nobody asked for


def hint_loss(student: Tensor, teacher: Tensor, *, average: Average = "batch") -> Tensor:
    """1/2 ||u_h - r(v_g)||^2 (Eq. 3).

    Args:
        student: r(v_g), the guided layer's output after the regressor, (N, ...).
        teacher: u_h, the hint, of the same shape.
        average: ``batch``: summed over the hint, mean over N, as the formula. ``code``: the authors' code
            (adri-romsor/FitNets, costs/HintCost.py) sums over one spatial side only and averages over all else, which
            is the formula over C * W. ``elements``: the mean of the squares without 1/2, as other toolkits have it.
    """
    squares = (student - teacher.detach()).square()
    if average == "elements":
        return squares.mean()
    half = squares.flatten(1).sum(dim=1).mean() / 2
    return half / (teacher.shape[1] * teacher.shape[-1]) if average == "code" and teacher.dim() == 4 else half


def hint_map_loss(student: Tensor, teacher: Tensor, *, average: Average = "batch") -> Tensor:
    """`hint_loss` of a hint that is tokens or a vector, with the hint as a map; see `limbeck.connectors.as_map`."""
    return hint_loss(student, as_map(teacher), average=average)


def regressor(
    source: tuple[int, ...],
    target: tuple[int, ...],
    *,
    kind: Regressor = "conv",
    activation: Activation = "relu",
    pieces: int = 2,
) -> nn.Module:
    """r: from the guided layer's space to the hint's, with the hint's own non-linearity.

    Args:
        source: the guided layer's shape, (C, H, W), (L, D) tokens or (D,).
        target: the hint's.
        kind: ``conv``: for maps a convolution without padding, k = N_g - N_h + 1; of tokens and vectors a linear map.
            ``full``: fully connected, from all elements to all elements. ``upsample``: bilinear to the hint's size,
            then a 1x1 convolution.
        activation: ``relu``, ``maxout`` of ``pieces`` or ``none``.
        pieces: linear pieces of a maxout unit.

    Raises:
        LimbeckError: the hint is larger than the guided map and the kind is ``conv``; the shapes are of two kinds.
    """
    count = pieces if activation == "maxout" else 1
    if activation == "maxout" and pieces < 2:
        raise LimbeckError(f"pieces is {pieces}: a maxout unit has 2 or more")
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
            raise LimbeckError("maxout is for maps and vectors, this hint is tokens: set activation: relu or none")
        return nn.Sequential(nn.Linear(source[-1], target[-1] * count), after)
    if kind == "upsample":
        resize = nn.Upsample(size=target[1:], mode="bilinear")
        return nn.Sequential(resize, nn.Conv2d(source[0], target[0] * count, 1), after)
    refuse_larger(source, target)
    return nn.Sequential(valid_conv(source, target, pieces=count), after)


class Fit(NamedTuple):
    """The regressor that ``auto`` stands for."""

    kind: Regressor
    source: tuple[int, ...]  # what it is made for: the guided layer's shape, or that of its tensor taken as a map
    target: tuple[int, ...]  # the hint's, likewise
    notes: tuple[str, ...] = ()  # what to say of it


def fitting(source: tuple[int, ...], target: tuple[int, ...]) -> Fit:
    """``conv`` wherever that is possible, as published; else ``upsample``, else ``full``.

    Tokens beside maps, beside vectors or beside tokens of another number are taken as maps (`limbeck.connectors`), and
    so is a vector as the hint of a map.

    Args:
        source: the guided layer's shape, (C, H, W), (L, D) or (D,).
        target: the hint's.

    Raises:
        LimbeckError: such a regressor, where it is not the published one, would have more than 2**25 weights.
    """
    what = f"fitnets: the guided layer gives {source} and the hint is {target}"
    alike = len(source) == len(target) and (len(source) != 2 or source[0] == target[0])
    if alike and len(source) < 3:
        return Fit("conv", source, target)
    ours, theirs = map_shape(source), map_shape(target)
    if ours is None or theirs is None or (len(source) == 1 and not alike):
        check_weights(math.prod(source) * math.prod(target), what)
        return Fit("full", source, target, (f"{what}: the regressor is fully connected (regressor: full)",))
    larger = ours[1] < theirs[1] or ours[2] < theirs[2]
    if not alike:
        places = 1 if larger else (ours[1] - theirs[1] + 1) * (ours[2] - theirs[2] + 1)
        check_weights(ours[0] * theirs[0] * places, what)
        what += f", which are compared as maps {ours} and {theirs}"
    if larger:
        note = f"{what}: the regressor enlarges the guided map bilinearly (regressor: upsample)"
        return Fit("upsample", ours, theirs, (note,))
    return Fit("conv", ours, theirs, () if alike else (what,))


def check_weights(count: int, what: str) -> None:
    """Raise LimbeckError where a regressor that nobody asked for would be huge."""
    if count > _MOST_WEIGHTS:
        raise LimbeckError(
            f"{what}: a regressor from one to the other would have {count:,} weights; name a guided_layer and a "
            "hint_layer of fewer elements"
        )


def annealed(start: float, end: float, *, begin_epoch: int, end_epoch: int, epochs: int) -> Schedule:
    """The weight lambda as in the authors' code (extensions/TeacherDecayOverEpoch.py), which changes it once an epoch.

    ``start`` before ``begin_epoch``; then ``start - step * (epoch - begin_epoch + 1)`` with
    ``step = (start - end) / (end_epoch - begin_epoch + 1)``; ``end`` from ``end_epoch`` on; never below 0.
    """
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
    """Hints: first the student's lower layers regress a middle layer of the teacher, then the whole student learns.

    Stage ``hint`` trains the guided layers and the regressor *together* (Algorithm 1); the regressor is then dropped.
    Stage ``kd`` trains the whole student with H(y, P_S) + lambda * H(P_T, P_S) at temperature tau, without tau^2
    (Eq. 2), lambda annealed. The authors' code softens the teacher alone (by reading it); here both are softened, as
    Eq. 1 says. Toolkits that call one stage of both terms FitNet mean ``fitnets_one_stage``.

    Args:
        setup: epochs, optimizer and schedule; the paper trains with RMSProp.
        hint_layer: the teacher's hint, u_h; the default is what the middle of its sections gives. On the paper's own
            networks name its choice: ``layer2`` of the maxout teachers, and ``layer6``, ``layer6``, ``layer8`` or
            ``layer11`` of FitNets 1 to 4 as guided layer, which are after pooling.
        guided_layer: the student's guided layer, v_g; likewise.
        regressor: ``conv``, the published one, is a convolution without padding. ``upsample`` enlarges the guided map
            bilinearly first, ``full`` is fully connected. ``auto`` is ``conv`` wherever it is possible, ``upsample``
            where the hint map is larger than the guided map, and ``full`` from vectors to maps; tokens beside maps are
            taken as the map of their patches. Where it is not ``conv`` on maps the plan says so.
        activation: of the regressor, the hint layer's own: ``relu``, ``maxout`` or ``none``. ``auto`` is ``maxout``
            with the layer's own pieces where it has one, ``none`` for what no activation gives (the maps of a wide
            ResNet, a transformer's tokens), else ``relu``.
        pieces: of ``maxout``, where ``auto`` does not find them.
        average: of the hint's squared distance: ``batch`` as published, ``code`` as the authors' code, ``elements``.
        hint_epochs: epochs of the first stage; by default as many as the second's. 0 leaves it out.
        hint_rate: factor on the learning rate in the first stage.
        guided_rate: factor on the learning rate of the guided layers in the second stage (the code's ``lr_scale``).
        conv_rate: factor on the learning rate of the student's convolutions in both; 0.05 in the authors' settings.
        temperature: tau.
        hard: weight of the cross-entropy with the labels, 1 as published.
        lambda_start: lambda at the second stage's beginning.
        lambda_end: lambda at its end.
        anneal: ``linear`` over the stage, as the paper; ``code``, in steps of an epoch from ``anneal_from`` to
            ``anneal_until``.
        anneal_from: the epoch from which ``code`` lowers lambda; 5 in the authors' settings.
        anneal_until: the epoch from which it is ``lambda_end``; there 400 on CIFAR-10, 150 on MNIST.
        init: ``paper`` draws all parameters of the student from U(-0.005, 0.005) and the regressor's from
            U(-0.05, 0.05) before training; without BatchNorm, deep thin nets then learn by hints alone. ``modern``
            leaves the networks as they were built.

    Raises:
        LimbeckError: the regressor asked for cannot take the guided layer's shape to the hint's, or would be huge; a
            number is out of range.
    """
    numbers = {"hint_epochs": hint_epochs or 0, "hint_rate": hint_rate, "lambda_start": lambda_start}
    numbers |= {"lambda_end": lambda_end, "guided_rate": guided_rate, "conv_rate": conv_rate}
    if not all(number >= 0 for number in numbers.values()):
        listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise LimbeckError(f"got {listed}: none may be below 0")
    student, teacher = guided_and_hint(setup, guided_layer, hint_layer)
    own, pieces = (activation, pieces) if activation != "auto" else _own_activation(setup, teacher, pieces)
    shapes = setup.shape(student), setup.shape(teacher)
    fit = fitting(*shapes) if regressor == "auto" else Fit(regressor, *shapes)
    connector = _regressor(fit.source, fit.target, kind=fit.kind, activation=own, pieces=pieces)
    loss = partial(hint_loss if fit.target == shapes[1] else hint_map_loss, average=average)
    if anneal == "code" and not 0 <= anneal_from < anneal_until:
        raise LimbeckError(f"anneal_from is {anneal_from} and anneal_until {anneal_until}: the first must be before")
    if init == "paper":
        _uniform(connector, 0.05)
    soft = (
        (lambda progress: lambda_start + (lambda_end - lambda_start) * progress)
        if anneal == "linear"
        else annealed(lambda_start, lambda_end, begin_epoch=anneal_from, end_epoch=anneal_until, epochs=setup.epochs)
    )
    convolutions = _convolutions(setup.module("student", ""), conv_rate)
    hint = Stage(
        "hint",
        {"hint": Term(Through(_of(connector, shapes[0], fit.source), loss), (student, teacher))},
        setup.epochs if hint_epochs is None else hint_epochs,
        rated(setup.optimizer, convolutions),
        lambda progress: hint_rate * setup.schedule(progress),
        notes=fit.notes,
    )
    below = setup.below(student) if guided_rate != 1 else ()
    guided = {one: guided_rate * convolutions.get(one, 1.0) for one in below}
    setup = replace(setup, optimizer=rated(setup.optimizer, convolutions | guided))
    (task,) = kd(setup, temperature=temperature, hard=hard, soft=soft, temperature_squared=False)
    stages = (hint, task) if hint.epochs else (task,)
    if init == "modern":
        return stages
    first = replace(stages[0], prepare=partial(_restart, setup.module("student", "")))
    return (first, *stages[1:])


def guided_and_hint(setup: Setup, guided_layer: str, hint_layer: str) -> tuple[Tap, Tap]:
    """The student's and the teacher's middle layer, where none is named."""
    guided = tap("student", guided_layer) if guided_layer else middle(setup, "student")
    return guided, tap("teacher", hint_layer) if hint_layer else middle(setup, "teacher")


def middle(setup: Setup, network: str) -> Tap:
    """What the middle one of a network's sections gives, of its token blocks, or of its hidden layers.

    Raises:
        LimbeckError: it has none of them.
    """
    outline = setup.outline(network)
    places = [section.last for section in outline.sections] or list(outline.hidden)
    if not places:
        raise LimbeckError(f"the {network} has no middle layer that could be found: name hint_layer and guided_layer")
    return places[(len(places) - 1) // 2]


def _own_activation(setup: Setup, hint: Tap, pieces: int) -> tuple[Activation, int]:
    """The non-linearity of the hint and its pieces: maxout where the layer has one, none where nothing activates."""
    layers = setup.module("teacher", hint.layer).modules()
    maxout = next((layer.pieces for layer in layers if isinstance(layer, Maxout)), None)
    if maxout is not None:
        return "maxout", maxout
    try:
        outline = setup.outline("teacher")
    except LimbeckError:  # a teacher without a classifier has no default hint either
        return "relu", pieces
    bare = [section.last for section in outline.sections if not section.activation]
    tokens = [one for one in outline.hidden if len(setup.shape(one)) == 2]
    return "none" if hint in (*bare, *tokens) else "relu", pieces


_regressor = regressor  # the option of the same name hides it


def _of(connector: nn.Module, given: tuple[int, ...], made_for: tuple[int, ...]) -> nn.Module:
    """The connector, after the map of what is given where it is made for that."""
    return connector if given == made_for else nn.Sequential(AsMap(), connector)


def refuse_larger(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise LimbeckError where a convolution without padding would have to enlarge the guided map."""
    if source[1] < target[1] or source[2] < target[2]:
        raise LimbeckError(
            f"the hint map, {target[1]}x{target[2]}, is larger than the guided map, {source[1]}x{source[2]}, and a "
            "convolution without padding cannot enlarge: set regressor: auto or upsample, or choose a later hint or an "
            "earlier guided layer"
        )


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


ABOUT = About(
    fitnets,
    paper=Paper("Romero, Ballas, Kahou et al.", "FitNets: Hints for Thin Deep Nets", 2015, "1412.6550"),
    is_system=True,
)
