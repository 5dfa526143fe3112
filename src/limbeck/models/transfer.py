"""A network that starts from another's weights but for its classifier, for other classes: fine-tuning."""

from pathlib import Path

from torch import nn

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.models.files import read_state


def load_all_but_classifier(network: nn.Module, path: Path, classifier: str) -> str:
    """Load a file's parameters and buffers into a network, but leave its classifier as it is.

    Args:
        network: freshly built, and changed in place; its device and dtypes stay.
        path: a file that `load_weights` reads, of a network with as many or other classes, or without a classifier.
        classifier: the layer's name, such as ``head``. What the file has for it is not looked at.

    Returns:
        Which of the file's weights were taken, as `load_weights` says it.

    Raises:
        LimbeckError: the network has no such layer with weights; there is no such file, or it is damaged or has no
            weights; or another layer does not fit. Then the network is as it was.
    """
    wanted = network.state_dict()
    if not any(name.startswith(f"{classifier}.") for name in wanted):
        layers = dict.fromkeys(name.rpartition(".")[0] for name in wanted)
        raise LimbeckError(f"the network has no layer {classifier!r} with weights: {nearest(classifier, layers)}")
    found = read_state(path, wanted, classifier=classifier)
    network.load_state_dict(found.state)
    return found.said
