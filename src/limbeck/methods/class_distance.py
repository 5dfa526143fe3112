"""Class distance: a teacher with dense clusters of classes, and a student that regresses its features."""

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Setup, Stage, Sweep, Tap, Term, from_teacher, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.mimic import mimic


def class_distance_loss(feature: Tensor, own: Tensor, other: Tensor, *, phi: float | Tensor) -> Tensor:
    """||f - C||^2 - min(phi, ||f - O||^2), squared norms summed over D, mean over N (the second part of Eq. 3).

    The second distance has no gradient once it exceeds phi, so the loss is bounded below by -phi. The centres are
    constants.

    Args:
        feature: f, (N, D).
        own: C, the centre of each sample's class, (N, D).
        other: O, the centre of another class, (N, D), or of several, (N, M, D): then the mean over M.
        phi: the cap, in units of a squared distance.
    """
    near = (feature - own.detach()).square().sum(dim=-1)
    others = other.detach() if other.dim() == 3 else other.detach().unsqueeze(1)
    far = (feature.unsqueeze(1) - others).square().sum(dim=-1)
    return (near - torch.clamp(far, max=phi).mean(dim=1)).mean()


class ClassDistance(nn.Module):
    """`class_distance_loss` with the centres of the classes that the training set has.

    Args:
        present: (K',) int64, the classes of the training set.
        classes: K.
        width: D.
        phi: the cap; see ``relative``.
        relative: phi is a multiple of the mean squared distance between the centres, measured when the term begins.
        centres: ``epoch``: exact, over the training set in eval mode, before every epoch. ``ema``: exact at first,
            then moved to each batch's class means by 1 - ``momentum``. ``batch``: the batch's class means; a class
            that is not in the batch keeps the last.
        other: ``random``: one class that is not the sample's own, uniform. ``nearest``: the nearest. ``mean``: all,
            averaged after the cap.
        momentum: of ``ema``.
        begins: the epoch from which the term counts.
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
        """Measure the centres before an epoch, and phi's unit when the term begins."""
        if self._mode == "epoch" or sweep.epoch == self._begins:
            self.centres.copy_(class_means(sweep, feature, len(self.centres)))
        if self._relative and sweep.epoch == self._begins:
            self.phi.copy_(self._phi * mean_squared_distance(self.centres[self.present]))

    def _others(self, feature: Tensor, targets: Tensor) -> Tensor:
        """The centre (N, D) of another class, or those (N, K' - 1, D) of all others."""
        count = len(self.present)
        own = (self.present == targets.unsqueeze(1)).int().argmax(dim=1)  # the own class's place among those present
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
    """The mean feature of each class over the training set (Eq. 2), (K, D); zeros for a class that it lacks."""
    sums, counts = torch.zeros(()), torch.zeros(())
    for values, targets in sweep(feature, TARGETS):
        members = nn.functional.one_hot(targets, classes).to(values.dtype)
        sums, counts = sums.to(values) + members.T @ values, counts.to(values) + members.sum(dim=0)
    return sums / counts.clamp(min=1).unsqueeze(1)


def mean_squared_distance(centres: Tensor) -> Tensor:
    """Over all pairs of two different centres (K, D)."""
    count = len(centres)
    return squared_distances(centres, centres).sum() / (count * (count - 1))


def squared_distances(ones: Tensor, others: Tensor) -> Tensor:
    """Of each of (N, D) to each of (K, D), (N, K)."""
    # By default cdist takes a matrix product, which loses the distance of centres that are far from 0 and close by.
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
    """A teacher whose classes are dense clusters, and a student that regresses its feature.

    First stage: the *teacher* learns with cross-entropy + lambda * (distance to the own class's centre - capped
    distance to another's). Second stage: ``mimic``; the student is deployed with the teacher's classifier. The
    teacher goes on from where it is; for one that learns this from the start, write ``untrained: true`` in the
    recipe's teacher block. The paper does not say how O is chosen, how the centres are refreshed, nor the values of
    lambda and phi: these defaults are ours.

    Args:
        setup: epochs, optimizer and schedule, of both stages.
        weight: lambda.
        phi: the cap on the squared distance to the other class's centre.
        phi_unit: ``relative``: phi counts in mean squared distances between the centres, as measured after the
            warm-up; ``raw``: as it is.
        centres: how the centres are kept: exact before every ``epoch``, moving with each batch (``ema``), or each
            ``batch``'s own means.
        other: which other class's centre: a ``random`` one, the ``nearest``, or the ``mean`` over all.
        momentum: of the moving centres.
        warmup_epochs: epochs of the first stage with cross-entropy alone, at most all but its last; the centres of a
            random network mean nothing.
        teacher_epochs: epochs of the first stage; by default as many as the second's. 0 leaves it out.
        adapter: as in ``mimic``.

    Raises:
        LimbeckError: fewer than two classes are left; a number is out of range; what ``mimic`` raises.
    """
    _check(setup, weight, phi, momentum, warmup_epochs, teacher_epochs or 0)
    mimicking = mimic(setup, adapter=adapter)
    epochs = setup.epochs if teacher_epochs is None else teacher_epochs
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
    terms = weighted(
        {
            "hard": Term(hard_loss, (from_teacher(), TARGETS)),
            "distance": Term(loss, (feature, TARGETS), late),
        }
    )
    teaching = Stage(
        "teacher",
        terms,
        epochs,
        setup.optimizer,
        setup.schedule,
        learns=("teacher",),
        prepare=(lambda sweep: loss.prepare(sweep, feature)) if weight else None,
    )
    return (teaching, *mimicking)


def _check(setup: Setup, weight: float, phi: float, momentum: float, warmup_epochs: int, teacher_epochs: int) -> None:
    if len(torch.unique(setup.targets)) < 2:
        raise LimbeckError("the training set has one class only: there is no other class to keep a distance from")
    if not weight >= 0 or not phi > 0 or not 0 <= momentum < 1 or warmup_epochs < 0 or teacher_epochs < 0:
        raise LimbeckError(
            f"got weight {weight}, phi {phi}, momentum {momentum}, warmup_epochs {warmup_epochs}, teacher_epochs "
            f"{teacher_epochs}: allowed are weight from 0, phi above 0, momentum in [0, 1), epochs from 0"
        )


ABOUT = About(
    class_distance,
    paper=Paper(
        "Kim, Kim", "Transferring Knowledge to Smaller Network with Class-Distance Loss", 2017, venue="ICLR workshop"
    ),
    is_system=True,
)
