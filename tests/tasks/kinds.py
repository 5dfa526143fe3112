"""Small data and networks of each task besides classification."""

import torch
from torch import nn

import limbeck

OTHERS = ("multi_label", "regression", "landmarks", "segmentation")
SIZE = 16


def arrays_of(task, count=96, seed=1):
    """Images (N, 3, 16, 16) whose halves have random levels in each channel, and targets that depend on the levels."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(count, 3, 2, generator=generator)
    halves = levels.repeat_interleave(SIZE // 2, dim=2)[:, :, None]
    inputs = halves + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    masks = (inputs[:, 0] > 0.5).long()
    masks[:, 0] = 255
    targets = {
        "multi_label": (levels[:, :, 0] > 0.5).float(),
        "regression": levels[:, :, 0],
        "landmarks": levels,
        "segmentation": masks,
    }
    return inputs, targets[task]


def data_of(task, count=96, **options):
    return limbeck.arrays(*arrays_of(task, count), task=task, **{"test": 24, "validation": 24} | options)


class Places(nn.Module):
    """Logits of every pixel."""

    def __init__(self, width, classes):
        super().__init__()
        self.stage1 = self._stage(3, width, 1)
        self.stage2 = self._stage(width, 2 * width, 2)
        self.head = nn.Conv2d(2 * width, classes, 1)

    @staticmethod
    def _stage(source, width, stride):
        return nn.Sequential(nn.Conv2d(source, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images):
        logits = self.head(self.stage2(self.stage1(images)))
        return nn.functional.interpolate(logits, size=images.shape[2:], mode="bilinear")


def network(data, width, seed=0):
    """A network for the data, with the same weights for the same seed."""
    torch.manual_seed(seed)
    if data.task == "segmentation":
        return Places(width, len(data.outputs))
    pooled = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(12, 4 * width), nn.ReLU(), nn.Linear(4 * width, len(data.outputs)))


def trained(data, width=8, epochs=20):
    """A teacher that is better than chance."""
    plain = {"batch_size": 16, "precision": "32", "progress": False, "optimizer": {"name": "adam", "lr": 0.01}}
    return limbeck.distill(None, network(data, width), data, method="alone", epochs=epochs, **plain)[0]
