"""The objectives as people write them beside a training loop, from the formulas; none of limbeck's losses is used.

Each is a module, because some own a connector, and takes what forward hooks have seen of the student and of the
teacher: tensors by the layer's name, the logits under "".
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Seen = Mapping[str, Tensor]


class Watched:
    """A network with forward hooks: calling it gives the tensors of its layers by name, and the logits under ""."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self.network = network
        self._seen: dict[str, Tensor] = {}
        for layer in layers:
            self._watch(layer)

    def __call__(self, inputs: Tensor) -> Seen:
        """Run the network on (N, ...)."""
        self._seen[""] = self.network(inputs)
        return dict(self._seen)

    def _watch(self, layer: str) -> None:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self._seen[layer] = output

        self.network.get_submodule(layer).register_forward_hook(keep)


def kd_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float, hard: float, soft: float
) -> Tensor:
    """Labels and soft targets (Hinton et al. 2015), of logits (N, K) and class indices (N,)."""
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
    return hard * F.cross_entropy(student, targets) + soft * temperature**2 * divergence


class Kd(nn.Module):
    """Soft targets and labels."""

    def __init__(self, *, temperature: float, hard: float, soft: float) -> None:
        super().__init__()
        self.loss = partial(kd_loss, temperature=temperature, hard=hard, soft=soft)

    def forward(self, student: Seen, teacher: Seen, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self.loss(student[""], teacher[""], targets)


class Hint(nn.Module):
    """A 1x1 convolution of the guided layer regresses the hint (Romero et al. 2015)."""

    def __init__(self, layer: str, width: int, hint_width: int) -> None:
        super().__init__()
        self.layer = layer
        self.regressor = nn.Sequential(nn.Conv2d(width, hint_width, 1), nn.ReLU())

    def forward(self, student: Seen, teacher: Seen, targets: Tensor) -> Tensor:
        """The loss, a scalar; the labels are not used."""
        return F.mse_loss(self.regressor(student[self.layer]), teacher[self.layer])


class Srrl(nn.Module):
    """The teacher's classifier on the connected feature (Yang et al. 2021)."""

    def __init__(self, layer: str, width: int, teacher_width: int, head: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.connector = nn.Sequential(
            nn.Conv2d(width, teacher_width, 1, bias=False), nn.BatchNorm2d(teacher_width), nn.ReLU()
        )
        self.head = head

    def forward(self, student: Seen, teacher: Seen, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        feature = self.connector(student[self.layer]).mean(dim=(2, 3))
        matching = F.mse_loss(feature, teacher[self.layer].mean(dim=(2, 3)))
        return F.cross_entropy(student[""], targets) + matching + F.mse_loss(self.head(feature), teacher[""])


class Attention(nn.Module):
    """Squared distance of the normalised attention maps (Zagoruyko and Komodakis 2017, the authors' code)."""

    def __init__(self, layers: Sequence[str], *, weight: float) -> None:
        super().__init__()
        self.layers, self.weight = layers, weight

    def forward(self, student: Seen, teacher: Seen, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        loss = F.cross_entropy(student[""], targets)
        for layer in self.layers:
            distance = (_normalised(student[layer]) - _normalised(teacher[layer])).pow(2).mean()
            loss = loss + self.weight * distance
        return loss


def _normalised(feature: Tensor) -> Tensor:
    return F.normalize(feature.pow(2).mean(dim=1).flatten(1))


def objective(
    method: Mapping[str, Any], layers: Sequence[str], student: Seen, teacher: Seen, head: nn.Module
) -> nn.Module:
    """The objective of a workload's method.

    Args:
        method: the workload's block.
        layers: what it reads besides the logits.
        student: what these give for a few samples, for the connector's sizes.
        teacher: likewise.
        head: the teacher's classifier, which ``srrl`` uses.
    """
    widths = [(student[layer].shape[1], teacher[layer].shape[1]) for layer in layers]
    match method["name"]:
        case "kd":
            return Kd(temperature=method["temperature"], hard=method["hard"], soft=method["soft"])
        case "fitnets":
            return Hint(layers[0], *widths[0])
        case "srrl":
            return Srrl(layers[0], *widths[0], head)
        case _:
            return Attention(layers, weight=method["attention"])
