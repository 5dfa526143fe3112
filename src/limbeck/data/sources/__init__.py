"""Data sets by name."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy
import torch
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data.bounds import PIXELS, check_memory
from limbeck.data.decoding import fitted
from limbeck.data.images import Images
from limbeck.data.sources.base import TEST_SEED, TEST_SHARE, Parts, Request, Source
from limbeck.data.sources.bundled import digits
from limbeck.data.sources.cifar import cifar10, cifar100
from limbeck.data.sources.folders import folder
from limbeck.data.sources.idx import mnist
from limbeck.data.split import Data, Split, build, in_words, part_of_train, split_off
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
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    streaming: bool = False,
    workers: int | None = None,
    transform: str | None = None,
    exif_orientation: bool = True,
) -> Data:
    """Load a data set into memory, or with ``streaming`` leave its images on disk until they are needed.

    Images are brought to ``size`` by cutting out the greatest part around the centre that has its proportions: the
    shorter side fits, nothing is stretched, and an image of that size stays as it is. Mean and std of streamed ones are
    measured on at most 2,000 of them.

    A source without a test split of its own (digits, a folder without ``test``) gives 20 % to it, evenly over the
    classes and the same in every run, whatever the seed. ``validation`` is then split off train. `Data.origins` says
    where each split came from, `Data.notes` what was passed over or changed.

    Args:
        source: a name in `SOURCES`.
        root: the folder of all data; unless given, the environment's LIMBECK_DATA, else ~/.cache/limbeck.
        path: of source "folder": a folder or zip file of class folders, absolute, relative to here or to the root.
        validation: size of the validation split: a share of train in [0, 1) if float, a count if int, may be 0; not
            used where the source has one of its own.
        seed: of the validation split and of the limit's choice.
        normalise: measure mean and std of each channel on the train split; otherwise they are 0 and 1.
        download: whether mnist, cifar10 and cifar100 may be downloaded when they are not there.
        size: height and width in pixels that images are brought to (bilinear, antialiased); one number for a square.
            None: their own, where all have the same; else a square of the median of their shorter sides, at most 224.
        limit: keep at most so many samples of each split, evenly over the classes; for a quick trial.
        streaming: of source "folder", for what does not fit in memory.
        workers: with streaming, how many processes decode images; 0: none but this one; None: one a processor, at
            most 4.
        transform: with streaming, what makes a training view of an image in the place of the cut above, before the
            augmentation: ``random_resized_crop`` or ``path/to/file.py:function``, see `limbeck.data.transforms`.
            Evaluation never uses it.
        exif_orientation: of source "folder", whether images are turned and mirrored as their EXIF data says.

    Raises:
        LimbeckError: no such source; its files are missing, damaged or do not fit; a value out of range.
    """
    if source not in SOURCES:
        raise LimbeckError(f"no source {source!r}; allowed are {', '.join(sorted(SOURCES))}{nearest(source, SOURCES)}")
    if path is not None and source != "folder":
        raise LimbeckError(f"source {source!r} takes no path ({path}); only 'folder' does, a data root is root=")
    pair = _as_pair(size)
    if limit is not None and limit < 1:
        raise LimbeckError(f"limit is {limit}; allowed are 1 and greater")
    _check_streaming(source, streaming, workers, transform)

    request = Request(
        root=_as_path(root),
        path=_as_path(path),
        download=download,
        size=pair,
        streaming=streaming,
        workers=_processors() if workers is None else workers,
        transform=transform,
        exif_orientation=exif_orientation,
    )
    parts = SOURCES[source](request)
    splits, origins = _divide(parts, validation, seed)
    for name, split in splits.items():
        splits[name] = _resized(_limited(split, limit, seed), pair)
        if len(splits[name]) < len(split):
            origins[name] += f"; {len(splits[name]):,} of {len(split):,} kept by limit"
    return build(**splits, classes=parts.classes, normalise=normalise, origins=origins, notes=parts.notes)


def _as_pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise LimbeckError(f"size is {size}; allowed are a height and a width of 1 and greater, or one number for both")
    if sides[0] * sides[1] > PIXELS:
        raise LimbeckError(f"size is {size}, {sides[0] * sides[1]:,} pixels an image; allowed are {PIXELS:,}")
    return sides[0], sides[1]


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


def _divide(parts: Parts, validation: float, seed: int) -> tuple[dict[str, Split], dict[str, str]]:
    """The three splits, and where each came from."""
    train, test, own = parts.train, parts.test, parts.validation
    origins = {"train": "", "validation": "", "test": "", **parts.origins}
    given = []
    if test is None:
        train, test = split_off(TEST_SHARE, train, TEST_SEED)
        origins["test"] = f"{in_words(TEST_SHARE)} split off train, evenly over the classes, the same in every run"
        given.append("test")
    if own is None:
        train, own = split_off(validation, train, seed)
        origins["validation"] = part_of_train(validation, seed)
        given += ["validation"] if len(own) else []
    if given:
        origins["train"] += f", without what is split off for {' and '.join(given)}"
    return {"train": train, "validation": own, "test": test}, origins


def _limited(split: Split, limit: int | None, seed: int) -> Split:
    return split if limit is None else split_off(min(limit, len(split)), split, seed)[1]


def _resized(split: Split, size: tuple[int, int] | None) -> Split:
    if size is None or isinstance(split.inputs, Images) or split.inputs.shape[2:] == size:
        return split
    count, channels = split.inputs.shape[:2]
    check_memory(
        count * channels * size[0] * size[1], f"{count:,} images of {size[0]} x {size[1]}", "give another size"
    )
    resized = split.inputs.new_empty(count, channels, *size)
    for place, pixels in enumerate(split.inputs.permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(pixels if channels > 1 else pixels[..., 0])
        resized[place] = torch.from_numpy(numpy.array(fitted(image, size)).reshape(*size, channels)).permute(2, 0, 1)
    return replace(split, inputs=resized)
