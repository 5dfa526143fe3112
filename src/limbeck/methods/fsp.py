"""FSP: the student matches the teacher's flow between layers, then learns the task."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Setup, Stage, Tap, Term, from_student, tap, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.reading import sections

Pool = Literal["max", "average"]
Form = Literal["paper", "elements", "columns"]


def fsp_matrix(first: Tensor, last: Tensor, *, pool: Pool = "max") -> Tensor:
    """G (N, m, n): the mean over all places of F1_i * F2_j (Eq. 1).

    Args:
        first: F1, (N, m, H, W).
        last: F2, (N, n, H', W'). Where the sizes differ, each side is first pooled to the smaller of the two.
        pool: ``max``, as published, or ``average``.
    """
    size = (min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3]))
    pooling = F.adaptive_max_pool2d if pool == "max" else F.adaptive_avg_pool2d
    first, last = (one if one.shape[2:] == size else pooling(one, size) for one in (first, last))
    matrix: Tensor = first.flatten(2) @ last.flatten(2).mT / (size[0] * size[1])
    return matrix


def fsp_loss(student: Tensor, teacher: Tensor, *, form: Form = "paper") -> Tensor:
    """The distance of two FSP matrices (Eq. 2, one pair of layers).

    Args:
        student: G^S, (N, m, n).
        teacher: G^T, (N, m, n).
        form: ``paper``: the squared Frobenius norm, summed over m and n, mean over N. ``elements``: the mean over m
            and n too, as HobbitLong/RepDistiller (distiller_zoo/FSP.py). ``columns``: the norm of each column, not
            squared, summed over the columns, as torchdistill (losses/mid_level.py).
    """
    difference = student - teacher.detach()
    if form == "columns":
        norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norms.sum(dim=1).mean()
    squares = difference.square()
    return squares.mean() if form == "elements" else squares.sum(dim=(1, 2)).mean()


class FlowPair(nn.Module):
    """`fsp_loss` of a student's and a teacher's pair of layers.

    Args:
        adapters: applied to the student's two maps.
        orders: a fixed order of the teacher's channels in its first and its last map, (m,) and (n,); None leaves them.
            Another order of a network's channels is an equivalent network with another FSP matrix.
        pool: see `fsp_matrix`.
        form: see `fsp_loss`.
    """

    def __init__(
        self,
        adapters: tuple[nn.Module, nn.Module] = (nn.Identity(), nn.Identity()),
        orders: tuple[Tensor, Tensor] | None = None,
        *,
        pool: Pool = "max",
        form: Form = "paper",
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.first_order: Tensor | None
        self.last_order: Tensor | None
        self.register_buffer("first_order", None if orders is None else orders[0])
        self.register_buffer("last_order", None if orders is None else orders[1])
        self._pool, self._form = pool, form

    def forward(
        self, student_first: Tensor, student_last: Tensor, teacher_first: Tensor, teacher_last: Tensor
    ) -> Tensor:
        """The loss, a scalar; maps (N, C, H, W)."""
        first, last = (adapt(one) for adapt, one in zip(self.adapters, (student_first, student_last), strict=True))
        student = fsp_matrix(first, last, pool=self._pool)
        teacher = fsp_matrix(teacher_first, teacher_last, pool=self._pool)
        if self.first_order is not None and self.last_order is not None:
            teacher = teacher[:, self.first_order][:, :, self.last_order]
        return fsp_loss(student, teacher, form=self._form)


def fsp(
    setup: Setup,
    *,
    pairs: Literal["across", "in_section"] = "across",
    weight: float = 1.0,
    fsp_epochs: int | None = None,
    fsp_rate: float = 0.01,
    shuffle: bool = False,
    adapter: Literal["none", "conv1x1"] = "none",
    pool: Pool = "max",
    form: Form = "paper",
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """The flow of the solution procedure: first the student's FSP matrices follow the teacher's, then it learns alone.

    Stage ``fsp`` has no labels; stage ``task`` has no teacher, starts from the first's weights with a fresh optimizer,
    and is plain cross-entropy (Algorithm 1). One pair of layers a section, equal weights.

    Args:
        setup: epochs, optimizer and schedule.
        pairs: ``across``: from the section before (or the stem) to the section's last map, max-pooled where sizes
            differ. ``in_section``: from the section's first block to its last; for the first section from the stem.
        weight: lambda, of every pair; the paper does not give it.
        fsp_epochs: epochs of the first stage; by default as many as the second's. 0 leaves it out, for a student whose
            ``weights`` are those after another run's first stage (``after_fsp.safetensors``).
        fsp_rate: factor on the learning rate in the first stage: in the paper 0.001 against 0.1.
        shuffle: put the teacher's channels into an order drawn from the run's seed, so that students of several seeds
            learn different FSP matrices; for ensembles.
        adapter: ``conv1x1`` puts a learnable 1x1 convolution on each of the student's maps whose channels are not as
            many as the teacher's, one a map (an extension: the paper takes networks of equal widths only).
        pool: of the larger map: ``max`` as published, or ``average``.
        form: ``paper``, ``elements`` or ``columns``; see `fsp_loss`.
        student_layers: the maps in order, two or more, each forming a pair with the next; the default is ``pairs``.
        teacher_layers: likewise.

    Raises:
        LimbeckError: a network has no maps; the channels differ and there is no adapter; the layers are not in pairs;
            a number is out of range.
    """
    if not all(number >= 0 for number in (fsp_epochs or 0, weight, fsp_rate)):
        raise LimbeckError(f"got fsp_epochs {fsp_epochs}, weight {weight}, fsp_rate {fsp_rate}: none may be below 0")
    flows = list(
        zip(
            _flows(setup, "student", pairs, student_layers),
            _flows(setup, "teacher", pairs, teacher_layers),
            strict=False,
        )
    )[::-1]
    if bool(student_layers) != bool(teacher_layers) or len(student_layers) != len(teacher_layers):
        raise LimbeckError("student_layers and teacher_layers are named together, as many of one as of the other")
    channels = {one: setup.shape(one)[0] for flow in flows for pair in flow for one in pair}
    orders = {one: torch.randperm(count) for one, count in channels.items() if shuffle and one.source == "teacher"}
    bridges = {
        both: _bridge(*both, channels, adapter)
        for student, teacher in flows
        for both in zip(student, teacher, strict=True)
    }
    terms = {}
    for number, (student, teacher) in enumerate(flows, start=1):
        loss = FlowPair(
            (bridges[student[0], teacher[0]], bridges[student[1], teacher[1]]),
            (orders[teacher[0]], orders[teacher[1]]) if shuffle else None,
            pool=pool,
            form=form,
        )
        terms[f"fsp{number}"] = Term(loss, (*student, *teacher), weight)
    epochs = setup.epochs if fsp_epochs is None else fsp_epochs
    first = Stage("fsp", weighted(terms), epochs, setup.optimizer, lambda progress: fsp_rate * setup.schedule(progress))
    hard = {"hard": Term(hard_loss, (from_student(), TARGETS))}
    task = Stage("task", hard, setup.epochs, setup.optimizer, setup.schedule)
    return (first, task) if epochs else (task,)


def _flows(setup: Setup, network: str, pairs: str, layers: tuple[str, ...]) -> list[tuple[Tap, Tap]]:
    """The pairs of maps of one network, deepest first: so that of two networks the deepest meet."""
    if layers:
        if len(layers) < 2:
            raise LimbeckError(f"an FSP matrix is between two layers of a network, got {list(layers)}")
        named = [tap(network, layer) for layer in layers]
        for one in named:
            if len(setup.shape(one)) != 3:
                raise LimbeckError(f"an FSP matrix is of maps (C, H, W), but {one} gives {setup.shape(one)}")
        return list(pairwise(named))[::-1]
    found, stem = sections(setup, network, method="fsp"), setup.outline(network).stem
    firsts = [section.last for section in found[:-1]] if pairs == "across" else [one.first for one in found[1:]]
    starts = [stem if stem is not None else found[0].first, *firsts]
    return list(zip(starts, [section.last for section in found], strict=True))[::-1]


def _bridge(one: Tap, other: Tap, channels: dict[Tap, int], adapter: str) -> nn.Module:
    """What takes a student's map to the channels of the teacher's."""
    if channels[one] == channels[other]:
        return nn.Identity()
    if adapter == "conv1x1":
        return nn.Conv2d(channels[one], channels[other], 1)
    raise LimbeckError(
        f"{one} has {channels[one]} channels and {other} {channels[other]}: FSP matrices compare networks of "
        "equal widths; set adapter: conv1x1 to bridge them"
    )


ABOUT = About(
    fsp,
    paper=Paper(
        "Yim et al.",
        "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        2017,
        venue="CVPR",
    ),
    is_system=True,
)
