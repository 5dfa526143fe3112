"""Trainings without the checks of networks, for suites that train many methods on the same few networks."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from limbeck.train.memory_format import runs_channels_last


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside the block, frozen networks are read with hooks, and the check for channels_last is not repeated.

    Fusing a copy takes longer than a training here. What may be fused depends on the taps, which are the method's, and
    on the precision, so a suite that uses this block also needs a test of fused readers. That test is
    `test_reads_frozen_networks_as_hooks_do` in `tests/test_conformance.py`.

    The check for channels_last runs again for another structure, shape or type of the inputs, or set of parameters that
    learn. For these networks it does not depend on the values of the weights.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("limbeck.train.readers.fuse", lambda network, *rest, **options: (network, ""))
        patched.setattr("limbeck.train.readers.runs_channels_last", lambda network, inputs: False)
        patched.setattr("limbeck.train.memory_format.runs_channels_last", _known)
        yield


KNOWN: dict[tuple[object, ...], bool] = {}


def _known(network, inputs, *, learns=False):
    learning = tuple(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    key = (str(network), inputs.shape, inputs.dtype, learns, learning)
    if key not in KNOWN:
        KNOWN[key] = runs_channels_last(network, inputs, learns=learns)
    return KNOWN[key]
