"""The objectives as people write them for a training loop, from the formulas; none of limbeck's losses is used.

Each takes the outputs of the student and of the teacher as `Hooked` returns them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Outputs = Mapping[str, Tensor]
"""Tensors by the layer's name; the logits under ""."""


class Hooked:
    """A network with forward hooks: calling it returns the outputs of these layers and the logits."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self.network = network
        self._outputs: dict[str, Tensor] = {}
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(partial(self._keep, layer))

    def __call__(self, inputs: Tensor) -> Outputs:
        """Run the network on (N, ...)."""
        self._outputs[""] = self.network(inputs)
        return dict(self._outputs)

    def _keep(self, layer: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self._outputs[layer] = output


def kd_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float, hard: float, soft: float
) -> Tensor:
    """Labels and soft targets (Hinton et al. 2015), of logits (N, K) and class indices (N,)."""
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
    return hard * F.cross_entropy(student, targets) + soft * temperature**2 * divergence


def hint_loss(student: Tensor, teacher: Tensor, regressor: nn.Module) -> Tensor:
    """A 1x1 convolution of the guided layer regresses the hint (Romero et al. 2015); maps (N, C, H, W)."""
    return F.mse_loss(regressor(student), teacher)


def srrl_loss(
    student: Outputs, teacher: Outputs, targets: Tensor, *, layer: str, connector: nn.Module, head: nn.Module
) -> Tensor:
    """The teacher's classifier on the student's feature after a connector (Yang et al. 2021)."""
    feature = connector(student[layer]).mean(dim=(2, 3))
    matching = F.mse_loss(feature, teacher[layer].mean(dim=(2, 3)))
    return F.cross_entropy(student[""], targets) + matching + F.mse_loss(head(feature), teacher[""])


def attention_loss(
    student: Outputs, teacher: Outputs, targets: Tensor, *, layers: Sequence[str], weight: float
) -> Tensor:
    """Squared distance of the normalised attention maps (Zagoruyko and Komodakis 2017, the authors' code)."""
    loss = F.cross_entropy(student[""], targets)
    for layer in layers:
        distance = (_attention_map(student[layer]) - _attention_map(teacher[layer])).pow(2).mean()
        loss = loss + weight * distance
    return loss


def _attention_map(feature: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H * W) of norm 1."""
    return F.normalize(feature.pow(2).mean(dim=1).flatten(1))


Objective = Callable[[Outputs, Outputs, Tensor], Tensor]
"""Of the student's outputs, the teacher's and the class indices (N,); a scalar."""


def objective(
    method: Mapping[str, Any], layers: Sequence[str], student: Outputs, teacher: Outputs, head: nn.Module
) -> tuple[Objective, nn.Module]:
    """The objective of a workload's method, and the connector that learns with the student.

    Args:
        method: the workload's block.
        layers: what it reads besides the logits.
        student: the student's outputs for a few samples, for the sizes of the connector.
        teacher: the teacher's outputs for the same samples.
        head: the teacher's classifier, which ``srrl`` uses.
    """
    connector: nn.Module = nn.Identity()
    widths = [(student[layer].shape[1], teacher[layer].shape[1]) for layer in layers]
    options = {name: value for name, value in method.items() if name != "name"}
    match method["name"]:
        case "kd":
            return lambda student, teacher, targets: kd_loss(student[""], teacher[""], targets, **options), connector
        case "fitnets":
            layer, connector = layers[0], nn.Sequential(nn.Conv2d(*widths[0], 1), nn.ReLU())
            return lambda student, teacher, targets: hint_loss(student[layer], teacher[layer], connector), connector
        case "srrl":
            width, teacher_width = widths[0]
            convolution = nn.Conv2d(width, teacher_width, 1, bias=False)
            connector = nn.Sequential(convolution, nn.BatchNorm2d(teacher_width), nn.ReLU())
            return partial(srrl_loss, layer=layers[0], connector=connector, head=head), connector
        case _:
            return partial(attention_loss, layers=layers, weight=method["attention"]), connector
