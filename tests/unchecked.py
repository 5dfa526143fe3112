"""Trainings without the checks of networks, for suites that train many methods on the same few networks."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from limbeck.train.memory_format import runs_channels_last


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside the block, frozen networks are read with hooks instead of as fused copies, and whether a network runs in
    channels_last is asked once for each structure. Both are properties of the networks, not of a method.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("limbeck.train.readers.fuse", lambda network, *rest, **options: (network, ""))
        patched.setattr("limbeck.train.readers.runs_channels_last", lambda network, inputs: False)
        patched.setattr("limbeck.train.memory_format.runs_channels_last", _known)
        yield


KNOWN: dict[tuple[str, bool], bool] = {}


def _known(network, inputs, *, learns=False):
    key = (str(network), learns)
    if key not in KNOWN:
        KNOWN[key] = runs_channels_last(network, inputs, learns=learns)
    return KNOWN[key]
