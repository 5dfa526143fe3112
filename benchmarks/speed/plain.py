"""The loop as people write it: DataLoader, PIL, forward hooks, SGD. Of limbeck it uses only the networks.

The DataLoader has no workers: on two cores they made such a loop slower, and their CPU time would count as that of
other processes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]

from benchmarks.speed.objectives import Hooked, objective
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
    """Train without end, yielding each step's loss.

    Args:
        case: the data and the method.
        student: trained in place.
        teacher: frozen.
        channels_last: the memory format of images and weights, where the inputs are images.
        bf16: run the forward in bfloat16 under autocast.
    """
    workload = case.workload
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student, teacher = student.to(memory_format=layout), teacher.to(memory_format=layout).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    hooked_student, hooked_teacher = Hooked(student, workload.layers), Hooked(teacher, workload.layers)
    with torch.no_grad():
        example = torch.randn(2, *workload.shape)
        outputs = hooked_student(example), hooked_teacher(example)
        head = teacher.get_submodule("head")
        criterion, connector = objective(workload.method, workload.layers, *outputs, head)
    learning = [*student.parameters(), *connector.parameters()]
    optimizer = torch.optim.SGD(learning, lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    loader = DataLoader(PilImages(case), batch_size=workload.batch_size, shuffle=True, drop_last=True)
    while True:
        student.train()
        for inputs, targets in loader:
            inputs = inputs.to(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    teacher_outputs = hooked_teacher(inputs)
                loss = criterion(hooked_student(inputs), teacher_outputs, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's types lack it
            optimizer.step()
            yield loss.item()
