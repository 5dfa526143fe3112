from dataclasses import replace

import pytest

from benchmarks.speed.workloads import WORKLOADS, prepare

IMAGES = {
    "shape": (3, 8, 8),
    "classes": 3,
    "teacher": {"name": "resnet14"},
    "student": {"name": "resnet8"},
}
PERCEPTRONS = {
    "shape": (1, 4, 4),
    "teacher": {"name": "mlp", "hidden": [8]},
    "student": {"name": "mlp", "hidden": [4]},
}


@pytest.fixture
def tiny():
    """A workload as in the benchmark, but small, by its name."""

    def shrink(name):
        sizes = PERCEPTRONS if name == "mnist_mlp" else IMAGES
        return replace(WORKLOADS[name], batch_size=4, batches=2, **sizes)

    return shrink


@pytest.fixture
def tiny_case(tiny):
    """Its networks and data."""
    return lambda name: prepare(tiny(name))
