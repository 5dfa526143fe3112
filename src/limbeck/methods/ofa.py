"""OFA-KD: branches turn the student's features into logits, which learn from a teacher of any architecture."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import map_shape
from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Tap, Term, tap, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.shared import check_above_zero, check_at_least, check_norm, class_indices

PAPER = Paper(
    "Hao, Guo, Han et al.",
    "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    2023,
    "2310.19444",
)

EXITS = 4
"""The number of exits of a network of tokens; the authors divide every network into four stages."""


def enhanced_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """-sum_k ((p_T[k] + 1_k)^gamma - 1_k) log p_S[k], averaged over the batch; 1_k is 1 for the label and 0 for others.

    With gamma = 1 it is the cross-entropy with the teacher's distribution. A larger gamma raises the weight of the
    label and lowers that of classes that the teacher finds unlikely; the weights do not add up to 1. There is no factor
    T². Source: `ofa_loss` of Hao840/OFAKD (distillers/ofa.py, 12eeba8). No gradient flows to the teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        targets: class indices (N,), int64.
        gamma: the exponent, above 0.
        temperature: T > 0 of both distributions.
    """
    label = F.one_hot(targets, student.shape[1])
    weights = ((teacher.detach() / temperature).softmax(dim=1) + label) ** gamma - label
    return -(weights * (student / temperature).log_softmax(dim=1)).sum(dim=1).mean()


def halving(channels: int, outside: int) -> nn.Sequential:
    """(N, C, H, W) to (N, C', H / 2, W / 2), rounded up: two separable 3x3 convolutions with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for stride, target in ((2, channels), (1, outside)):
        depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, target, 1, bias=False)
        layers += [depthwise, pointwise, nn.BatchNorm2d(target), nn.ReLU()]
    return nn.Sequential(*layers)


def map_branch(channels: int, halvings: int, width: int, classes: int) -> nn.Sequential:
    """(N, C, H, W) to logits (N, classes): `halving` layers that double the channels, the mean, and a linear layer."""
    widths = [channels * 2**step for step in range(halvings)] + [width]
    layers: list[nn.Module] = [halving(*pair) for pair in pairwise(widths)] or [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class TokenBranch(nn.Module):
    """(N, L, D) to logits (N, classes): transformer blocks, then the class token, or the mean without one.

    Args:
        shape: (L, D). Tokens beside a square of patches mean that the first one is the class token.
        blocks: the number of blocks, each with attention of 4 heads and an MLP of width 4 D.
        classes: the number of logits.
    """

    def __init__(self, shape: tuple[int, int], blocks: int, classes: int) -> None:
        super().__init__()
        length, width = shape
        patches = map_shape(shape)
        self.has_class_token = patches is not None and length > math.prod(patches[1:])
        heads = 4 if width % 4 == 0 else 1
        block = partial(nn.TransformerEncoderLayer, width, heads, 4 * width, activation="gelu", norm_first=True)
        self.blocks = nn.Sequential(*(block(dropout=0.0, batch_first=True) for _ in range(blocks)))
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        tokens = self.blocks(tokens)
        logits: Tensor = self.classifier(tokens[:, 0] if self.has_class_token else tokens.mean(dim=1))
        return logits


class Exits(nn.Module):
    """The sum over the branches of a loss such as `enhanced_loss`. The branches are dropped after training."""

    def __init__(self, branches: Sequence[nn.Module], loss: Loss) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches).apply(_initialise)
        self.loss = loss

    def forward(self, *tensors: Tensor) -> Tensor:
        """The loss, a scalar, of the student's features, the teacher's logits (N, K) and the targets (N,)."""
        *features, teacher, targets = tensors
        pairs = zip(self.branches, features, strict=True)
        return torch.stack([self.loss(branch(feature), teacher, targets) for branch, feature in pairs]).sum()


def ofa(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 1.0,
    exits: float | Schedule = 1.0,
    gamma: float = 1.5,
    temperature: float = 1.0,
    width: int | None = None,
    student_layers: tuple[str, ...] = (),
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """OFA-KD: the student's features become logits in branches, and all logits learn from the teacher's.

    Only the teacher's logits are read, so its architecture does not matter: a transformer may teach a convolutional
    network, and the reverse. The weights are the authors'. gamma is that of their command for ResNet-18 with DeiT-T;
    their code's default, 1, gives plain soft targets. In a convolutional network, a branch halves the map once for each
    deeper exit. The branches of a transformer have 3, 2, 1 and 1 blocks; the authors also merge the patches of grids of
    14 x 14 or more.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the student's own logits; a number or a schedule.
        exits: weight of the sum over the branches; a number or a schedule.
        gamma: the exponent of the target, see `enhanced_loss`.
        temperature: T of all logits but those of the cross-entropy.
        width: channels of the last layer of a branch; the default is those of the student's deepest map. The authors
            use the larger of the widths of both networks' features.
        student_layers: the layers with branches, shallow to deep, which give maps (C, H, W) or tokens (L, D); the
            default are the last maps of the sections, or four blocks of a transformer.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the targets are not class indices; a layer gives vectors; an option is out of range; the batch
            size is 1 and a branch ends in one position; all weights are 0; the teacher is an ensemble averaged as
            distributions.
    """
    class_indices(setup, "ofa")
    check_above_zero("gamma", gamma)
    check_above_zero("temperature", temperature)
    if width is not None:
        check_at_least(1, "width", width)
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    loss = partial(enhanced_loss, gamma=gamma, temperature=temperature)
    taps = _exits(setup, student_layers)
    branches = [_branch(setup, one, len(taps) - 1 - place, taps[-1], width) for place, one in enumerate(taps)]
    terms = {
        "hard": hard_term(setup, student, hard),
        "soft": Term(loss, (student, teacher, TARGETS), soft),
        "exits": Term(Exits(branches, loss), (*taps, teacher, TARGETS), exits),
    }
    return (Stage("ofa", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _initialise(module: nn.Module) -> None:
    """As the authors do, whose attention has a linear layer for queries, keys and values."""
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _exits(setup: Setup, layers: tuple[str, ...]) -> list[Tap]:
    if layers:
        return [tap("student", layer) for layer in layers]
    outline = setup.outline("student")
    if outline.sections:
        return [section.last for section in outline.sections]
    if not outline.hidden:
        raise LimbeckError("ofa reads maps (C, H, W) or tokens (L, D) of the student, which has none: use kd")
    count = len(outline.hidden)
    return list(dict.fromkeys(outline.hidden[-(-count * part // EXITS) - 1] for part in range(1, EXITS + 1)))


def _branch(setup: Setup, one: Tap, left: int, deepest: Tap, width: int | None) -> nn.Module:
    """The branch of an exit with ``left`` exits after it."""
    shape = setup.shape(one)
    if len(shape) == 2:
        return TokenBranch((shape[0], shape[1]), max(left, 1), setup.classes)
    if len(shape) != 3:
        raise LimbeckError(
            f"ofa reads maps (C, H, W) or tokens (L, D) of the student, but {one} gives {shape}: name other layers as "
            "student_layers"
        )
    last = width or setup.shape(deepest)[0]
    if left:
        check_norm(setup, (last, *(-(-side // 2**left) for side in shape[1:])), method="ofa")
    return map_branch(shape[0], left, last, setup.classes)


ABOUT = About(ofa, PAPER)
