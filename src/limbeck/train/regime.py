"""How gradients change the weights, beyond one step of the optimizer for each batch."""

from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Regime:
    """Options of a training; layers are those of the network that is trained, the student."""

    clip: float | None = None  # the largest norm of the gradients of all that learns
    accumulate: int = 1  # batches for each step
    ema: float | None = None  # decay of the average of the weights, see `Average`
    warmup: int = 0  # epochs of a linear rise of the learning rate, before each stage's schedule
    freeze: tuple[str, ...] = ()  # layers that do not change in the first epochs of each stage
    freeze_epochs: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)  # factors on the learning rate by layer
    keep: Literal["last", "best"] = "last"  # which epoch of the last stage gives the student
    stop_after: int | None = None  # epochs of the last stage without a better validation score

    @property
    def every_batch(self) -> bool:
        """Whether each batch is one step of the optimizer and nothing else."""
        return self.clip is None and self.accumulate == 1 and self.ema is None and not self.freeze

    @property
    def selects(self) -> bool:
        """Whether the validation score of each epoch is needed."""
        return self.keep == "best" or self.stop_after is not None

    def averages(self, stage: Stage) -> bool:
        """Whether the weights are averaged in a stage: where the student learns."""
        return self.ema is not None and "student" in stage.networks


PLAIN = Regime()


class Average:
    """An exponential moving average of parameters (Polyak and Juditsky 1992).

    After update t, the average is ``d * average + (1 - d) * parameters`` with ``d = min(decay, (1 + t) / (10 + t))``,
    as in TensorFlow's ``ExponentialMovingAverage``, so that the initial weights are soon forgotten. While the
    parameters are trained, this object holds their average; `swap` exchanges the two.
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
        """Follow a step of the optimizer."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        follow(self._others, list(self._parameters), None)

    def state(self) -> dict[str, Any]:
        """The number of updates, and the tensors that the parameters do not hold."""
        return {"updates": self._updates, "weights": {str(place): one for place, one in enumerate(self._others)}}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._updates = state["updates"]
        for place, other in enumerate(self._others):
            other.copy_(state["weights"][str(place)])


class Updater:
    """The steps of one stage under a regime.

    Args:
        regime: clipping, accumulation, average and frozen layers are used here.
        stage: which is trained.
        networks: by name.
        optimizer: of the stage.
        learning: the parameters that learn in it.
    """

    def __init__(
        self,
        regime: Regime,
        stage: Stage,
        networks: Networks,
        optimizer: Optimizer,
        learning: Sequence[nn.Parameter],
    ) -> None:
        self._regime, self._networks = regime, networks
        self._optimizer, self._learning = optimizer, learning
        self._average = Average(learning, regime.ema) if regime.ema and regime.averages(stage) else None
        self._batches = self._samples = 0  # whose gradients are accumulated

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """Around the epoch ``number`` of the stage, from 0. Outside of it, the networks hold the averaged weights."""
        layers = self._regime.freeze if number < self._regime.freeze_epochs else ()
        with frozen(held_modules(layers, self._networks)):
            if self._average is not None:
                self._average.swap()
            yield
            if self._batches:
                self._step()
            if self._average is not None:
                self._average.swap()

    def add(self, loss: Tensor, samples: int) -> None:
        """Accumulate the gradients of a batch's loss; after the last batch of a step, update the weights."""
        # the step divides by the samples of all its batches, whatever their number
        total: Tensor = loss if self._regime.accumulate == 1 else samples * loss
        total.backward()  # type: ignore[no-untyped-call]
        self._batches += 1
        self._samples += samples
        if self._batches == self._regime.accumulate:
            self._step()

    def state(self) -> dict[str, Any]:
        """What exact resume needs after an epoch."""
        return {} if self._average is None else {"average": self._average.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        if self._average is not None:
            self._average.load(state["average"])

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
        if self._average is not None:
            self._average.update()


def held_modules(layers: Sequence[str], networks: Networks) -> list[nn.Module]:
    """The modules of the student's layers of these names.

    Raises:
        LimbeckError: there is no such layer.
    """
    for layer in layers:
        check(networks, Tap("student", layer))
    return [module for layer in layers for module in layer_of(networks["student"], layer).modules()]


def check_regime(regime: Regime, stages: Sequence[Stage], networks: Networks) -> None:
    """Raise LimbeckError where stages cannot be trained under a regime."""
    held = {parameter for module in held_modules(regime.freeze, networks) for parameter in module.parameters(False)}
    for layer in regime.rates:
        check(networks, Tap("student", layer))
        if not any(True for _ in layer_of(networks["student"], layer).parameters()):
            raise LimbeckError(f"rates: the layer {layer!r} of the student has no parameters")
    for stage in stages:
        if regime.warmup >= stage.epochs:
            raise LimbeckError(
                f"warmup is {regime.warmup} epochs, but stage {stage.name!r} has {stage.epochs}: it must be shorter"
            )
        parts = [*learners(stage, networks), *stage.losses]
        learning = {one for part in parts for one in part.parameters() if one.requires_grad}
        if learning and learning <= held:
            raise LimbeckError(f"freeze: in stage {stage.name!r} nothing else learns: leave out a layer")
    if regime.selects and stages and "student" not in stages[-1].networks:
        raise LimbeckError(
            f"keep and stop_after choose an epoch of the last stage, and stage {stages[-1].name!r} does not train "
            "the student: remove them"
        )
