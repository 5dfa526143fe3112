"""Factor transfer: the student matches factors that an autoencoder extracts from the teacher's map."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Tap, Term, from_student, tap, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.reading import sections
from limbeck.methods.shared import matched, pooled_alike, stage_epochs, unit

_SLOPE = 0.1


def factor_loss(student: Tensor, teacher: Tensor, *, average: Literal["elements", "batch"] = "elements") -> Tensor:
    """Absolute difference of the factors, each sample's scaled to length 1 (p = 1 in the paper's norm).

    None of the gradient reaches the teacher.

    Args:
        student: factors (N, K, H, W).
        teacher: factors (N, K, H, W); of two sizes the larger is averaged down to the smaller.
        average: "elements", the mean over the batch and all elements, is the authors' code
            (Jangho-Kim/Factor-Transfer-pytorch, train_student.py, 19cce26), for which their weight of 500 is;
            "batch", the sum over a sample's elements and the mean over N, is the paper's: K * H * W times as much.
    """
    mine, its = matched(student, teacher.detach())
    distances = (unit(mine.flatten(1)) - unit(its.flatten(1))).abs()
    return distances.mean() if average == "elements" else distances.sum() / len(student)


def positions_loss(student: Tensor, teacher: Tensor, *, inner_power: int = 2, outer_power: int = 1) -> Tensor:
    """RepDistiller's form (distiller_zoo/FT.py, b84f547), which is not the paper's: channels are averaged first.

    With q the mean over the channels of the maps' p1-th power, scaled to length 1 over the places, the mean over
    batch and places of |q_s - q_t| to the power p2. None of the gradient reaches the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C', H, W); of two sizes the larger is averaged down to the smaller.
        inner_power: p1.
        outer_power: p2.
    """
    mine, its = pooled_alike(student, teacher.detach())
    scaled = [unit(one.pow(inner_power).mean(dim=1).flatten(1)) for one in (mine, its)]
    distances = (scaled[0] - scaled[1]).abs()
    return (distances if outer_power == 1 else distances.pow(outer_power)).mean()


class Layers(nn.Module):
    """Three 3x3 layers, each followed by a leaky ReLU of slope 0.1; (N, C, H, W) to (N, C', H, W)."""

    def __init__(self, widths: Sequence[int], *, transposed: bool = False) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.layers = nn.ModuleList(kind(inside, outside, 3, padding=1) for inside, outside in pairwise(widths))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        for layer in self.layers:
            maps = F.leaky_relu(layer(maps), _SLOPE)
        return maps


def encoder(channels: int, factors: int) -> Layers:
    """The translator, and the paraphraser's first half: C to C to K to K channels."""
    return Layers((channels, channels, factors, factors))


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map that keeps its size; called, it gives its reconstruction loss.

    Args:
        channels: C of the map.
        factors: K, the channels of the factor.
        reconstruction: "absolute", the mean over everything of |x - P(x)|, is the authors' code
            (train_Paraphraser.py, 19cce26); "squared", the sum over a sample's elements of the squares, mean over N,
            is the paper's.
    """

    def __init__(
        self, channels: int, factors: int, *, reconstruction: Literal["absolute", "squared"] = "absolute"
    ) -> None:
        super().__init__()
        self.encoder = encoder(channels, factors)
        self.decoder = Layers((factors, factors, channels, channels), transposed=True)
        self.reconstruction = reconstruction

    def forward(self, teacher: Tensor) -> Tensor:
        """The teacher's map (N, C, H, W) to a scalar."""
        target = teacher.detach()
        difference: Tensor = self.decoder(self.encoder(target)) - target
        return difference.abs().mean() if self.reconstruction == "absolute" else difference.square().sum() / len(target)


class FactorTransfer(nn.Module):
    """A loss on the student's factor, which the translator learns to give, and the teacher's, which stays as it is."""

    def __init__(self, translator: nn.Module, paraphraser: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.translator = translator
        self.paraphraser = paraphraser
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The maps (N, C, H, W) and (N, C', H', W') to a scalar."""
        with torch.no_grad():  # no gradient, so no optimizer changes it
            target = self.paraphraser(teacher)
        value: Tensor = self.loss(self.translator(student), target)
        return value


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
    """Factor transfer: a paraphraser learns the teacher's factors, then the student learns to give them.

    Without labels the paraphraser, an autoencoder of the teacher's last map, learns first; its encoder then stays as
    it is while the student and its translator learn. Weight and rate are those of the paper and of the authors' code.

    Args:
        setup: epochs, optimizer and schedule of each of the two stages.
        factor: beta, the weight of the factors' distance; RepDistiller has 200 with its form.
        hard: weight of the cross-entropy with the labels.
        paraphraser_epochs: of the first stage; by default as many as the recipe has. The authors take 5 to 30.
        rate: k, the factor's channels as a share of the teacher's map's.
        form: "authors" is the mean over the elements; "paper" their sum, K * H * W times as much; "repdistiller"
            compares the factors' means over the channels.
        reconstruction: "absolute" difference, mean over all, as in the authors' code; or the paper's "squared" norm.
        inner_power: p1 of the form "repdistiller".
        outer_power: p2 of the form "repdistiller".
        student_layer: what gives the student's map; by default the last map.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: a network has no map there, or an option is out of range.
    """
    if not rate > 0:
        raise LimbeckError(f"rate is {rate}: it must be above 0")
    if min(inner_power, outer_power) < 1:
        raise LimbeckError(f"inner_power is {inner_power} and outer_power {outer_power}: they must be 1 or more")
    taps = deepest_map(setup, "student", student_layer), deepest_map(setup, "teacher", teacher_layer)
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
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "factor": Term(transfer, taps, factor),
    }
    epochs = stage_epochs(setup, "paraphraser_epochs", paraphraser_epochs)
    return (
        Stage(
            "paraphraser", {"reconstruction": Term(paraphraser, taps[1:])}, epochs, setup.optimizer, setup.schedule, ()
        ),
        Stage("ft", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),
    )


def deepest_map(setup: Setup, network: str, layer: str) -> Tap:
    """The layer named, or the last section's last map.

    Raises:
        LimbeckError: the network has no maps, or the layer gives none.
    """
    found = tap(network, layer) if layer else sections(setup, network, method="ft")[-1].last
    if len(setup.shape(found)) != 3:
        raise LimbeckError(f"ft convolves maps (C, H, W), but {found} gives {setup.shape(found)}: name another layer")
    return found


ABOUT = About(
    ft,
    paper=Paper(
        "Kim et al.", "Paraphrasing Complex Network: Network Compression via Factor Transfer", 2018, "1802.04977"
    ),
)
