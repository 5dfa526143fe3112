"""Class distance: the teacher learns features in a dense cluster for each class, and the student regresses them."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Setup, Stage, Sweep, Tap, Term, from_teacher, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.mimic import mimic
from limbeck.methods.shared import check_above_zero, check_at_least, class_indices, stage_epochs

PAPER = Paper(
    "Kim, Kim", "Transferring Knowledge to Smaller Network with Class-Distance Loss", 2017, venue="ICLR workshop"
)


def class_distance_loss(feature: Tensor, own: Tensor, other: Tensor, *, phi: float | Tensor) -> Tensor:
    """||f - C||^2 - min(phi, ||f - O||^2), summed over D and averaged over N (the second part of Eq. 3).

    The second distance has no gradient where it exceeds phi, so the loss is bounded below by -phi. No gradient flows
    to the centres.

    Args:
        feature: f, (N, D).
        own: C, the centre of each sample's class, (N, D).
        other: O, the centre of another class, (N, D), or of several, (N, M, D), which are averaged over M.
        phi: the largest value of the second distance, a squared distance.
    """
    near = (feature - own.detach()).square().sum(dim=-1)
    others = other.detach() if other.dim() == 3 else other.detach().unsqueeze(1)
    far = (feature.unsqueeze(1) - others).square().sum(dim=-1)
    return (near - torch.clamp(far, max=phi).mean(dim=1)).mean()


class ClassDistance(nn.Module):
    """`class_distance_loss` with the centres of the classes of the training set.

    Args:
        present: (K',) int64, the classes of the training set.
        classes: K, the number of logits.
        width: D, the length of the feature.
        relative: whether phi is a multiple of the mean squared distance between the centres.
        begins: the epoch, from 0, in which the term starts.
        phi, centres, other, momentum: the options of `class_distance`.
    """

    def __init__(
        self,
        present: Tensor,
        classes: int,
        width: int,
        *,
        phi: float,
        relative: bool,
        centres: Literal["epoch", "ema", "batch"],
        other: Literal["random", "nearest", "mean"],
        momentum: float,
        begins: int,
    ) -> None:
        super().__init__()
        self._phi, self._relative, self._mode, self._other = phi, relative, centres, other
        self._momentum, self._begins = momentum, begins
        self.present: Tensor
        self.centres: Tensor
        self.phi: Tensor
        self.register_buffer("present", present)
        self.register_buffer("centres", torch.zeros(classes, width))
        self.register_buffer("phi", torch.tensor(float(phi)))

    def forward(self, feature: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar; feature (N, D), targets (N,)."""
        if self._mode != "epoch" and self.training and torch.is_grad_enabled():
            self._follow(feature.detach(), targets)
        return class_distance_loss(feature, self.centres[targets], self._others(feature, targets), phi=self.phi)

    def prepare(self, sweep: Sweep, feature: Tap) -> None:
        """Compute the centres before an epoch, and the unit of phi when the term starts."""
        if self._mode == "epoch" or sweep.epoch == self._begins:
            self.centres.copy_(class_means(sweep, feature, len(self.centres)))
        if self._relative and sweep.epoch == self._begins:
            self.phi.copy_(self._phi * mean_squared_distance(self.centres[self.present]))

    def _others(self, feature: Tensor, targets: Tensor) -> Tensor:
        """The centre (N, D) of another class, or the centres (N, K' - 1, D) of all other classes."""
        count = len(self.present)
        own = (self.present == targets.unsqueeze(1)).int().argmax(dim=1)  # position of the sample's class in `present`
        if self._other == "random":
            step = torch.randint(1, count, own.shape, device=own.device)
            return self.centres[self.present[(own + step) % count]]
        if self._other == "nearest":
            distances = squared_distances(feature.detach(), self.centres[self.present])
            distances.scatter_(1, own.unsqueeze(1), torch.inf)
            return self.centres[self.present[distances.argmin(dim=1)]]
        steps = torch.arange(1, count, device=own.device)
        return self.centres[self.present[(own.unsqueeze(1) + steps) % count]]

    def _follow(self, feature: Tensor, targets: Tensor) -> None:
        kept = 0.0 if self._mode == "batch" else self._momentum
        members = nn.functional.one_hot(targets, len(self.centres)).to(feature.dtype)
        counts = members.sum(dim=0).unsqueeze(1)
        means = members.T @ feature / counts.clamp(min=1)
        self.centres.copy_(torch.where(counts > 0, kept * self.centres + (1 - kept) * means, self.centres))


def class_means(sweep: Sweep, feature: Tap, classes: int) -> Tensor:
    """The mean feature of each class over the training set (Eq. 2), (K, D); zeros for a class without samples."""
    sums, counts = torch.zeros(()), torch.zeros(())
    for values, targets in sweep(feature, TARGETS):
        members = nn.functional.one_hot(targets, classes).to(values.dtype)
        sums, counts = sums.to(values) + members.T @ values, counts.to(values) + members.sum(dim=0)
    return sums / counts.clamp(min=1).unsqueeze(1)


def mean_squared_distance(centres: Tensor) -> Tensor:
    """The mean squared distance over all pairs of different centres (K, D)."""
    count = len(centres)
    return squared_distances(centres, centres).sum() / (count * (count - 1))


def squared_distances(ones: Tensor, others: Tensor) -> Tensor:
    """The squared distances (N, K) between the vectors (N, D) and (K, D)."""
    # By default cdist uses a matrix product, which is inaccurate for centres that are far from 0 and close together.
    return torch.cdist(ones, others, compute_mode="donot_use_mm_for_euclid_dist").square()


def class_distance(
    setup: Setup,
    *,
    weight: float = 0.01,
    phi: float = 1.0,
    phi_unit: Literal["relative", "raw"] = "relative",
    centres: Literal["epoch", "ema", "batch"] = "epoch",
    other: Literal["random", "nearest", "mean"] = "random",
    momentum: float = 0.9,
    warmup_epochs: int = 1,
    teacher_epochs: int | None = None,
    adapter: Literal["none", "linear"] = "none",
) -> tuple[Stage, ...]:
    """The teacher learns features that form a dense cluster for each class, and the student regresses them.

    In the first stage the *teacher* is trained with cross-entropy + lambda * (squared distance to the centre of the
    sample's class - capped squared distance to the centre of another class). The second stage is `mimic`: the student
    is deployed with the teacher's classifier. The first stage starts from the given teacher; to train one from random
    weights, set ``untrained: true`` in the recipe's teacher block. The paper does not say how the other class is
    chosen, how the centres are updated, or what lambda and phi are: these defaults are limbeck's.

    Args:
        setup: epochs, optimizer and schedule of both stages.
        weight: lambda.
        phi: the largest value of the squared distance to the other class's centre.
        phi_unit: "relative" multiplies phi by the mean squared distance between the centres, measured after the
            warm-up; "raw" takes phi as it is.
        centres: "epoch" computes the centres over the training set in eval mode before every epoch. "ema" does so once,
            then moves them towards the class means of each batch by 1 - ``momentum``. "batch" takes the class means of
            the batch; a class that is not in the batch keeps its last centre.
        other: the other class is a "random" one, drawn uniformly, or the "nearest" one. "mean" averages the capped
            distances to all other classes.
        momentum: the decay of the moving centres ("ema").
        warmup_epochs: epochs of the first stage with cross-entropy only, because the centres of a random network are
            meaningless; at most all epochs but the last.
        teacher_epochs: epochs of the first stage; the default is the recipe's. 0 skips the stage.
        adapter: see `mimic`.

    Raises:
        LimbeckError: the training set has fewer than two classes; the targets are not class indices; an option is out
            of range; any error of `mimic`.
    """
    class_indices(setup, "class_distance")
    if len(torch.unique(setup.targets)) < 2:
        raise LimbeckError("the training set has only one class: class_distance needs at least two")
    check_above_zero("phi", phi)
    check_at_least(0, "weight", weight)
    check_at_least(0, "warmup_epochs", warmup_epochs)
    if not 0 <= momentum < 1:
        raise LimbeckError(f"momentum is {momentum}: it must be at least 0 and below 1")
    mimicking = mimic(setup, adapter=adapter)
    epochs = stage_epochs(setup, "teacher_epochs", teacher_epochs, least=0)
    if epochs == 0:
        return mimicking
    begins = min(warmup_epochs, epochs - 1)
    feature = setup.outline("teacher").feature
    loss = ClassDistance(
        torch.unique(setup.targets).cpu(),
        setup.classes,
        setup.shape(feature)[0],
        phi=phi,
        relative=phi_unit == "relative",
        centres=centres,
        other=other,
        momentum=momentum,
        begins=begins,
    )
    late = (lambda progress: 0.0 if progress < begins / epochs - 1e-9 else weight) if begins and weight else weight
    terms = {
        "hard": hard_term(setup, from_teacher()),
        "distance": Term(loss, (feature, TARGETS), late),
    }
    teaching = Stage("teacher", weighted(terms), epochs, setup.optimizer, setup.schedule, learns=("teacher",))
    if weight:
        teaching = replace(teaching, prepare=lambda sweep: loss.prepare(sweep, feature))
    return (teaching, *mimicking)


ABOUT = About(class_distance, PAPER, is_system=True)
