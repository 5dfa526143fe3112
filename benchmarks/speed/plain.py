"""The loop as people write it: DataLoader, PIL, forward hooks, SGD. It uses limbeck's networks and nothing else of it.

The DataLoader has no workers: on two cores two workers made such a loop slower, and one process can be accounted for.
"""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]

from benchmarks.speed.objectives import Watched, objective
from benchmarks.speed.workloads import MOMENTUM, RATE, WEIGHT_DECAY, Case


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, as torchvision's CIFAR10 and MNIST hold them: each becomes a PIL image and is transformed."""

    def __init__(self, case: Case) -> None:
        channels, height, _ = case.workload.shape
        pixels = case.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.images = pixels[..., 0] if channels == 1 else pixels
        self.targets = case.data.train.targets.tolist()
        augment = case.workload.augment
        steps: list[Any] = [transforms.RandomCrop(height, padding=augment.crop)] if augment.crop else []
        steps += [transforms.RandomHorizontalFlip()] if augment.flip else []
        steps += [transforms.ToTensor(), transforms.Normalize(case.data.mean, case.data.std)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def plain(
    case: Case, student: nn.Module, teacher: nn.Module, *, channels_last: bool = False, bf16: bool = False
) -> Iterator[float]:
    """Train for ever, giving each step's loss.

    Args:
        case: the data and the method.
        student: trained in place.
        teacher: frozen.
        channels_last: lay images and weights out so, where the inputs are images.
        bf16: run the forward in bfloat16 by autocast.
    """
    workload = case.workload
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student, teacher = student.to(memory_format=layout), teacher.to(memory_format=layout).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    mine, theirs = Watched(student, workload.layers), Watched(teacher, workload.layers)
    with torch.no_grad():
        few = torch.randn(2, *workload.shape)
        criterion = objective(workload.method, workload.layers, mine(few), theirs(few), teacher.get_submodule("head"))
    learning = [*student.parameters(), *(one for one in criterion.parameters() if one.requires_grad)]
    optimizer = torch.optim.SGD(learning, lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    loader = DataLoader(PilImages(case), batch_size=workload.batch_size, shuffle=True, drop_last=True)
    while True:
        student.train()
        for inputs, targets in loader:
            inputs = inputs.to(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    taught = theirs(inputs)
                loss = criterion(mine(inputs), taught, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
