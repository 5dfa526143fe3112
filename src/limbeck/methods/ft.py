"""Factor transfer: the student matches factors that an autoencoder extracts from the teacher's map."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import Loss, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.reading import network_maps
from limbeck.methods.shared import check_above_zero, check_at_least, matched, pooled_alike, stage_epochs, unit

PAPER = Paper("Kim et al.", "Paraphrasing Complex Network: Network Compression via Factor Transfer", 2018, "1802.04977")


def factor_loss(student: Tensor, teacher: Tensor, *, average: Literal["elements", "batch"] = "elements") -> Tensor:
    """Absolute difference of the factors, each sample's factor scaled to length 1 (p = 1 in the paper's norm).

    No gradient flows to the teacher.

    Args:
        student: factors (N, K, H, W).
        teacher: factors (N, K, H, W). If the sizes differ, the larger map is average-pooled to the smaller size.
        average: "elements" averages over the batch and all elements, as in the authors' code
            (Jangho-Kim/Factor-Transfer-pytorch, train_student.py, 19cce26); their weight of 500 belongs to it. "batch"
            sums over the elements and averages over N, as in the paper: K * H * W times the former.
    """
    student, teacher = matched(student, teacher.detach())
    distances = (unit(student.flatten(1)) - unit(teacher.flatten(1))).abs()
    return distances.mean() if average == "elements" else distances.sum() / len(student)


def positions_loss(student: Tensor, teacher: Tensor, *, inner_power: int = 2, outer_power: int = 1) -> Tensor:
    """The form of RepDistiller (distiller_zoo/FT.py, b84f547), which averages over the channels, unlike the paper.

    With q the mean over the channels of the maps to the power p1, scaled to length 1 over the positions, this is the
    mean over batch and positions of |q_S - q_T| to the power p2. No gradient flows to the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C', H', W'). If the sizes differ, the larger map is average-pooled to the smaller size.
        inner_power: p1.
        outer_power: p2.
    """
    student, teacher = pooled_alike(student, teacher.detach())
    student, teacher = (unit(maps.pow(inner_power).mean(dim=1).flatten(1)) for maps in (student, teacher))
    distances = (student - teacher).abs()
    return (distances if outer_power == 1 else distances.pow(outer_power)).mean()


def layers(widths: Sequence[int], *, transposed: bool = False) -> nn.Sequential:
    """3x3 convolutions, each followed by a leaky ReLU of slope 0.1; (N, C, H, W) to (N, C', H, W)."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    pairs = ((kind(inside, outside, 3, padding=1), nn.LeakyReLU(0.1)) for inside, outside in pairwise(widths))
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def encoder(channels: int, factors: int) -> nn.Sequential:
    """The translator, and the first half of the paraphraser: C to C to K to K channels."""
    return layers((channels, channels, factors, factors))


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map that keeps its size. Its forward returns the reconstruction loss.

    Args:
        channels: C of the map.
        factors: K, the channels of the factor.
        reconstruction: "absolute" is the mean over all elements of |x - P(x)|, as in the authors' code
            (train_Paraphraser.py, 19cce26). "squared" is the squared norm averaged over N, as in the paper.
    """

    def __init__(
        self, channels: int, factors: int, *, reconstruction: Literal["absolute", "squared"] = "absolute"
    ) -> None:
        super().__init__()
        self.encoder = encoder(channels, factors)
        self.decoder = layers((factors, factors, channels, channels), transposed=True)
        self.reconstruction = reconstruction

    def forward(self, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of the teacher's map (N, C, H, W)."""
        target = teacher.detach()
        difference: Tensor = self.decoder(self.encoder(target)) - target
        return difference.abs().mean() if self.reconstruction == "absolute" else difference.square().sum() / len(target)


class FactorTransfer(nn.Module):
    """A loss between the factor of the translator, which learns, and the factor of the paraphraser, which is frozen."""

    def __init__(self, translator: nn.Module, paraphraser: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.translator = translator
        self.paraphraser = paraphraser
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of maps (N, C, H, W) and (N, C', H', W')."""
        with torch.no_grad():  # without gradients no optimizer changes it
            target = self.paraphraser(teacher)
        return self.loss(self.translator(student), target)


def ft(
    setup: Setup,
    *,
    factor: float | Schedule = 500.0,
    hard: float | Schedule = 1.0,
    paraphraser_epochs: int | None = None,
    rate: float = 0.5,
    form: Literal["authors", "paper", "repdistiller"] = "authors",
    reconstruction: Literal["absolute", "squared"] = "absolute",
    inner_power: int = 2,
    outer_power: int = 1,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Factor transfer: a paraphraser extracts the teacher's factors, then the student learns to match them.

    In the first stage the paraphraser, an autoencoder of the teacher's last map, is trained without labels. In the
    second its encoder is frozen while the student and its translator learn. Weight and rate are those of the paper and
    of the authors' code.

    Args:
        setup: epochs, optimizer and schedule of each of the two stages.
        factor: beta, the weight of the distance between the factors; RepDistiller uses 200 with its form.
        hard: weight of the cross-entropy with the labels.
        paraphraser_epochs: epochs of the first stage; the default is the recipe's. The authors use 5 to 30.
        rate: k, the channels of the factor divided by those of the teacher's map.
        form: "authors" averages over the elements. "paper" sums over them, which is K * H * W times as much.
            "repdistiller" compares the means over the channels.
        reconstruction: "absolute" is the mean absolute difference, as in the authors' code; "squared" is the paper's
            squared norm.
        inner_power: p1 of the form "repdistiller", at least 1.
        outer_power: p2 of the form "repdistiller", at least 1.
        student_layer: the layer that gives the student's map; the default is the last map.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: a network has no map there, or an option is out of range.
    """
    check_above_zero("rate", rate)
    check_at_least(1, "inner_power", inner_power)
    check_at_least(1, "outer_power", outer_power)
    named = {"student": student_layer, "teacher": teacher_layer}
    taps = tuple(
        network_maps(setup, network, (layer,) if layer else (), method="ft")[-1] for network, layer in named.items()
    )
    width, channels = (setup.shape(one)[0] for one in taps)
    factors = max(round(channels * rate), 1)
    paraphraser = Paraphraser(channels, factors, reconstruction=reconstruction)
    losses: dict[str, Loss] = {
        "authors": partial(factor_loss, average="elements"),
        "paper": partial(factor_loss, average="batch"),
        "repdistiller": partial(positions_loss, inner_power=inner_power, outer_power=outer_power),
    }
    transfer = FactorTransfer(encoder(width, factors), paraphraser.encoder, losses[form])
    terms = {
        "hard": hard_term(setup, from_student(), hard),
        "factor": Term(transfer, taps, factor),
    }
    epochs = stage_epochs(setup, "paraphraser_epochs", paraphraser_epochs)
    reconstructing = {"reconstruction": Term(paraphraser, taps[1:])}
    first = Stage("paraphraser", reconstructing, epochs, setup.optimizer, setup.schedule, learns=())
    return (first, Stage("ft", weighted(terms), setup.epochs, setup.optimizer, setup.schedule))


ABOUT = About(ft, PAPER, tasks=EVERY_TASK)
