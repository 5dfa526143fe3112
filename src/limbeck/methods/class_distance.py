"""Class distance: a teacher with dense clusters of classes, and a student that regresses its features."""

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Setup, Stage, Sweep, Tap, Term, from_teacher, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.mimic import mimic
from limbeck.methods.shared import class_indices

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
        phi: the largest value of the second distance; see ``relative``.
        relative: phi is a multiple of the mean squared distance between the centres, measured when the term starts.
        centres: "epoch" computes them over the training set in eval mode before every epoch. "ema" does so once, then
            moves them towards the class means of each batch by 1 - ``momentum``. "batch" takes the class means of the
            batch; a class that is not in the batch keeps its last centre.
        other: "random" is one of the other classes, drawn uniformly. "nearest" is the nearest. "mean" averages the
            capped distances to all other classes.
        momentum: the decay of "ema".
        begins: the epoch, from 0, in which the term starts.
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
    """A teacher whose classes form dense clusters, and a student that regresses the teacher's feature.

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
        centres: "epoch" computes the centres before every epoch, "ema" moves them with every batch, "batch" takes the
            class means of the batch.
        other: the other class is a "random" one or the "nearest"; "mean" averages over all other classes.
        momentum: the decay of the moving centres ("ema").
        warmup_epochs: epochs of the first stage with cross-entropy only, because the centres of a random network are
            meaningless; at most all epochs but the last.
        teacher_epochs: epochs of the first stage; the default is the recipe's. 0 leaves the stage out.
        adapter: see `mimic`.

    Raises:
        LimbeckError: the training set has fewer than two classes; the targets are not class indices; an option is out
            of range; any error of `mimic`.
    """
    class_indices(setup, "class_distance")
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
        raise LimbeckError("the training set has only one class: class_distance needs at least two")
    if not weight >= 0 or not phi > 0 or not 0 <= momentum < 1 or warmup_epochs < 0 or teacher_epochs < 0:
        raise LimbeckError(
            f"got weight {weight}, phi {phi}, momentum {momentum}, warmup_epochs {warmup_epochs}, teacher_epochs "
            f"{teacher_epochs}: allowed are weight from 0, phi above 0, momentum in [0, 1), epochs from 0"
        )


ABOUT = About(class_distance, PAPER, is_system=True)
