"""A network that starts from another's weights but for its classifier, for other classes: fine-tuning."""

from pathlib import Path

from torch import nn

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.models.files import read_state
from limbeck.models.fitting import check_fit


def load_all_but_classifier(network: nn.Module, path: Path, classifier: str) -> None:
    """Load a file's parameters and buffers into a network, but leave its classifier as it is.

    Args:
        network: freshly built, and changed in place; its device and dtypes stay.
        path: a file that `load_weights` reads, of a network with as many or other classes, or without a classifier.
        classifier: the layer's name, such as ``head``. What the file has for it is not looked at.

    Raises:
        LimbeckError: the network has no such layer with weights; there is no such file, or it is damaged or not a state
            dict; or another layer does not fit. Then the network is as it was.
    """
    wanted = network.state_dict()
    prefix = f"{classifier}."
    own = {name: tensor for name, tensor in wanted.items() if name.startswith(prefix)}
    if not own:
        layers = dict.fromkeys(name.rpartition(".")[0] for name in wanted)
        raise LimbeckError(f"the network has no layer {classifier!r} with weights: {nearest(classifier, layers)}")
    state = {name: tensor for name, tensor in read_state(path, wanted).items() if not name.startswith(prefix)} | own
    check_fit(path, state, wanted)
    network.load_state_dict(state)
