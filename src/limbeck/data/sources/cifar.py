"""CIFAR-10 and CIFAR-100, in torchvision's layout or as a folder or zip file of images."""

from pathlib import Path
from typing import Any

import torch

from limbeck.core import LimbeckError
from limbeck.data.sources.base import HOW_TO_GIVE, Parts, Progress, data_root
from limbeck.data.sources.folders import folder
from limbeck.data.split import Split


def cifar10(
    *,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    download: bool = True,
) -> Parts:
    """50,000 + 10,000 images of 10 classes, (N, 3, 32, 32) uint8.

    They are read from ``cifar-10-batches-py`` of the data root, else from ``cifar10`` or ``cifar10.zip``.

    Args:
        root: see `data_root`.
        size: of the images of a folder or zip file.
        progress: likewise.
        download: download the batches where nothing is found.

    Raises:
        LimbeckError: the data is not there and cannot be downloaded; a file is damaged.
    """
    return _cifar("CIFAR10", "cifar-10-batches-py", root, size, progress, download=download)


def cifar100(
    *,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    download: bool = True,
) -> Parts:
    """As `cifar10`, of 100 classes: ``cifar-100-python``, else ``cifar100`` or ``cifar100.zip``."""
    return _cifar("CIFAR100", "cifar-100-python", root, size, progress, download=download)


def _cifar(
    dataset: str,
    batches: str,
    given: Path | None,
    size: tuple[int, int] | None,
    progress: Progress | None,
    *,
    download: bool,
) -> Parts:
    root = data_root(given)
    if (root / batches).is_dir():
        return _read(root, dataset, download=False)
    name = dataset.lower()
    for place in (root / name, root / f"{name}.zip"):
        if place.exists():
            return folder(path=place, size=size, progress=progress)
    if not download:
        looked = ", ".join(str(root / place) for place in (batches, name, f"{name}.zip"))
        raise LimbeckError(f"{dataset} not found: looked for {looked}; {HOW_TO_GIVE}")
    return _read(root, dataset, download=True)


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
