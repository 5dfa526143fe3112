"""SRRL: the teacher's classifier returns the same output for the student's feature as for the teacher's feature."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Section, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import like, wide
from limbeck.methods.kd import soft_loss
from limbeck.methods.shared import check_above_zero, check_at_least, check_norm
from limbeck.taps import replaced

PAPER = Paper(
    "Yang et al.", "Knowledge Distillation via Softmax Regression Representation Learning", 2021, venue="ICLR"
)

Form = Literal["l2", "ce", "kl"]
Average = Literal["elements", "batch"]
Position = Literal["conv2", "conv3", "conv4"]

_PLACES: Mapping[Position, int] = {"conv2": 2, "conv3": 1, "conv4": 0}  # sections from the last


def feature_matching_loss(student: Tensor, teacher: Tensor, *, average: Average = "elements") -> Tensor:
    """||h_T - r(h_S)||^2 (Eq. 3). No gradient flows to the teacher.

    Args:
        student: r(h_S), the pooled feature after the connector, (N, C).
        teacher: h_T, (N, C).
        average: "elements" averages over N and C, as in the authors' code. "batch" sums over C and averages over N, as
            in the formula: C times as much.
    """
    squares = (student - teacher.detach()).square()
    return squares.mean() if average == "elements" else squares.sum(dim=1).mean()


def softmax_regression_loss(
    student: Tensor, teacher: Tensor, *, form: Form = "l2", average: Average = "elements"
) -> Tensor:
    """The distance between the teacher's classifier on the student's feature and on the teacher's feature.

    No gradient flows to the teacher.

    Args:
        student: W_T' r(h_S), logits (N, K).
        teacher: W_T' h_T, logits (N, K).
        form: "l2" is the squared distance of the logits (Eq. 7, the loss that the paper uses). "ce" is the
            cross-entropy -p log q (Eq. 4) and "kl" the same minus the entropy of p, both at T = 1 and averaged over N.
        average: mean of "l2": "elements" averages over N and K, as in the authors' code; "batch" is K times as much.
    """
    target = teacher.detach()
    if form == "l2":
        return feature_matching_loss(student, target, average=average)
    if form == "kl":
        return soft_loss(student, target, temperature=1.0)
    return like(F.cross_entropy(wide(student), wide(target).softmax(dim=1)), student)


class Representation(nn.Module):
    """alpha * feature matching + beta * softmax regression for one tensor of the student.

    Args:
        connector: r, applied to the student's map (N, C_S, H, W) or vector (N, C_S).
        above: the rest of the teacher, from the connected tensor, the teacher's tensor and the inputs to logits.
        alpha, beta, form, average: the options of `srrl`.
    """

    def __init__(
        self,
        connector: nn.Module,
        above: nn.Module,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        form: Form = "l2",
        average: Average = "elements",
    ) -> None:
        super().__init__()
        self.connector = connector
        self.above = above
        self._alpha, self._beta = alpha, beta
        self._matching = partial(feature_matching_loss, average=average)
        self._regression = partial(softmax_regression_loss, form=form, average=average)

    def forward(self, student: Tensor, teacher: Tensor, teacher_logits: Tensor, *inputs: Tensor) -> Tensor:
        """The loss, a scalar; ``inputs`` is the batch, for a rest of the teacher that needs it."""
        connected = self.connector(student)
        loss = self._alpha * self._matching(pooled(connected), pooled(teacher)) if self._alpha else 0.0
        if self._beta:
            loss = loss + self._beta * self._regression(self.above(connected, teacher, *inputs), teacher_logits)
        return loss  # type: ignore[return-value]  # not both weights are 0


class Classifier(nn.Module):
    """The teacher's classifier on a pooled feature; the gradient flows through it but not to its parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, connected: Tensor, teacher: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.layer(pooled(connected))  # type: ignore[no-any-return]


class Rest(nn.Module):
    """The teacher's layers above one of its maps, run on another map: a second forward pass of the teacher."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self._layer = layer

    def forward(self, connected: Tensor, teacher: Tensor, inputs: Tensor) -> Tensor:
        """Logits (N, K); a map of another size is first average-pooled to the size of the teacher's."""
        if connected.shape[2:] != teacher.shape[2:]:
            connected = F.adaptive_avg_pool2d(connected, (teacher.shape[2], teacher.shape[3]))
        return replaced(self.network, self._layer, connected, inputs)


def pooled(tensor: Tensor) -> Tensor:
    """The mean of a map (N, C, H, W) over its positions, (N, C); a vector as it is."""
    return tensor.mean(dim=(2, 3)) if tensor.dim() == 4 else tensor


