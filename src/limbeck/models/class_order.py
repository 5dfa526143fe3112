"""The outputs of a network in the order of the data's classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from limbeck.core import Batch, LimbeckError
from limbeck.errors import close_names
from limbeck.outline import outline
from limbeck.taps import layer_of


class Selected:
    """A forward hook that selects and orders the columns of a network's logits (N, classes)."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = torch.tensor(order)

    def __repr__(self) -> str:
        return f"Selected({self.order.tolist()})"

    def __call__(self, module: nn.Module, args: object, logits: Tensor) -> Tensor:
        """Return the logits (N, len(order))."""
        if self.order.device != logits.device:
            self.order = self.order.to(logits.device)
        return logits.index_select(1, self.order)


def order_of(name: str, labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The position of each of the data's classes among the labels of a network's outputs.

    Raises:
        LimbeckError: a label occurs twice, or the network does not have a class of the data.
    """
    places = {label: place for place, label in enumerate(labels)}
    if len(places) < len(labels):
        twice = next(label for place, label in enumerate(labels) if places[label] != place)
        raise LimbeckError(f"the {name} has the class {twice!r} twice")
    missing = [label for label in classes if label not in places]
    if missing:
        near = close_names(missing[0], labels, most=1)
        closest = f"; the closest of its classes is {near[0]!r}" if near else ""
        raise LimbeckError(
            f"the {name} has no class {missing[0]!r}, which the data has{closest}. A teacher must "
            "know all classes of the data; it may know others"
        )
    return [places[label] for label in classes]


def select_classes(name: str, network: nn.Module, order: Sequence[int], batch: Batch) -> None:
    """Change a network so that its output k is what its output ``order[k]`` was.

    The rows of its linear classifier are selected, so that a method that reads the classifier finds them in the same
    order. A network without one gets a forward hook.

    Args:
        name: what errors call the network.
        network: changed in place.
        order: for each class, its output, from 0.
        batch: a few samples, to find the classifier.
    """
    try:
        layer = layer_of(network, outline(name, network, batch).classifier)
    except Exception:  # there is none, or the network does not run, which the dry run reports
        layer = network
    if type(layer) is not nn.Linear or is_parametrized(layer) or layer._forward_pre_hooks or layer._forward_hooks:
        network.register_forward_hook(Selected(order))
        return
    rows = torch.tensor(order, device=layer.weight.device)
    for key, value in list(layer.named_parameters(recurse=False)):
        setattr(layer, key, nn.Parameter(value.detach()[rows].clone(), requires_grad=value.requires_grad))
    layer.out_features = len(order)
