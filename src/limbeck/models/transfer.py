"""Fine-tuning: load the weights of another network except its classifier, for other classes."""

from pathlib import Path

from torch import nn

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.models.files import read_state


def load_all_but_classifier(network: nn.Module, path: Path, classifier: str) -> str:
    """Load the parameters and buffers of a file into a network, except its classifier.

    Args:
        network: a freshly built network, changed in place. Its device and dtypes stay the same.
        path: a file that `load_weights` reads, of a network with any number of classes or without a classifier.
        classifier: the name of the layer, such as ``head``. The file's weights for it are ignored.

    Returns:
        A note on which of the file's weights were loaded, as `load_weights` returns it.

    Raises:
        LimbeckError: the network has no layer of this name with weights; the file does not exist, is damaged or has no
            weights; or another layer does not fit. The network is then unchanged.
    """
    state = network.state_dict()
    if not any(name.startswith(f"{classifier}.") for name in state):
        layers = dict.fromkeys(name.rpartition(".")[0] for name in state)
        raise LimbeckError(f"the network has no layer {classifier!r} with weights: {nearest(classifier, layers)}")
    found = read_state(path, state, classifier=classifier)
    network.load_state_dict(found.state)
    return found.note
