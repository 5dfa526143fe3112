"""Clipping, accumulation, averaged weights and frozen layers: options that change the step of the optimizer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from limbeck.core import LimbeckError, Networks, Stage, Tap
from limbeck.taps import check, layer_of
from limbeck.train.freeze import frozen, learners
from limbeck.train.quantise import Quantise


@dataclass(frozen=True)
class Regime:
    """Options of a training. Layers are those of the trained network, whose name in a stage is ``student``."""

    clip: float | None = None  # the largest norm of all gradients together
    accumulate: int = 1  # batches for each step
    ema: float | None = None  # decay of the average of the weights, see `Average`
    warmup: int = 0  # epochs in which the learning rate rises linearly, before the schedule of each stage
    freeze: tuple[str, ...] = ()  # layers that do not change in the first epochs of each stage
    freeze_epochs: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)  # factors on the learning rate by layer
    keep: Literal["last", "best"] = "last"  # which epoch of the last stage gives the student
    stop_after: int | None = None  # epochs of the last stage without a better validation score
    sync_batch_norm: bool = True  # of several processes: BatchNorm has the statistics of the whole batch
    quantise: Quantise | None = None  # a last stage, see `limbeck.train.quantise`

    @property
    def every_batch(self) -> bool:
        """Whether each batch is one plain step of the optimizer."""
        return self.clip is None and self.accumulate == 1 and self.ema is None and not self.freeze

    @property
    def selects(self) -> bool:
        """Whether the validation score of each epoch is needed."""
        return self.keep == "best" or self.stop_after is not None

    def averages(self, stage: Stage) -> bool:
        """Whether the weights are averaged in a stage, which is so if the student learns in it."""
        return self.ema is not None and "student" in stage.networks


PLAIN = Regime()


class Average:
    """An exponential moving average of parameters (Polyak and Juditsky 1992).

    After update t, the average is ``d * average + (1 - d) * parameters`` with ``d = min(decay, (1 + t) / (10 + t))``,
    as in TensorFlow's ``ExponentialMovingAverage``, so that the initial weights soon lose their influence. While the
    parameters are trained, this object holds the average; `swap` exchanges the two.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay, self._updates = parameters, decay, 0
        self._others = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the trained weights."""
        for parameter, other in zip(self._parameters, self._others, strict=True):
            held = parameter.clone()
            parameter.copy_(other)
            other.copy_(held)

    def update(self) -> None:
        """Update the average after a step of the optimizer."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self._others, list(self._parameters), None)

    def state(self) -> dict[str, Any]:
        """Return what exact resume needs: the number of updates, and the tensors that this object holds."""
        weights = {str(place): one for place, one in enumerate(self._others)}
        return {"average": {"updates": self._updates, "weights": weights}}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._updates = state["average"]["updates"]
        for place, other in enumerate(self._others):
            other.copy_(state["average"]["weights"][str(place)])


class Updater:
    """The steps of one stage under a regime.

    Args:
        regime: its clipping, accumulation, average and frozen layers are used here.
        stage: the stage that is trained.
        networks: by name.
        optimizer: the optimizer of the stage.
        learning: the parameters that learn in the stage.

    Attributes:
        average: of the weights; None if they are not averaged in the stage.
    """

    def __init__(
        self, regime: Regime, stage: Stage, networks: Networks, optimizer: Optimizer, learning: Sequence[nn.Parameter]
    ) -> None:
        self._regime, self._networks = regime, networks
        self._optimizer, self._learning = optimizer, learning
        self.average = Average(learning, regime.ema) if regime.ema and regime.averages(stage) else None
        self._batches = self._samples = 0  # whose gradients are accumulated
        self._left = 0  # batches of the epoch

    @contextmanager
    def epoch(self, number: int, batches: int) -> Iterator[None]:
        """Train epoch ``number`` (from 0), of so many batches, inside the block.

        Outside, the networks hold the averaged weights.

        Raises:
            LimbeckError: fewer or more batches were added, so that gradients are left that were not used.
        """
        self._left = batches
        layers = self._regime.freeze if number < self._regime.freeze_epochs else ()
        swap = self.average.swap if self.average is not None else lambda: None
        with frozen(_modules(layers, self._networks)):
            swap()
            yield
            swap()
        if self._left:
            given = batches - self._left
            raise LimbeckError(f"epoch {number + 1} had {given} batches, but the length of their source is {batches}")

    @property
    def completes(self) -> bool:
        """Whether the next batch is the last one of a step."""
        return self._batches + 1 == self._regime.accumulate or self._left == 1

    def add(self, loss: Tensor, samples: int) -> None:
        """Accumulate the gradients of a batch's loss; after the last batch of a step, update the weights."""
        completes = self.completes
        # the step divides the gradients by the number of samples in all its batches
        total: Tensor = loss if self._regime.accumulate == 1 else samples * loss
        total.backward()  # type: ignore[no-untyped-call]
        self._batches += 1
        self._samples += samples
        self._left -= 1
        if completes:
            self._step()

    def _step(self) -> None:
        if self._regime.accumulate > 1:
            for parameter in self._learning:
                if parameter.grad is not None:
                    parameter.grad /= self._samples
        if self._regime.clip is not None:
            clip_grad_norm_(self._learning, self._regime.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._batches = self._samples = 0
        if self.average is not None:
            self.average.update()


def _modules(layers: Iterable[str], networks: Networks) -> list[nn.Module]:
    """Return the modules in these layers of the student."""
    return [module for layer in layers for module in layer_of(networks["student"], layer).modules()]


def check_regime(regime: Regime, stages: Sequence[Stage], networks: Networks) -> None:
    """Raise LimbeckError if a layer of the regime does not exist, or the regime does not fit the stages."""
    for layer in (*regime.freeze, *regime.rates):
        check({"network": networks["student"]}, Tap("network", layer))
        if not list(layer_of(networks["student"], layer).parameters()):
            raise LimbeckError(f"freeze and rates: the layer {layer!r} has no parameters")
    held = {parameter for module in _modules(regime.freeze, networks) for parameter in module.parameters(False)}
    for stage in stages:
        if regime.warmup >= stage.epochs:
            raise LimbeckError(
                f"warmup is {regime.warmup} epochs, but stage {stage.name!r} has {stage.epochs}: it must be shorter"
            )
        parts = [*learners(stage, networks), *stage.losses]
        learning = {one for part in parts for one in part.parameters() if one.requires_grad}
        if learning and learning <= held:
            raise LimbeckError(f"freeze: nothing else learns in stage {stage.name!r}: remove a layer")
    if regime.selects and "student" not in stages[-1].networks:
        raise LimbeckError(
            f"keep: best and stop_after select an epoch of the last stage, but stage {stages[-1].name!r} does not "
            "train the student: remove these keys"
        )
