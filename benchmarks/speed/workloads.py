"""What is measured: pairs of networks and a method, on random data of the usual sizes."""

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
"""The learning rate of every variant: low, so that random data does not diverge; a step takes as long at any."""
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Workload:
    """A method on a pair of networks; with random data and weights, which take as long as others do."""

    name: str
    method: Mapping[str, Any]  # a recipe's block; all that the plain loop needs is written out
    teacher: Mapping[str, Any]  # a model's name and its options
    student: Mapping[str, Any]
    shape: tuple[int, ...]  # of one image, (C, H, W)
    classes: int
    batch_size: int
    augment: Augment = Augment()  # noqa: RUF009 (frozen)
    batches: int = 4  # of an epoch
    layers: tuple[str, ...] = ()  # of both networks, that a loop with hooks reads besides the logits
    ends: str = ""  # the child of both networks after which nothing is needed; "": all is


@dataclass(frozen=True)
class Case:
    """A workload's networks and data. Variants train copies."""

    workload: Workload
    teacher: nn.Module
    student: nn.Module
    images: Tensor  # (n, C, H, W) uint8, the training set
    data: Data  # the same, as limbeck takes it

    def networks(self) -> dict[str, nn.Module]:
        """Fresh copies, by name."""
        return {"teacher": copy.deepcopy(self.teacher), "student": copy.deepcopy(self.student)}


def prepare(workload: Workload, seed: int = 0) -> Case:
    """Random networks and data. The teacher's norms get the statistics of its data, as if it had been trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher, student = _network(workload.teacher, workload), _network(workload.student, workload)
        samples = workload.batches * workload.batch_size
        images = torch.randint(0, 256, (samples, *workload.shape), dtype=torch.uint8)
        targets = torch.randint(0, workload.classes, (samples,))
    few = min(samples, 32)
    data = arrays(
        images,
        targets,
        test_set=(images[:few], targets[:few]),
        validation=0,
        classes=[str(index) for index in range(workload.classes)],
    )
    resolve_auto(teacher, normalise(images[:few], data.mean, data.std))
    return Case(workload, teacher, student, images, data)


def _network(block: Mapping[str, Any], workload: Workload) -> nn.Module:
    options = {key: value for key, value in block.items() if key != "name"}
    return build(block["name"], classes=workload.classes, shape=workload.shape, **options)


def resolve_auto(network: nn.Module, inputs: Tensor) -> None:
    """Give every BatchNorm the statistics of these inputs, and leave the network in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    rates = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(inputs)
    for norm, rate in zip(norms, rates, strict=True):
        norm.momentum = rate
    network.eval()


def upto(network: nn.Module, child: str) -> nn.Module:
    """The network up to and with one of its children, which run in order; all of it for ""."""
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
        # FitNets' first stage, with the mean of the squares as distance, which the other toolkits have too.
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
"""So small that what is measured is the loop."""
