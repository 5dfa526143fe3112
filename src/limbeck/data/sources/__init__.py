"""Data sets by name."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch.nn import functional

from limbeck.core import LimbeckError
from limbeck.data.images import Images
from limbeck.data.sources.base import TEST_SEED, TEST_SHARE, Parts, Request, Source
from limbeck.data.sources.bundled import digits
from limbeck.data.sources.cifar import cifar10, cifar100
from limbeck.data.sources.folders import folder
from limbeck.data.sources.idx import mnist
from limbeck.data.split import Data, Split, build, split_off
from limbeck.data.trees import nearest

SOURCES: Mapping[str, Source] = MappingProxyType(
    {"digits": digits, "mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "folder": folder}
)
"""What `load` can load."""


def load(
    source: str,
    *,
    root: str | Path | None = None,
    path: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    normalise: bool = True,
    download: bool = True,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    streaming: bool = False,
    workers: int | None = None,
    transform: str | None = None,
    exif_orientation: bool = True,
) -> Data:
    """Load a data set into memory, or with ``streaming`` leave its images on disk until they are needed.

    Streamed images are brought to ``size`` by cutting out the greatest part around the centre that has its
    proportions: the shorter side fits, nothing is stretched. Mean and std are measured on at most 2,000 of them.

    A source without a test split of its own (digits, a folder without ``test``) gives 20 % to it, evenly over the
    classes and the same in every run, whatever the seed. ``validation`` is then split off train.

    Args:
        source: a name in `SOURCES`.
        root: the folder of all data; unless given, the environment's LIMBECK_DATA, else ~/.cache/limbeck.
        path: of source "folder": a folder or zip file of class folders, absolute, relative to here or to the root.
        validation: size of the validation split: a share of train in [0, 1) if float, a count if int, may be 0; not
            used where the source has one of its own.
        seed: of the validation split and of the limit's choice.
        normalise: measure mean and std of each channel on the train split; otherwise they are 0 and 1.
        download: whether mnist, cifar10 and cifar100 may be downloaded when they are not there.
        size: height and width in pixels to resize the images to (bilinear, antialiased), in memory without regard to
            their proportions.
        limit: keep at most so many samples of each split, evenly over the classes; for a quick trial.
        streaming: of source "folder", for what does not fit in memory; needs a size.
        workers: with streaming, how many processes decode images; 0: none but this one; None: one a processor, at
            most 4.
        transform: with streaming, what makes a training view of an image in the place of the cut above, before the
            augmentation: ``random_resized_crop`` or ``path/to/file.py:function``, see `limbeck.data.transforms`.
            Evaluation never uses it.

    Raises:
        LimbeckError: no such source; its files are missing, damaged or do not fit; a value out of range.
    """
    if source not in SOURCES:
        raise LimbeckError(f"no source {source!r}; allowed are {', '.join(sorted(SOURCES))}{nearest(source, SOURCES)}")
    if path is not None and source != "folder":
        raise LimbeckError(f"source {source!r} takes no path ({path}); only 'folder' does, a data root is root=")
    if size is not None and min(size) < 1:
        raise LimbeckError(f"size is {size}; allowed are a height and a width of 1 and greater")
    if limit is not None and limit < 1:
        raise LimbeckError(f"limit is {limit}; allowed are 1 and greater")
    _check_streaming(source, streaming, workers, transform)

    request = Request(
        root=_as_path(root),
        path=_as_path(path),
        download=download,
        size=size,
        streaming=streaming,
        workers=_processors() if workers is None else workers,
        transform=transform,
        exif_orientation=exif_orientation,
    )
    parts = SOURCES[source](request)
    train, valid, test = _divide(parts, validation, seed)
    train, valid, test = (_resized(_limited(split, limit, seed), size) for split in (train, valid, test))
    return build(train=train, validation=valid, test=test, classes=parts.classes, normalise=normalise)


def _check_streaming(source: str, streaming: bool, workers: int | None, transform: str | None) -> None:
    if streaming and source != "folder":
        raise LimbeckError(f"source {source!r} cannot be streamed; only 'folder' can")
    for name, value in (("workers", workers), ("transform", transform)):
        if value is not None and not streaming:
            raise LimbeckError(
                f"{name} is {value!r}, but only streamed data has any; it is streamed with streaming=True"
            )
    if workers is not None and workers < 0:
        raise LimbeckError(f"workers is {workers}; allowed are 0 and greater")


def _processors() -> int:
    """Those that this process may use, at most 4."""
    return min(4, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


def _as_path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _divide(parts: Parts, validation: float, seed: int) -> tuple[Split, Split, Split]:
    train, test = parts.train, parts.test
    if test is None:
        train, test = split_off(TEST_SHARE, train, TEST_SEED)
    if parts.validation is not None:
        return train, parts.validation, test
    train, part = split_off(validation, train, seed)
    return train, part, test


def _limited(split: Split, limit: int | None, seed: int) -> Split:
    return split if limit is None else split_off(min(limit, len(split)), split, seed)[1]


def _resized(split: Split, size: tuple[int, int] | None) -> Split:
    if size is None or isinstance(split.inputs, Images) or split.inputs.shape[2:] == size:
        return split
    if not len(split):
        return replace(split, inputs=split.inputs.new_empty(0, split.inputs.shape[1], *size))
    inputs = functional.interpolate(split.inputs, size, mode="bilinear", antialias=True, align_corners=False)
    return replace(split, inputs=inputs)
