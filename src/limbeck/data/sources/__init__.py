"""Data sets by name."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic.errors import PydanticUserError

from limbeck.core import LimbeckError
from limbeck.data.bounds import PIXELS, check_memory
from limbeck.data.building import build
from limbeck.data.checking import check_samples
from limbeck.data.dividing import how_divided, in_words, limited, part_of_train, split_off
from limbeck.data.images import Images
from limbeck.data.pixels import as_tensor, fitted_channels
from limbeck.data.sources.base import GIVEN, Parts, Progress, Source
from limbeck.data.sources.bundled import digits
from limbeck.data.sources.cifar import cifar10, cifar100
from limbeck.data.sources.folders import folder
from limbeck.data.sources.idx import mnist
from limbeck.data.sources.masks import masks
from limbeck.data.sources.shards import webdataset
from limbeck.data.sources.tables import table
from limbeck.data.split import Data, Split
from limbeck.data.targets import TaskName
from limbeck.errors import nearest
from limbeck.options import Signature, keyword_model, signature, validate, with_takers
from limbeck.user_code import contents, function, named

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "digits": digits,
        "mnist": mnist,
        "cifar10": cifar10,
        "cifar100": cifar100,
        "folder": folder,
        "table": table,
        "masks": masks,
        "webdataset": webdataset,
    }
)
"""What `load` can load by name."""

TEST_SHARE, TEST_SEED = 0.2, 1797
"""Of a source without a test split: the same in every run, so that no run trains on another's test split."""

_TYPES = "bool, int, float, str, pathlib.Path, Literal, tuples of these, and None"


