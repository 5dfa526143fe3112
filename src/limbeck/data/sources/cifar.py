"""CIFAR-10 and CIFAR-100, in torchvision's layout or as a folder or zip file of images."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.core import LimbeckError
from limbeck.data.sources.base import HOW_TO_GIVE, Parts, Request, data_root
from limbeck.data.sources.folders import folder
from limbeck.data.split import Split


def _cifar(request: Request, *, name: str, batches: str, dataset: str) -> Parts:
    root = data_root(request.root)
    if (root / batches).is_dir():
        return _read(root, dataset, download=False)
    for place in (root / name, root / f"{name}.zip"):
        if place.exists():
            return folder(replace(request, path=place))
    if not request.download:
        looked = ", ".join(str(root / place) for place in (batches, name, f"{name}.zip"))
        raise LimbeckError(f"{dataset} not found: looked for {looked}; {HOW_TO_GIVE}")
    return _read(root, dataset, download=True)


cifar10 = functools.partial(_cifar, name="cifar10", batches="cifar-10-batches-py", dataset="CIFAR10")
"""50,000 + 10,000 images of 10 classes, (N, 3, 32, 32) uint8: the batches, else ``cifar10`` or ``cifar10.zip``."""

cifar100 = functools.partial(_cifar, name="cifar100", batches="cifar-100-python", dataset="CIFAR100")
"""The same of 100 classes: ``cifar-100-python``, else ``cifar100`` or ``cifar100.zip``."""


def _read(root: Path, dataset: str, *, download: bool) -> Parts:
    from torchvision import datasets  # type: ignore[import-untyped]  # takes a second to import

    try:
        train, test = (getattr(datasets, dataset)(root, train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError) as error:
        tried = "could not be downloaded to" if download else "cannot be read from"
        raise LimbeckError(f"{dataset} {tried} {root} ({error}); {HOW_TO_GIVE}") from error
    origins = {"train": f"the {dataset} training batches", "test": f"the {dataset} test batch"}
    return Parts(_split(train), classes=tuple(train.classes), test=_split(test), origins=origins)


def _split(dataset: Any) -> Split:
    inputs = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(inputs, torch.tensor(dataset.targets, dtype=torch.int64))
