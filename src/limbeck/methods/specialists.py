"""Specialists: for each group of classes that the teacher confuses, a copy of it that learns to distinguish them."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from limbeck.core import (
    TARGETS,
    LimbeckError,
    Schedule,
    Setup,
    Stage,
    Sweep,
    Tap,
    Term,
    from_student,
    from_teacher,
    weighted,
)
from limbeck.methods.about import About
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import wide
from limbeck.methods.kd import PAPER, soft_loss
from limbeck.methods.shared import check_above_zero, class_indices


def specialist_loss(logits: Tensor, targets: Tensor, groups: Tensor, shares: Tensor, *, group: int) -> Tensor:
    """Cross-entropy over the classes of a group and the dustbin, all other classes together; averaged over N.

    A sample has the weight 1 / (2 share) in the group and 1 / (2 (1 - share)) outside, where the share is that of the
    group in the training set.

    Args:
        logits: (N, K).
        targets: class indices (N,).
        groups: (K,) int64, the group of each class.
        shares: (K,), the share of each class in the training set.
        group: which one it is.
    """
    inside = groups == group
    share, log_p = torch.where(inside, shares, 0).sum(), logits.log_softmax(dim=1)
    own = log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    dustbin = log_p.masked_fill(inside, -torch.inf).logsumexp(dim=1)
    return -torch.where(inside[targets], own / (2 * share), dustbin / (2 * (1 - share))).mean()


def combine(teacher: Tensor, specialist: Tensor, inside: Tensor, share: Tensor) -> Tensor:
    """Log q (N, K), where q minimises KL(p_g || q) + KL(p_m || q) (Eq. 5 with one specialist for each sample, T = 1).

    p_g is the teacher's distribution, and p_m the specialist's over its group and the dustbin, whose logit is raised by
    log((1 - share) / share). Up to a constant, the sum is the cross-entropy of q with p_g + p_m, over the group and the
    dustbin, plus that with p_g of how q divides the dustbin. So q is (p_g + p_m) / 2 in the group and for the whole
    dustbin, which is divided in proportion to p_g.

    Args:
        teacher: logits (N, K).
        specialist: logits (N, K), each row of the specialist of this sample.
        inside: (N, K) bool, the classes of its group.
        share: (N,), the share of its group in the training set.
    """
    shift = torch.where(inside, 0, torch.log((1 - share) / share).unsqueeze(1))
    log_g, log_m = wide(teacher).log_softmax(dim=1), (wide(specialist) + shift).log_softmax(dim=1)
    rest_g, rest_m = (one.masked_fill(inside, -torch.inf).logsumexp(dim=1, keepdim=True) for one in (log_g, log_m))
    rest = log_g - rest_g + torch.logaddexp(rest_g, rest_m)
    return torch.where(inside, torch.logaddexp(log_g, log_m), rest) - math.log(2)


def combined_loss(
    student: Tensor, teacher: Tensor, *specialists: Tensor, groups: Tensor, shares: Tensor, temperature: float
) -> Tensor:
    """`soft_loss` with `combine` of the teacher and the specialist for its most probable class; logits (N, K)."""
    group = groups[teacher.argmax(dim=1)]
    inside = groups == group.unsqueeze(1)
    share = torch.where(inside, shares, 0).sum(dim=1)
    specialist = torch.stack(specialists)[group, torch.arange(len(group), device=group.device)]
    return soft_loss(student, combine(teacher, specialist, inside, share), temperature=temperature)


def divided(sweep: Sweep, present: Tensor, count: int) -> Tensor:
    """The group of each class, (K,) int64, by k-means on the covariance matrix of the teacher's predictions.

    A class that is not ``present`` (K,) in the training set joins the group with the nearest centre.

    Raises:
        LimbeckError: there are fewer groups than ``count``, because the columns of the matrix are equal.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    samples, sums, products = 0, torch.zeros(()), torch.zeros(())
    for (logits,) in sweep(from_teacher()):
        p = wide(logits).softmax(dim=1)
        samples, sums, products = samples + len(p), sums.to(p) + p.sum(dim=0), products.to(p) + p.T @ p
    mean = sums / samples
    columns = (products / samples - mean.outer(mean)).cpu().numpy()
    means = KMeans(count, n_init=10, random_state=0)
    with threadpool_limits(1), warnings.catch_warnings():  # several threads add in any order
        warnings.simplefilter("ignore")  # equal columns
        found = len(set(means.fit_predict(columns[present.cpu().numpy()])))
        if found < count:
            raise LimbeckError(
                f"the teacher's predictions divide the classes into {found} group{'s' * (found != 1)}, but there are "
                f"{count} specialists: name fewer networks, or choose another teacher"
            )
        return torch.from_numpy(means.predict(columns)).long()


