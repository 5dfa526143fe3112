"""The nouns of limbeck: everything a distillation method needs is said with the types on this page.

A method is a function that returns stages; a stage is a set of terms; a term is ``weight * loss(*reads)``; a read
is a tap: one tensor of one network or of the batch. This module imports nothing else of limbeck but its error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.errors import LimbeckError as LimbeckError
from limbeck.errors import NoClassifier as NoClassifier

Networks = Mapping[str, nn.Module]
"""The networks of a run by name: ``student``, ``teacher``, and any more that a method names."""

Loss = Callable[..., Tensor]
"""The tensors a term reads, in order, to a scalar."""

Schedule = Callable[[float], float]
"""A value as a function of a stage's progress in [0, 1)."""

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Parameters to a fresh optimizer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step sees; N is the batch size."""

    inputs: Tensor  #: (N, C, H, W) or (N, D) float, normalised
    targets: Tensor  #: (N,) int64 class indices, (N, K) of `limbeck.data.soft_targets`, or (N, ...) float of regression
    index: Tensor  #: (N,) int64, the sample's place in its split
    view: int  #: which augmented view of each sample this is
    total: int = 0  #: the samples of the whole batch, of which each of several processes has a part


class Tap(NamedTuple):
    """One tensor to read."""

    source: str  #: a network's name, or "batch"
    layer: str = ""  #: a module's name as in named_modules(), "" for the whole network; or a field of the batch
    side: str = "output"  #: or "input": the tensor that enters the module
    run: int | None = None  #: which of the module's runs in one forward, from 0; None: it runs once

    def __str__(self) -> str:
        place = f"{self.source}.{self.layer}" if self.layer else self.source
        notes = [self.side] if self.side != "output" else []
        notes += [f"run {self.run}"] if self.run is not None else []
        return f"{place} ({', '.join(notes)})" if notes else place


def from_student(layer: str = "", side: str = "output") -> Tap:
    """A tap into the student."""
    return Tap("student", layer, side)


def from_teacher(layer: str = "", side: str = "output") -> Tap:
    """A tap into the teacher."""
    return Tap("teacher", layer, side)


def tap(source: str, text: str) -> Tap:
    """A tap as a recipe writes it: ``layer``, ``layer:input``, or ``layer:input:1`` for the module's second run.

    Raises:
        LimbeckError: the side is neither ``input`` nor ``output``, or the run is no whole number from 0.
    """
    layer, _, rest = text.partition(":")
    side, _, run = rest.partition(":")
    if side not in ("", "input", "output") or not (run == "" or run.isdecimal()):
        raise LimbeckError(f"the tap {text!r} is not written as layer, layer:input, layer:input:1 or layer:output:1")
    return Tap(source, layer, side or "output", int(run) if run else None)


Reader = Callable[[Batch], Mapping[Tap, Tensor]]
"""How a frozen network's tensors are read: from a fused copy, compiled, or from a store."""

TARGETS = Tap("batch", "targets")  #: the labels of the batch


@dataclass(frozen=True)
class Term:
    """One summand of the objective: ``weight * loss(*reads)``."""

    loss: Loss  #: a function; an nn.Module where it owns parameters or state
    reads: tuple[Tap, ...]  #: student first
    weight: float | Schedule = 1.0


class Outputs(Protocol):
    """A frozen teacher's tensors that were computed before training."""

    @property
    def taps(self) -> frozenset[Tap]:
        """The taps whose tensors are stored."""

    @property
    def rows(self) -> int:
        """The number of samples of a view."""

    def read(self, index: Tensor, view: int) -> Mapping[Tap, Tensor]:
        """The rows of every tap, in at least 32 bits, for the samples ``index`` (N,) int64 in a view."""


class Sweep(Protocol):
    """A pass over the training set, which a stage's ``prepare`` receives."""

    epoch: int  #: the epoch of the stage that is about to start, from 0

    def __call__(self, *taps: Tap) -> Iterator[tuple[Tensor, ...]]:
        """The taps' tensors, batch by batch: every sample once, not augmented, in eval mode, without gradients."""


