"""FSP: the student matches the teacher's flow between layers, then learns the task."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.reading import network_maps, sections
from limbeck.methods.shared import check_at_least, stage_epochs

PAPER = Paper(
    "Yim et al.",
    "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
    2017,
    venue="CVPR",
)

Pool = Literal["max", "average"]
Form = Literal["paper", "elements", "columns"]


def fsp_matrix(first: Tensor, last: Tensor, *, pool: Pool = "max") -> Tensor:
    """G (N, m, n), the mean over all positions of F1_i * F2_j (Eq. 1).

    Args:
        first: F1, (N, m, H, W).
        last: F2, (N, n, H', W'). If the sizes differ, both maps are first pooled to the smaller height and width.
        pool: "max", as published, or "average".
    """
    size = (min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3]))
    pooling = F.adaptive_max_pool2d if pool == "max" else F.adaptive_avg_pool2d
    first, last = (maps if maps.shape[2:] == size else pooling(maps, size) for maps in (first, last))
    return first.flatten(2) @ last.flatten(2).mT / (size[0] * size[1])


def fsp_loss(student: Tensor, teacher: Tensor, *, form: Form = "paper") -> Tensor:
    """The distance between two FSP matrices (Eq. 2 for one pair of layers). No gradient flows to the teacher.

    Args:
        student: G^S, (N, m, n).
        teacher: G^T, (N, m, n).
        form: "paper" is the squared Frobenius norm, averaged over N. "elements" also averages over m and n, as in
            HobbitLong/RepDistiller (distiller_zoo/FSP.py). "columns" sums the norms of the columns, not squared, as in
            torchdistill (losses/mid_level.py).
    """
    difference = student - teacher.detach()
    if form == "columns":
        norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norms.sum(dim=1).mean()
    squares = difference.square()
    return squares.mean() if form == "elements" else squares.sum(dim=(1, 2)).mean()


class FlowPair(nn.Module):
    """`fsp_loss` for one pair of layers of the student and of the teacher.

    Args:
        adapters: modules applied to the student's two maps.
        orders: fixed permutations (m,) and (n,) of the channels of the teacher's first and last map, or None. A network
            with permuted channels is equivalent but has another FSP matrix.
        pool, form: see `fsp_matrix` and `fsp_loss`.
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
        first, last = (adapt(maps) for adapt, maps in zip(self.adapters, (student_first, student_last), strict=True))
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
    """Flow of the solution procedure: the student first matches the teacher's FSP matrices, then learns the task.

    Stage ``fsp`` uses no labels. Stage ``task`` uses no teacher: it starts from the weights of the first stage with a
    fresh optimizer and minimises the cross-entropy (Algorithm 1). There is one pair of layers for each section, and
    all pairs have equal weights.

    Args:
        setup: epochs, optimizer and schedule.
        pairs: "across" pairs the last map of a section with that of the previous section, or with the stem for the
            first. "in_section" pairs the first and last block of a section; the first section starts at the stem.
        weight: lambda, the weight of every pair; the paper does not give it.
        fsp_epochs: epochs of the first stage; the default is the recipe's. 0 skips the stage, for a student whose
            ``weights`` are those after the first stage of another run (``after_fsp.safetensors``).
        fsp_rate: factor on the learning rate in the first stage; the paper uses 0.001 instead of 0.1.
        shuffle: permute the teacher's channels with the run's seed, so that students of several seeds learn different
            FSP matrices; for ensembles.
        adapter: "conv1x1" adds a learnable 1x1 convolution to each map of the student whose number of channels differs
            from the teacher's. This is an extension: the paper uses networks of equal widths.
        pool: pooling of the larger map, "max" as published or "average".
        form: "paper", "elements" or "columns"; see `fsp_loss`.
        student_layers: two or more layers in order, each paired with the next; the default follows ``pairs``.
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: a network has no maps; the channels differ and there is no adapter; the layers do not come in
            pairs; an option is out of range.
    """
    check_at_least(0, "weight", weight)
    check_at_least(0, "fsp_rate", fsp_rate)
    epochs = stage_epochs(setup, "fsp_epochs", fsp_epochs, least=0)
    layers = {"student": student_layers, "teacher": teacher_layers}
    flows = list(zip(*(_flows(setup, network, pairs, named) for network, named in layers.items()), strict=False))[::-1]
    if len(student_layers) != len(teacher_layers):
        raise LimbeckError("student_layers and teacher_layers must be given together and have the same length")
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
    first = Stage("fsp", weighted(terms), epochs, setup.optimizer, lambda progress: fsp_rate * setup.schedule(progress))
    hard = {"hard": hard_term(setup, from_student())}
    task = Stage("task", hard, setup.epochs, setup.optimizer, setup.schedule)
    return (first, task) if epochs else (task,)


def _flows(setup: Setup, network: str, pairs: str, layers: tuple[str, ...]) -> list[tuple[Tap, Tap]]:
    """The pairs of maps of one network, deepest first, because two networks are matched from the deepest pair."""
    if layers:
        if len(layers) < 2:
            raise LimbeckError(f"an FSP matrix needs two layers of a network, got {list(layers)}")
        return list(pairwise(network_maps(setup, network, layers, method="fsp")))[::-1]
    found, stem = sections(setup, network, method="fsp"), setup.outline(network).stem
    firsts = [section.last for section in found[:-1]] if pairs == "across" else [one.first for one in found[1:]]
    starts = [stem if stem is not None else found[0].first, *firsts]
    return list(zip(starts, [section.last for section in found], strict=True))[::-1]


def _bridge(one: Tap, other: Tap, channels: dict[Tap, int], adapter: str) -> nn.Module:
    """The module that maps the student's channels to the teacher's."""
    if channels[one] == channels[other]:
        return nn.Identity()
    if adapter == "conv1x1":
        return nn.Conv2d(channels[one], channels[other], 1)
    raise LimbeckError(
        f"{one} has {channels[one]} channels and {other} has {channels[other]}: FSP matrices compare networks of "
        "equal widths; set adapter: conv1x1 to adapt the student"
    )


ABOUT = About(fsp, PAPER, is_system=True, tasks=EVERY_TASK)
