"""SRRL: the teacher's classifier gives the same output on the student's feature as on its own."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Schedule, Section, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.distributions import like, wide
from limbeck.methods.kd import soft_loss
from limbeck.methods.reading import last_map, logits
from limbeck.taps import replaced

Form = Literal["l2", "ce", "kl"]
Average = Literal["elements", "batch"]
Position = Literal["conv2", "conv3", "conv4"]

_PLACES: Mapping[Position, int] = {"conv2": 2, "conv3": 1, "conv4": 0}  # sections from the last


def feature_matching_loss(student: Tensor, teacher: Tensor, *, average: Average = "elements") -> Tensor:
    """||h_T - r(h_S)||^2 (Eq. 3).

    Args:
        student: r(h_S), the pooled feature after the connector, (N, C).
        teacher: h_T, (N, C).
        average: ``elements``, the mean over N and C, as in the authors' code; ``batch``, as the formula: the sum over
            C and the mean over N, which is C times as much.
    """
    squares = (student - teacher.detach()).square()
    return squares.mean() if average == "elements" else squares.sum(dim=1).mean()


def softmax_regression_loss(
    student: Tensor, teacher: Tensor, *, form: Form = "l2", temperature: float = 1.0, average: Average = "elements"
) -> Tensor:
    """What the teacher's classifier says of the student's feature, against what it says of the teacher's own.

    Args:
        student: W_T' r(h_S), logits (N, K).
        teacher: W_T' h_T, logits (N, K).
        form: ``l2``, the squared distance of the logits (Eq. 7, the loss that is used); ``ce``, the cross-entropy
            -p log q (Eq. 4); ``kl``, the same less the entropy of p. The last two are the mean over N.
        temperature: of ``ce`` and ``kl``; no T^2.
        average: of ``l2``; ``elements`` is the mean over N and K, as in the authors' code, ``batch`` K times as much.
    """
    target = teacher.detach()
    if form == "l2":
        return feature_matching_loss(student, target, average=average)
    if form == "kl":
        return soft_loss(student, target, temperature=temperature, temperature_squared=False)
    return like(F.cross_entropy(wide(student) / temperature, (wide(target) / temperature).softmax(dim=1)), student)


class Representation(nn.Module):
    """alpha * feature matching + beta * softmax regression, of one tensor of the student.

    Args:
        connector: r, of the student's map (N, C_S, H, W) or vector (N, C_S).
        above: the rest of the teacher: the connected tensor (pooled, where it is the teacher's last map) and the
            inputs, to logits.
        alpha: weight of the first.
        beta: weight of the second.
        form: see `softmax_regression_loss`, as ``temperature`` and ``average``.
        temperature: of the forms ``ce`` and ``kl``.
        average: over ``elements`` or the ``batch``.
    """

    def __init__(
        self,
        connector: nn.Module,
        above: nn.Module,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        form: Form = "l2",
        temperature: float = 1.0,
        average: Average = "elements",
    ) -> None:
        super().__init__()
        self.connector = connector
        self.above = above
        self._alpha, self._beta = alpha, beta
        self._matching = partial(feature_matching_loss, average=average)
        self._regression = partial(softmax_regression_loss, form=form, temperature=temperature, average=average)

    def forward(self, student: Tensor, teacher: Tensor, teacher_logits: Tensor, *inputs: Tensor) -> Tensor:
        """The loss, a scalar; ``inputs`` is the batch, where the layers above need it."""
        connected = self.connector(student)
        loss = self._alpha * self._matching(pooled(connected), pooled(teacher)) if self._alpha else 0.0
        if self._beta:
            loss = loss + self._beta * self._regression(self.above(connected, teacher, *inputs), teacher_logits)
        return loss  # type: ignore[return-value]  # not both weights are 0


class Classifier(nn.Module):
    """The teacher's classifier on a pooled feature; the gradient goes through it, and not to it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, connected: Tensor, teacher: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.layer(pooled(connected))  # type: ignore[no-any-return]


class Rest(nn.Module):
    """The teacher's layers above one of its maps, run on another map in its place: a second forward of the teacher."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self._layer = layer

    def forward(self, connected: Tensor, teacher: Tensor, inputs: Tensor) -> Tensor:
        """Logits (N, K); a map of another size is first averaged to the teacher's."""
        if connected.shape[2:] != teacher.shape[2:]:
            connected = F.adaptive_avg_pool2d(connected, (teacher.shape[2], teacher.shape[3]))
        return replaced(self.network, self._layer, connected, inputs)


def pooled(tensor: Tensor) -> Tensor:
    """The mean of a map (N, C, H, W) over its places, (N, C); a vector as it is."""
    return tensor.mean(dim=(2, 3)) if tensor.dim() == 4 else tensor


def connector(source: tuple[int, ...], width: int, *, activated: bool = True) -> nn.Module:
    """r: 1x1 convolution without bias, BatchNorm, ReLU; of a vector a linear layer in place of the convolution.

    The authors' initialisation, N(0, sqrt(2 / (k * k * out))). Without ``activated`` there is no ReLU.
    """
    maps = len(source) == 3
    first: nn.Module = nn.Conv2d(source[0], width, 1, bias=False) if maps else nn.Linear(source[0], width, bias=False)
    nn.init.normal_(first.weight, std=math.sqrt(2 / width))  # type: ignore[arg-type]
    norm: nn.Module = nn.BatchNorm2d(width) if maps else nn.BatchNorm1d(width)
    return nn.Sequential(first, norm, nn.ReLU() if activated else nn.Identity())


def srrl(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    form: Form = "l2",
    average: Average = "elements",
    positions: tuple[Position, ...] = ("conv4",),
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    student_layer: str = "",
) -> tuple[Stage, ...]:
    """Softmax regression: the teacher's frozen classifier must say of the student's feature what it says of its own.

    L = L_CE + alpha * L_FM + beta * L_SR (Eq. 8) with a connector r (1x1 convolution, BatchNorm, ReLU) on the
    student's map before pooling, also where the widths are equal. The student keeps its own classifier; the connector
    is dropped. Networks whose classifier does not read the mean of a map (transformers, perceptrons) take the vector
    form, with a linear layer in r. Where the teacher's feature is below 0 somewhere, as a transformer's is, r has no
    ReLU. The authors' code (jingyang2017/KD_SRRL, d2e802f) averages over C and K where the formulas sum; the default
    follows it, because the published weights go with it.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        alpha: weight of the feature matching, L_FM. The authors suggest (alpha, beta) in (1, 1), (1, 5), (10, 1).
        beta: weight of the softmax regression, L_SR.
        form: of L_SR: ``l2`` of the logits, ``ce`` or ``kl`` of their distributions (at T = 1).
        average: ``elements``, as the code; ``batch``, as the formulas.
        positions: where: ``conv4`` is the last section's map, ``conv3`` and ``conv2`` those before; at these the
            teacher's remaining layers run on the student's connected map, which costs a second forward of the teacher.
            The paper does not say how L_SR is formed there. Where the teacher's map is not activated (wide ResNets
            there) the connector has no ReLU.
        soft: weight of a term of soft targets besides (the paper finds no gain in it).
        temperature: of the soft targets.
        student_layer: the student's layer at ``conv4``; the default is the map before pooling, or the feature.

    Raises:
        LimbeckError: alpha and beta are both 0; a number is out of range; no or an unknown position; the networks
            have no such sections; batches of 1 where the connector's BatchNorm would see one value a channel.
    """
    _check(alpha, beta, temperature, positions, student_layer)
    outline = reading.with_classifier(setup, "teacher", method="srrl")
    student_logits, teacher_logits = logits(setup)
    make = partial(Representation, alpha=alpha, beta=beta, form=form, average=average)
    terms = {"hard": Term(hard_loss, (from_student(), TARGETS), hard)}
    for position in positions:
        place = _PLACES[position]
        if place == 0:
            student, teacher = last_map(setup, "student", student_layer), outline.feature
            above: nn.Module = Classifier(setup.module("teacher", teacher.layer))
            inputs: tuple[Tap, ...] = ()
            activated = outline.nonnegative
        else:
            sections = [_section(setup, network, place, position) for network in ("student", "teacher")]
            student, teacher = (section.last for section in sections)
            activated = bool(sections[1].activation)
            if teacher.run is not None:
                raise LimbeckError(f"srrl at {position} puts a map in the place of {teacher}, a module that runs again")
            above, inputs = Rest(setup.module("teacher", ""), teacher.layer), (Tap("batch", "inputs"),)
        shape = setup.shape(student)
        if setup.batch_size * math.prod(shape[1:]) < 2:
            raise LimbeckError(f"srrl at {position} has BatchNorm of one value a channel of {student} in batches of 1")
        loss = make(connector(shape, setup.shape(teacher)[0], activated=activated), above)
        terms[position] = Term(loss, (student, teacher, teacher_logits, *inputs))
    terms["soft"] = Term(partial(soft_loss, temperature=temperature), (student_logits, teacher_logits), soft)
    return (Stage("srrl", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _check(alpha: float, beta: float, temperature: float, positions: tuple[Position, ...], student_layer: str) -> None:
    if not alpha and not beta:
        raise LimbeckError("alpha and beta are both 0: this is the student alone")
    if not (alpha >= 0 and beta >= 0 and temperature > 0):
        raise LimbeckError(
            f"got alpha {alpha}, beta {beta}, temperature {temperature}: allowed are alpha and beta from 0, "
            "temperature above 0"
        )
    if not positions or len(set(positions)) < len(positions) or not set(positions) <= set(_PLACES):
        raise LimbeckError(f"positions is {list(positions)}: name conv2, conv3 and conv4, each at most once")
    if student_layer and "conv4" not in positions:
        raise LimbeckError(f"student_layer is the student's layer at conv4, but positions is {list(positions)}")


def _section(setup: Setup, network: str, place: int, position: str) -> Section:
    found = reading.sections(setup, network, method=f"srrl at {position}")
    if len(found) <= place:
        raise LimbeckError(f"srrl at {position} needs {place + 1} sections, the {network} has {len(found)}")
    return found[-1 - place]


ABOUT = About(
    srrl,
    paper=Paper(
        "Yang et al.", "Knowledge Distillation via Softmax Regression Representation Learning", 2021, venue="ICLR"
    ),
    is_system=True,
)
