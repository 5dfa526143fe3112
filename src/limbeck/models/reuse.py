"""A student that ends as its teacher does: with a projector to the teacher's width and the teacher's classifier.

This is the deployed student of SimKD (Chen et al. 2022, arXiv 2203.14001). The change is made in place, in a network
that is otherwise as it was built, and is described by plain values, so that a file of weights can keep it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from limbeck.core import LimbeckError


@dataclass(frozen=True)
class Reuse:
    """How a student was changed; every value can be written as JSON (`dataclasses.asdict`)."""

    layer: str  # the layer that the projector is put at
    side: str  # "output", after it, or "input", before it
    channels: int  # of the student's map, or of its vector
    outside: int  # of the teacher's
    classifier: str  # the student's linear layer that is replaced
    classes: int
    factor: int = 2  # the projector is so much narrower inside
    places: bool = True  # whether maps are projected; else vectors
    size: Sequence[int] | None = None  # what the student's map is averaged down to first, (H, W)
    final_relu: bool = True  # whether the projector ends with a ReLU
    bias: bool = True  # whether the teacher's classifier has one


class Projected(nn.Module):
    """A layer with a projector after it or before it; called as the layer is."""

    def __init__(self, layer: nn.Module, reuse: Reuse) -> None:
        super().__init__()
        self.layer = layer
        self.pool = nn.AdaptiveAvgPool2d(tuple(reuse.size)) if reuse.size is not None else nn.Identity()
        self.projector = projector(reuse)
        self.reuse = reuse

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer takes, to the projection of what it gives; or to what it gives for the projection."""
        if self.reuse.side == "output":
            value: Tensor = self.projector(self.pool(self.layer(*args, **kwargs)))
        else:
            value = self.layer(self.projector(self.pool(args[0])), *args[1:], **kwargs)
        return value


def projector(reuse: Reuse) -> nn.Sequential:
    """The student's map or vector to the teacher's width; the spatial size stays.

    Of maps: 1x1, 3x3 and 1x1 convolutions without bias, each with BatchNorm and ReLU, ``outside / factor`` channels in
    between (DefangChen/SimKD, models/util.py, 2b389c3). Of vectors: linear layers in their place, which is ours.
    """
    middle = max(reuse.outside // reuse.factor, 1)

    def layer(inside: int, outside: int, side: int) -> list[nn.Module]:
        if reuse.places:
            return [nn.Conv2d(inside, outside, side, padding=side // 2, bias=False), nn.BatchNorm2d(outside)]
        return [nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside)]

    return nn.Sequential(
        *layer(reuse.channels, middle, 1),
        nn.ReLU(),
        *layer(middle, middle, 3),
        nn.ReLU(),
        *layer(middle, reuse.outside, 1),
        *([nn.ReLU()] if reuse.final_relu else []),
    )


def apply_reuse(student: nn.Module, reuse: Reuse) -> Projected:
    """Change a student in place: a new projector at its last map and a new classifier, both freshly initialised.

    Args:
        student: freshly built, or trained; all its other layers stay. The new ones have its device, dtype and mode.
        reuse: where, and of which sizes.

    Returns:
        The layer that holds the projector.

    Raises:
        LimbeckError: the student is changed already, or has no such layer.
    """
    if find_reuse(student) is not None:
        raise LimbeckError("the student ends with a teacher's classifier already: build a fresh one")
    names = dict(student.named_modules())
    for name in (reuse.layer, reuse.classifier):
        if not name or name not in names:
            raise LimbeckError(f"the student has no layer {name!r} to put the teacher's classifier or projector at")
    like = next(student.parameters())
    classifier = nn.Linear(reuse.outside, reuse.classes, bias=reuse.bias)
    _put(student, reuse.classifier, classifier.to(like).train(student.training))
    held = Projected(student.get_submodule(reuse.layer), reuse)
    held.pool.train(student.training)
    held.projector.to(like).train(student.training)
    held.training = student.training
    _put(student, reuse.layer, held)
    return held


def find_reuse(network: nn.Module) -> Reuse | None:
    """How a network was changed by `apply_reuse`; None where it was not."""
    return next((module.reuse for module in network.modules() if isinstance(module, Projected)), None)


def projected_classifier(network: nn.Module, reuse: Reuse) -> nn.Linear:
    """The classifier of a network that `apply_reuse` has changed.

    Raises:
        LimbeckError: it is no linear layer.
    """
    found = network.get_submodule(reuse.classifier)
    if isinstance(found, Projected):
        found = found.layer
    if not isinstance(found, nn.Linear):
        raise LimbeckError(f"the layer {reuse.classifier} is a {type(found).__name__}, not the classifier")
    return found


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