class OfGroups(nn.Module):
    """A loss of the tensors that a term reads and of the buffers of a module that all stages share."""

    def __init__(self, loss: Callable[..., Tensor], shared: nn.Module) -> None:
        super().__init__()
        self._loss, self.shared = loss, shared

    def forward(self, *reads: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self._loss(*reads, **dict(self.shared.named_buffers()))


def specialists(
    setup: Setup, *, temperature: float = 4.0, hard: float | Schedule = 0.1, soft: float | Schedule = 0.9
) -> tuple[Stage, ...]:
    """The student learns from the teacher and from specialists for the groups of classes that the teacher confuses.

    The specialists are the networks under ``networks:``, two or more with the teacher's architecture (section 5).
    K-means on the covariance matrix of the teacher's predictions divides the classes into as many groups. A specialist
    starts with the teacher's weights. It learns to distinguish the classes of its group from each other and from all
    other classes together, the dustbin. In the last stage, the student learns from the labels, and from the
    distribution that best fits the teacher and the specialist for the teacher's most probable class.

    The paper does not distil the specialists into one network (section 8). Other differences: a specialist keeps the
    logits of all classes, and the logit of its dustbin is the log-sum-exp of those outside of its group. Its samples
    are weighted so that its group has half of the weight in expectation (not with ``balanced: true``), as if half of
    each batch were drawn from the group. The classes are divided in one pass over the training set, not online.
    Temperature and weights are those of `kd`. Weights that a recipe gives the specialists are replaced.

    Args:
        setup: epochs, optimizer and schedule of every stage.
        temperature: T of the student's soft targets; specialists learn and are combined with T = 1.
        hard: weight of the student's cross-entropy with the labels.
        soft: weight of the student's soft targets.

    Raises:
        LimbeckError: there are fewer than two specialists, or fewer than two classes for each; one has another
            architecture than the teacher; the targets are not class indices; the temperature is not above 0.
    """
    class_indices(setup, "specialists")
    check_above_zero("temperature", temperature)
    names = [name for name in setup.networks if name not in ("student", "teacher")]
    counts = torch.bincount(setup.targets, minlength=setup.classes)
    present = counts > 0
    if not 2 <= len(names) <= int(present.sum()) // 2:
        raise LimbeckError(
            f"the number of specialists under networks: is {len(names)}, and the training set has {int(present.sum())} "
            "classes: there must be at least two specialists, and two classes for each"
        )

    def layout(name: str) -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
        network = setup.module(name, "")
        parts = repr(network).replace("FSDP", "")  # the prefix of the classes in a divided network
        return parts, [(key, tuple(one.shape)) for key, one in network.state_dict().items()]

    def inputs(name: str) -> list[str]:
        """What converts the inputs of a network."""
        return [repr(hook) for hook in setup.module(name, "")._forward_pre_hooks.values()]

    for name in names:
        if layout(name) != layout("teacher"):
            raise LimbeckError(
                f"the {name} is another network than the teacher, with whose weights it starts: give it the model of "
                "the teacher, which must not be an ensemble"
            )
    other = "the teacher reads inputs of another form than the specialists, which start with its weights: give them "
    notes = (f"{other}its input",) if any(inputs(name) != inputs("teacher") for name in names) else ()
    shared = nn.Module()
    shared.register_buffer("shares", counts / counts.sum())
    # The checks before training evaluate the losses: until the classes are divided, each group has training samples.
    shared.register_buffer("groups", present.cumsum(0) % len(names))

    def start(sweep: Sweep, name: str) -> None:
        if sweep.epoch == 0:
            if name == names[0]:
                shared.get_buffer("groups").copy_(divided(sweep, present, len(names)))
            state = setup.module("teacher", "").state_dict()
            # a divided teacher has parts of its weights in each process, and the method of a part gathers them
            whole = {key: getattr(one, "full_tensor", partial(torch.clone, one))() for key, one in state.items()}
            setup.module(name, "").load_state_dict(whole)

    common = setup.epochs, setup.optimizer, setup.schedule
    stages = []
    for group, name in enumerate(names):
        term = Term(OfGroups(partial(specialist_loss, group=group), shared), (Tap(name), TARGETS))
        begin = partial(start, name=name)
        stages.append(Stage(name, {"specialist": term}, *common, learns=(name,), prepare=begin, notes=notes))
    loss = OfGroups(partial(combined_loss, temperature=temperature), shared)
    terms = {
        "hard": hard_term(setup, from_student(), hard),
        "soft": Term(loss, (from_student(), from_teacher(), *map(Tap, names)), soft),
    }
    return (*stages, Stage("student", weighted(terms), *common))


_NETWORKS = {"student": "resnet8", "teacher": "resnet14", "specialist1": "resnet14", "specialist2": "resnet14"}
ABOUT = About(specialists, PAPER, networks=_NETWORKS)