def load(
    source: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    normalise: bool = True,
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Data:
    """Load a data set into memory, or with ``streaming`` leave its images on disk until they are needed.

    Images are resized to ``size`` by cutting out the largest centred part that has its proportions: the shorter side
    fits, nothing is stretched, and an image of that size is not changed. Mean and std of streamed images are measured
    on at most 2,000 of them.

    Where a source has no test split (digits, a folder without ``test``), 20 % are split off for it, evenly over the
    classes, and the same in every run, whatever the seed. ``validation`` is then split off train. `Data.origins` says
    where each split came from, `Data.notes` what was skipped or changed.

    Args:
        source: a name in `SOURCES`, or ``path/to/file.py:function``, whose code is then run: a function as
            `limbeck.data.sources.base.Source` describes it.
        root: the folder of all data; by default the environment's LIMBECK_DATA, else ~/.cache/limbeck.
        validation: size of the validation split: a share of train in [0, 1) if float, a count if int, may be 0; not
            used where the source has a validation split.
        seed: of the validation split and of the choice that ``limit`` makes.
        normalise: measure mean and std of each channel on the train split; otherwise they are 0 and 1.
        size: height and width of the images in pixels (bilinear, antialiased); one number for a square. None: their
            own, see `limbeck.data.sources.folders.folder` for images that differ.
        limit: keep at most so many samples of each split, evenly over the classes; for a quick trial.
        progress: is called with the number of files read and of all files, where the source reads many.
        options: the keyword-only arguments of the source, such as ``path`` and ``streaming`` of `folder` in
            `limbeck.data.sources.folders`, and ``download`` of mnist, cifar10 and cifar100.

    Raises:
        LimbeckError: there is no such source or option; files are missing, damaged or do not fit; a value is out of
            range.
    """
    pair = _as_pair(size)
    if limit is not None and limit < 1:
        raise LimbeckError(f"limit is {limit}; allowed are 1 and greater")
    given = {"root": None if root is None else Path(root), "size": pair, "progress": progress}
    code = named(source)
    if code is None:
        if source not in SOURCES:
            raise LimbeckError(
                f"there is no source {source!r}: {nearest(source, SOURCES)}, and path/to/file.py:function"
            )
        parts = SOURCES[source](**_arguments(source, SOURCES[source], given, options))
    else:
        parts = _of_user(source, function(*code, contents(code[0])), given, options)
    return as_data(parts, validation=validation, seed=seed, limit=limit, size=pair, normalise=normalise)


def as_data(
    parts: Parts,
    *,
    validation: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    size: tuple[int, int] | None = None,
    normalise: bool = True,
) -> Data:
    """Make a data set of what a source returns; `load` describes the options.

    Raises:
        LimbeckError: the splits do not fit together; a value is out of range.
    """
    splits, origins = _divide(parts, validation, seed)
    for name, split in splits.items():
        splits[name] = _resized(split if limit is None else limited(split, limit, seed), size, parts.task)
        if len(splits[name]) < len(split):
            origins[name] += f"; {len(splits[name]):,} of {len(split):,} kept by limit"
    return build(
        **splits,
        classes=parts.classes,
        task=parts.task,
        normalise=normalise,
        origins=origins,
        notes=parts.notes,
    )


def source_signature(source: Source) -> Signature:
    """The options of a source: its keyword-only arguments but for those that `load` passes to any source."""
    return signature(source, given=GIVEN)


def _arguments(name: str, source: Source, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the source is called with: the options, checked against its signature, and what it names of ``given``."""
    own = source_signature(source)
    common = signature(load, given=("progress",))
    for key in own.keys() & common.keys():
        raise LimbeckError(f"{name} has an argument {key!r}, which load uses itself; allowed are other names")
    values, problems = validate(keyword_model({**common, **own}), options)
    if values is None:
        table = {key: source_signature(other) for key, other in SOURCES.items()}
        found = [with_takers(problem, table) for problem in problems]
        raise LimbeckError(
            "\n".join(f"{'.'.join(map(str, ('data', *one.path)))} of {name}: {one.message}" for one in found)
        )
    names = inspect.signature(source).parameters
    return {key: value for key, value in given.items() if key in names} | {key: getattr(values, key) for key in own}


def _of_user(name: str, source: Source, given: Mapping[str, Any], options: Mapping[str, Any]) -> Parts:
    """The parts of a source ``path/to/file.py:function``."""
    wrong = [key for key, one in inspect.signature(source).parameters.items() if one.kind is not one.KEYWORD_ONLY]
    if wrong:
        raise LimbeckError(f"{name} takes {wrong[0]!r} by position; allowed are keyword-only arguments: def f(*, ...)")
    try:
        arguments = _arguments(name, source, given, options)
    except (PydanticUserError, SyntaxError, NameError) as error:
        types = ", ".join(f"{key}: {option['type']}" for key, option in source_signature(source).items())
        raise LimbeckError(f"{name} has an option that cannot be checked ({types}); allowed are {_TYPES}") from error
    try:
        parts = source(**arguments)
        if not isinstance(parts, Parts):
            raise LimbeckError(f"{name} gave {type(parts).__name__}; allowed is limbeck.data.Parts")
        shape = tuple(parts.train.inputs.shape[1:])
        for part, split in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
            if split is not None:  # what is wrong would be an error of torch when the splits are divided
                check_samples(
                    part,
                    split.inputs,
                    split.targets,
                    split.weights,
                    shape=shape,
                    classes=len(parts.classes),
                    unlabelled=part == "train",
                    task=parts.task,
                )
                if split.names is not None and len(split.names) != len(split):
                    raise LimbeckError(f"{name} gave {len(split.names)} names for {len(split)} samples of {part}")
        unknown = set(parts.origins) - {"train", "validation", "test"}
        if unknown:
            raise LimbeckError(f"{name} gave an origin of {min(unknown)!r}; allowed are train, validation and test")
    except LimbeckError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise LimbeckError(f"{name} failed: {type(error).__name__}: {error}") from error
    return replace(parts, classes=tuple(map(str, parts.classes)))


def _as_pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise LimbeckError(f"size is {size}; allowed are a height and a width of 1 and greater, or one number for both")
    if sides[0] * sides[1] > PIXELS:
        raise LimbeckError(f"size is {size}, {sides[0] * sides[1]:,} pixels an image; allowed are {PIXELS:,}")
    return sides[0], sides[1]


def _divide(parts: Parts, validation: float, seed: int) -> tuple[dict[str, Split], dict[str, str]]:
    """The three splits, and where each came from."""
    train, test, own = parts.train, parts.test, parts.validation
    origins = {"train": "given by the source", "validation": "", "test": "", **parts.origins}
    given = []
    if test is None:
        train, test = split_off(TEST_SHARE, train, TEST_SEED)
        origins["test"] = (
            f"{in_words(TEST_SHARE)} of the training samples, {how_divided(parts.task)}, the same in every run"
        )
        given.append("test")
    if own is None:
        train, own = split_off(validation, train, seed)
        origins["validation"] = part_of_train(validation, seed, parts.task)
        given += ["validation"] if len(own) else []
    if given:
        origins["train"] += f", without the samples of {' and '.join(given)}"
    return {"train": train, "validation": own, "test": test}, origins


def _resized(split: Split, size: tuple[int, int] | None, task: TaskName) -> Split:
    if size is None or isinstance(split.inputs, Images) or split.inputs.shape[2:] == size:
        return split
    if split.inputs.dim() != 4 or split.inputs.dtype not in (torch.uint8, torch.float32):
        got = f"{split.inputs.dtype} of shape {tuple(split.inputs.shape)}"
        raise LimbeckError(f"size is {size}, but the inputs are {got}; allowed are images of uint8 or float32")
    if task in ("landmarks", "segmentation"):
        raise LimbeckError(
            f"size is {size}, but the images have {tuple(split.inputs.shape[2:])}: for {task} the source must resize "
            "them together with the targets"
        )
    count, channels = split.inputs.shape[:2]
    needed = count * channels * size[0] * size[1] * split.inputs.element_size()
    check_memory(needed, f"{count:,} images of {size[0]} x {size[1]}", "give another size")
    resized = split.inputs.new_empty(count, channels, *size)
    for place, pixels in enumerate(split.inputs.permute(0, 2, 3, 1).numpy()):
        resized[place] = as_tensor(fitted_channels(pixels, size))
    return replace(split, inputs=resized)