def connector(source: tuple[int, ...], width: int, *, activated: bool = True) -> nn.Module:
    """r: a 1x1 convolution without bias (for vectors, a linear layer), BatchNorm, and ReLU if ``activated``.

    The weights are drawn from N(0, sqrt(2 / (k * k * out))), as in the authors' code.
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
    """Softmax regression: the teacher's frozen classifier returns equal outputs for the features of both networks.

    L = L_CE + alpha * L_FM + beta * L_SR (Eq. 8), with a connector r (1x1 convolution, BatchNorm, ReLU) on the
    student's map before pooling, even if the widths are equal. The student keeps its own classifier, and the connector
    is dropped after training. If the classifier does not read the mean of a map (transformers, perceptrons), r starts
    with a linear layer on the feature. If the teacher's feature can be negative, as in a transformer, r has no ReLU.
    The authors' code (jingyang2017/KD_SRRL, d2e802f) averages over C and K where the formulas sum; the default follows
    the code, because the published weights belong to it.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        alpha: weight of the feature matching, L_FM. The authors suggest (alpha, beta) in (1, 1), (1, 5), (10, 1).
        beta: weight of the softmax regression, L_SR.
        form: form of L_SR: "l2" of the logits, or "ce" or "kl" of their distributions (at T = 1).
        average: "elements" as in the code, "batch" as in the formulas.
        positions: "conv4" is the map of the last section; "conv3" and "conv2" are those of the sections before. For
            these, the teacher's remaining layers run on the student's connected map, which costs a second forward pass
            of the teacher. The paper does not say how L_SR is computed there. If the teacher's map is not the output of
            an activation (wide ResNets), the connector has no ReLU.
        soft: weight of an additional term with soft targets; the paper reports no gain from it.
        temperature: T of the soft targets.
        student_layer: the student's layer for "conv4"; the default is the map before pooling, or the feature.

    Raises:
        LimbeckError: alpha and beta are both 0; an option is out of range; a position is missing or unknown; the
            networks have too few sections; the batch size is 1 and BatchNorm would see one value per channel.
    """
    _check(alpha, beta, temperature, positions, student_layer)
    if setup.soft_loss is not None and form != "l2":
        raise LimbeckError(f"form: {form} compares distributions of classes: use form: l2 for this task")
    outline = reading.with_classifier(setup, "teacher", method="srrl")
    student_logits, teacher_logits = reading.logits(setup)
    make = partial(Representation, alpha=alpha, beta=beta, form=form, average=average)
    terms = {"hard": hard_term(setup, from_student(), hard)}
    for position in positions:
        place = _PLACES[position]
        if place == 0:
            student, teacher = reading.last_map(setup, "student", student_layer, method="srrl"), outline.feature
            above: nn.Module = Classifier(setup.module("teacher", teacher.layer))
            inputs: tuple[Tap, ...] = ()
            activated = outline.nonnegative
        else:
            sections = [_section(setup, network, place, position) for network in ("student", "teacher")]
            student, teacher = (section.last for section in sections)
            activated = bool(sections[1].activation)
            if teacher.run is not None:
                raise LimbeckError(
                    f"srrl at {position} replaces the output of {teacher}, a module that runs more than once"
                )
            above, inputs = Rest(setup.module("teacher", ""), teacher.layer), (Tap("batch", "inputs"),)
        shape = setup.shape(student)
        check_norm(setup, shape, method=f"srrl at {position}")
        loss = make(connector(shape, setup.shape(teacher)[0], activated=activated), above)
        terms[position] = Term(loss, (student, teacher, teacher_logits, *inputs))
    terms["soft"] = Term(
        partial(setup.soft_loss or soft_loss, temperature=temperature), (student_logits, teacher_logits), soft
    )
    return (Stage("srrl", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _check(alpha: float, beta: float, temperature: float, positions: tuple[Position, ...], student_layer: str) -> None:
    if not alpha and not beta:
        raise LimbeckError("alpha and beta are both 0, so the teacher has no effect: use the method alone")
    check_at_least(0, "alpha", alpha)
    check_at_least(0, "beta", beta)
    check_above_zero("temperature", temperature)
    if not positions or len(set(positions)) < len(positions) or not set(positions) <= set(_PLACES):
        raise LimbeckError(f"positions is {list(positions)}: name conv2, conv3 and conv4, each at most once")
    if student_layer and "conv4" not in positions:
        raise LimbeckError(f"student_layer is the student's layer for conv4, but positions is {list(positions)}")


def _section(setup: Setup, network: str, place: int, position: str) -> Section:
    found = reading.sections(setup, network, method=f"srrl at {position}")
    if len(found) <= place:
        raise LimbeckError(f"srrl at {position} needs {place + 1} sections, the {network} has {len(found)}")
    return found[-1 - place]


ABOUT = About(srrl, PAPER, is_system=True, tasks=OF_OUTPUTS)
