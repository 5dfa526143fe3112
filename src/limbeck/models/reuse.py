"""A student that reuses the classifier of its teacher, after a projector to the teacher's width.

This is the deployed student of SimKD (Chen et al. 2022, arXiv 2203.14001). A built network is changed in place. Plain
values describe the change, so a weights file can store it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from limbeck.core import LimbeckError


@dataclass(frozen=True)
class Reuse:
    """The description of the change; every value can be written as JSON (`dataclasses.asdict`)."""

    layer: str  # the layer next to which the projector is inserted
    side: str  # "output" inserts it after the layer, "input" before it
    channels: int  # channels of the student's feature map, or size of its feature vector
    outside: int  # the same of the teacher
    classifier: str  # the linear layer of the student that is replaced
    classes: int
    factor: int = 2  # the hidden layers of the projector have outside / factor channels
    places: bool = True  # whether feature maps are projected; otherwise vectors
    size: Sequence[int] | None = None  # the (H, W) to which the student's feature map is first average-pooled
    final_relu: bool = True  # whether the projector ends with ReLU
    bias: bool = True  # whether the teacher's classifier has a bias


class Projected(nn.Module):
    """A layer with a projector after or before it. It takes the arguments of the layer."""

    def __init__(self, layer: nn.Module, reuse: Reuse) -> None:
        super().__init__()
        self.layer = layer
        self.pool = nn.AdaptiveAvgPool2d(tuple(reuse.size)) if reuse.size is not None else nn.Identity()
        self.projector = projector(reuse)
        self.reuse = reuse

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the projected output of the layer, or its output for the projected input."""
        if self.reuse.side == "output":
            value: Tensor = self.projector(self.pool(self.layer(*args, **kwargs)))
        else:
            value = self.layer(self.projector(self.pool(args[0])), *args[1:], **kwargs)
        return value


def projector(reuse: Reuse) -> nn.Sequential:
    """Return a projector of the student's feature map or vector to the teacher's width. It keeps the spatial size.

    For feature maps: 1x1, 3x3 and 1x1 convolutions without bias, each with BatchNorm and ReLU, and ``outside / factor``
    hidden channels (DefangChen/SimKD, models/util.py, 2b389c3). For vectors, an extension of limbeck, linear layers.
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
    """Insert a projector and replace the classifier of a student in place, and return the layer with the projector.

    Both are freshly initialised, with the device, dtype and mode of the student.

    Raises:
        LimbeckError: the student was changed before, or has no layer of this name.
    """
    if find_reuse(student) is not None:
        raise LimbeckError("the student already has a teacher's classifier: build a new student")
    names = dict(student.named_modules())
    for name in (reuse.layer, reuse.classifier):
        if not name or name not in names:
            raise LimbeckError(f"the student has no layer {name!r} for the teacher's classifier or the projector")
    like = next(student.parameters())
    classifier = nn.Linear(reuse.outside, reuse.classes, bias=reuse.bias)
    _put(student, reuse.classifier, classifier.to(like).train(student.training))
    projected = Projected(student.get_submodule(reuse.layer), reuse)
    projected.pool.train(student.training)
    projected.projector.to(like).train(student.training)
    projected.training = student.training
    _put(student, reuse.layer, projected)
    return projected


def find_reuse(network: nn.Module) -> Reuse | None:
    """Return the description of the change that `apply_reuse` made to a network, or None."""
    return next((module.reuse for module in network.modules() if isinstance(module, Projected)), None)


def projected_classifier(network: nn.Module, reuse: Reuse) -> nn.Linear:
    """Return the classifier of a network that `apply_reuse` has changed.

    Raises:
        LimbeckError: the layer is not a linear layer.
    """
    classifier = network.get_submodule(reuse.classifier)
    if isinstance(classifier, Projected):
        classifier = classifier.layer
    if not isinstance(classifier, nn.Linear):
        raise LimbeckError(f"the classifier {reuse.classifier} is a {type(classifier).__name__}, needed is a Linear")
    return classifier


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