@dataclass(frozen=True)
class Stage:
    """A part of the training, as plain data."""

    name: str
    terms: Mapping[str, Term]
    epochs: int
    optimizer: MakeOptimizer  #: every stage starts with a fresh one
    schedule: Schedule  #: factor on the learning rate
    learns: tuple[str, ...] = ("student",)  #: "network", or "network.layer"; all else is frozen and in eval mode
    prepare: Callable[[Sweep], None] | None = None  #: before each epoch, for example to compute class centres
    finish: Callable[[], None] | None = None  #: after the last epoch, for example to copy the teacher's classifier
    notes: tuple[str, ...] = ()  #: choices of the method that a user should know; shown before training

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that learn, or of which a part does, in the order of ``learns``."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.learns))

    @property
    def losses(self) -> tuple[nn.Module, ...]:
        """The losses that are modules."""
        return tuple(term.loss for term in self.terms.values() if isinstance(term.loss, nn.Module))

    @property
    def reads(self) -> tuple[Tap, ...]:
        """All taps of the terms, each once."""
        return tuple(dict.fromkeys(tap for term in self.terms.values() for tap in term.reads))


@dataclass(frozen=True)
class Section:
    """Consecutive layers of a network whose maps (N, C, H, W) have the same size."""

    first: Tap  #: the output of its first block
    last: Tap  #: the output of its last block
    #: `last` before its activation; without an activation, `last` itself or the BatchNorm of it in the next block
    pre_activation: Tap
    activation: str = ""  #: the activation layer whose output `last` is; "" if there is none
    norm: str = ""  #: the last BatchNorm layer up to `pre_activation`; "" if there is none


@dataclass(frozen=True)
class Outline:
    """The parts of a network that methods read by default, found by one dry run."""

    classifier: str  #: the linear layer that gives the logits
    feature: Tap  #: the input of the classifier, (N, D)
    sections: tuple[Section, ...]  #: shallow to deep; empty if the network has no maps
    stem: Tap | None  #: the input of the first section's first block; None without sections
    pools: bool  #: whether the feature is the mean of the last section's map over its positions
    nonnegative: bool  #: whether the feature had no negative value in the dry run, as after a ReLU
    hidden: tuple[Tap, ...]  #: without maps: token blocks (N, L, D) or hidden layers (N, D)


@dataclass(frozen=True)
class Setup:
    """The argument of every method besides its hyper-parameters."""

    epochs: int
    optimizer: MakeOptimizer
    schedule: Schedule
    shape: Callable[[Tap], tuple[int, ...]]  #: of one sample's tensor, without N; from one dry run
    module: Callable[[str, str], nn.Module]  #: (network's name, layer's name) -> that module
    below: Callable[[Tap], tuple[nn.Parameter, ...]]  #: the parameters that a tap's tensor depends on
    outline: Callable[[str], Outline]  #: of the network of that name
    networks: tuple[str, ...]  #: the names
    classes: int  #: outputs of a network: classes; of other tasks, labels, numbers or coordinates
    targets: Tensor  #: (n,) int64: the training set's labels, by `Batch.index`; or those of `limbeck.data.targets`
    batch_size: int
    hard_loss: Loss | None = None  #: of outputs and targets; None: the cross-entropy of classes
    soft_loss: Loss | None = None  #: of outputs and the teachers', with options; None: that of `kd`
    soft_targets: tuple[str, ...] = ()  #: why the batch's targets are (N, K), such as "mixup"; empty: class indices
    teacher_logits: tuple[Tap, ...] = (from_teacher(),)  #: its outputs: of an ensemble of distributions, each member's


def weighted(terms: Mapping[str, Term]) -> Mapping[str, Term]:
    """The terms whose weight is not 0; the others cost nothing.

    Raises:
        LimbeckError: all weights are 0.
    """
    kept = {name: term for name, term in terms.items() if term.weight != 0}
    if not kept:
        raise LimbeckError(f"the weights {' and '.join(terms)} are all 0: nothing would be learnt")
    return kept


Method = Callable[..., tuple[Stage, ...]]
"""``(setup, *, hyper-parameters) -> stages``; the keyword arguments are the recipe's keys."""
