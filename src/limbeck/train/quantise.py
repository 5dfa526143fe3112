"""A last stage in which the student learns to be quantised, with the terms of the stage before it.

Weights and inputs of convolutions and linear layers are rounded in every forward, and gradients pass as if they were
not, where they are in range (B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; the straight-through estimator of Bengio et al. 2013). Weights have one
symmetric scale for each output channel, so that a BatchNorm behind the layer can be folded into them without leaving
the grid; inputs have one scale and a zero point, from their range on training samples before each epoch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from limbeck.core import LimbeckError, MakeOptimizer, Networks, Stage, Sweep, Tap, Term

STAGE = "quantise"

SAMPLES = 512
"""The training samples, at least, on which the ranges of inputs are measured."""

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # not subclasses, which may use their weights in other ways


@dataclass(frozen=True)
class Quantise:
    """How the student learns to be quantised.

    Args:
        bits: of weights and inputs.
        epochs: of the stage.
        rate: the factor on the learning rate.
    """

    bits: int = 8
    epochs: int = 5
    rate: float = 0.1


def with_quantised(stages: tuple[Stage, ...], networks: Networks, options: Quantise) -> tuple[Stage, ...]:
    """The stages with one more. What the last stage does at its end is done after the new one.

    Raises:
        LimbeckError: the last stage does not train the whole student, or the student has no layer to quantise.
    """
    last = stages[-1]
    if "student" not in last.learns:
        raise LimbeckError(f"quantise: stage {last.name!r}, the last one, does not train the whole student")
    layers = [one for one in networks["student"].modules() if type(one) in _LAYERS and "weight" in one._parameters]
    if not layers:
        raise LimbeckError("quantise: the student has no convolution and no linear layer whose weight is a parameter")
    rounding = Rounding(layers, options.bits)

    def prepare(sweep: Sweep) -> None:
        if last.prepare is not None:
            last.prepare(sweep)
        rounding.start(sweep)

    def finish() -> None:
        rounding.end()
        if last.finish is not None:
            last.finish()

    stage = replace(
        last,
        name=STAGE,
        terms={name: _at_the_end(term) for name, term in last.terms.items()},
        epochs=options.epochs,
        optimizer=_slower(last.optimizer, options.rate),
        prepare=prepare,
        finish=finish,
    )
    return (*stages[:-1], replace(last, finish=None), stage)


def without_rounding(network: nn.Module) -> None:
    """Remove the hooks that a stage which was interrupted has left."""
    for module in network.modules():
        every = {**module._forward_pre_hooks, **module._forward_hooks}
        keys = [key for key, hook in every.items() if isinstance(getattr(hook, "__self__", None), Rounded)]
        if keys:
            module.__dict__.pop("weight", None)
        for key in keys:
            for name in ("pre_hooks", "pre_hooks_with_kwargs", "hooks", "hooks_always_called"):
                getattr(module, f"_forward_{name}").pop(key, None)


class Rounded:
    """Rounds the weight and the input of one layer in its forward."""

    def __init__(self, bits: int) -> None:
        self._bits, self._range = bits, (0.0, 0.0)
        self.looks = False  # whether the range of the inputs is measured

    def reset(self) -> None:
        """Forget the range of the inputs, and measure it until `looks` is false."""
        self._range, self.looks = (0.0, 0.0), True

    def before(
        self, layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Tensor], dict[str, Any]]:
        """A forward pre-hook with keyword arguments, of which a layer has one, ``input``."""
        inputs = args[0] if args else keywords["input"]
        low, high = self._range
        if self.looks:
            self._range = min(low, inputs.min().item()), max(high, inputs.max().item())
        elif high > low:
            levels = 2**self._bits - 1
            scale = (high - low) / levels
            zero = min(levels, max(0, round(-low / scale)))
            inputs = torch.fake_quantize_per_tensor_affine(inputs, scale, zero, 0, levels)
        layer.__dict__.pop("weight", None)  # of a forward that a tap in front of this layer has ended
        layer.__dict__["weight"] = rounded(layer.get_parameter("weight"), self._bits)  # is found before the parameter
        return (inputs,), {}

    def after(self, layer: nn.Module, args: Any, output: Any) -> None:
        """A forward hook, which is called after an error, too."""
        layer.__dict__.pop("weight", None)


class Rounding:
    """The layers of a student whose weights and inputs are rounded from `start` to `end`."""

    def __init__(self, layers: Iterable[nn.Module], bits: int) -> None:
        self._bits = bits
        self._layers = [(layer, Rounded(bits)) for layer in layers]
        self._handles: list[RemovableHandle] = []

    def start(self, sweep: Sweep) -> None:
        """Measure the ranges of the inputs, while the weights are rounded."""
        if not self._handles:
            for layer, hooks in self._layers:
                self._handles += [
                    layer.register_forward_pre_hook(hooks.before, with_kwargs=True),
                    layer.register_forward_hook(hooks.after, always_call=True),
                ]
        for _, hooks in self._layers:
            hooks.reset()
        seen = 0
        for (outputs,) in sweep(Tap("student")):
            seen += len(outputs)
            if seen >= SAMPLES:
                break
        for _, hooks in self._layers:
            hooks.looks = False

    @torch.no_grad()
    def end(self) -> None:
        """Round the weights for good. A file of ONNX in int8, which rounds them in the same way, keeps their values."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for layer, _ in self._layers:
            layer.__dict__.pop("weight", None)
            weight = layer.get_parameter("weight")
            weight.copy_(rounded(weight, self._bits))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight (C, ...) on the grid of ``bits`` signed bits of each output channel, with the gradient of the weight."""
    most = 2 ** (bits - 1) - 1
    peaks = weight.detach().flatten(1).abs().amax(dim=1).float().clamp(min=torch.finfo(torch.float32).tiny * most)
    zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    found: Tensor = torch.fake_quantize_per_channel_affine(weight, peaks / most, zeros, 0, -most, most)
    return found


def _at_the_end(term: Term) -> Term:
    """A term with the weight that it has at the end of its stage."""
    return replace(term, weight=term.weight(1 - 1e-9)) if callable(term.weight) else term


def _slower(make: MakeOptimizer, rate: float) -> MakeOptimizer:
    def made(parameters: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = make(parameters)
        for group in optimizer.param_groups:
            group["lr"] *= rate
        return optimizer

    return made
