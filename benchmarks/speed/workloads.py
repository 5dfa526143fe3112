"""The workloads: a method on a pair of networks, with random data of the usual sizes."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data import Augment, Data, arrays, normalise
from limbeck.models import build

RATE = 1e-3
"""The learning rate of every variant: low, so that training on random data does not diverge."""
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Workload:
    """A method on a pair of networks. Data and weights are random: a step takes as long as with real ones."""

    name: str
    method: Mapping[str, Any]  # a recipe's block, with all options that the plain loop needs
    teacher: Mapping[str, Any]  # a model's name and options
    student: Mapping[str, Any]
    shape: tuple[int, ...]  # of one image, (C, H, W)
    classes: int
    batch_size: int
    augment: Augment = Augment()  # noqa: RUF009 (frozen)
    batches: int = 4  # per epoch
    layers: tuple[str, ...] = ()  # of both networks, which a loop with hooks reads besides the logits
    ends: str = ""  # the last child of both networks that the method needs; "" for all


@dataclass(frozen=True)
class Case:
    """A workload's networks and data. Variants train copies of the networks."""

    workload: Workload
    teacher: nn.Module
    student: nn.Module
    images: Tensor  # (n, C, H, W) uint8, the training set
    data: Data  # the same, in limbeck's type

    def networks(self) -> dict[str, nn.Module]:
        """Fresh copies, by name."""
        return {"teacher": copy.deepcopy(self.teacher), "student": copy.deepcopy(self.student)}


def prepare(workload: Workload, seed: int = 0) -> Case:
    """Random networks and data. The teacher's BatchNorms get the statistics of its inputs, as in a trained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher, student = _network(workload.teacher, workload), _network(workload.student, workload)
        samples = workload.batches * workload.batch_size
        images = torch.randint(0, 256, (samples, *workload.shape), dtype=torch.uint8)
        targets = torch.randint(0, workload.classes, (samples,))
    test_samples = min(samples, 32)
    data = arrays(
        images,
        targets,
        test_set=(images[:test_samples], targets[:test_samples]),
        validation=0,
        classes=[str(index) for index in range(workload.classes)],
    )
    set_norms(teacher, normalise(images[:test_samples], data.mean, data.std))
    return Case(workload, teacher, student, images, data)


def _network(block: Mapping[str, Any], workload: Workload) -> nn.Module:
    options = {key: value for key, value in block.items() if key != "name"}
    return build(block["name"], classes=workload.classes, shape=workload.shape, **options)


def set_norms(network: nn.Module, inputs: Tensor) -> None:
    """Set the statistics of every BatchNorm to those of these inputs (N, C, H, W); the network ends in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(inputs)
    network.eval()


def upto(network: nn.Module, child: str) -> nn.Module:
    """The network up to and including one of its children, which run in order; the whole network for ""."""
    if not child:
        return network
    children = list(network.named_children())
    return nn.Sequential(OrderedDict(children[: [name for name, _ in children].index(child) + 1]))


_RESNETS: Mapping[str, Any] = {
    "teacher": {"name": "resnet32x4"},
    "student": {"name": "resnet8x4"},
    "shape": (3, 32, 32),
    "classes": 100,
    "batch_size": 64,
    "augment": Augment(crop=4, flip=True),
}

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        # Temperature and weights of the CRD benchmark (Tian et al. 2020).
        Workload("kd", {"name": "kd", "temperature": 4.0, "hard": 0.1, "soft": 0.9}, **_RESNETS),
        # FitNets' first stage, with the mean squared error, which the other toolkits have too.
        Workload(
            "hint",
            {"name": "fitnets", "hint_layer": "stage2", "guided_layer": "stage2", "average": "elements"},
            **_RESNETS,
            layers=("stage2",),
            ends="stage2",
        ),
        Workload("srrl", {"name": "srrl", "hard": 1.0, "alpha": 1.0, "beta": 1.0}, **_RESNETS, layers=("stage3",)),
        # As the authors' code: cifar.py with --beta 1e+3.
        Workload(
            "at",
            {"name": "at", "form": "code", "hard": 1.0, "attention": 1000.0},
            **_RESNETS,
            layers=("stage1", "stage2", "stage3"),
        ),
        Workload(
            "mnist_mlp",
            {"name": "kd", "temperature": 20.0, "hard": 0.1, "soft": 1.0},
            teacher={"name": "mlp", "hidden": [1200, 1200]},
            student={"name": "mlp", "hidden": [800, 800]},
            shape=(1, 28, 28),
            classes=10,
            batch_size=512,
            batches=8,
        ),
    )
}

DIGITS = Workload(
    "digits_mlp",
    {"name": "kd", "temperature": 4.0, "hard": 0.1, "soft": 0.9},
    teacher={"name": "mlp", "hidden": [128, 128]},
    student={"name": "mlp", "hidden": [32, 32]},
    shape=(1, 8, 8),
    classes=10,
    batch_size=32,
    batches=40,
)
"""Networks so small that the loop itself takes most of a step."""
