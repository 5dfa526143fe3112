"""A folder or zip file in which each class is a folder of images."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from limbeck.core import LimbeckError
from limbeck.data.decoding import SUFFIXES
from limbeck.data.images import Images, Inputs
from limbeck.data.sources.base import Parts, Request, data_root
from limbeck.data.sources.images import read_images
from limbeck.data.split import Split
from limbeck.data.trees import Reader


class Tree(NamedTuple):
    """What is in a folder or zip file."""

    place: Path
    names: Sequence[str]  # as `Reader.names` gives them


Classes: TypeAlias = Mapping[str, Sequence[str]]  # a class's name to its images' names

_VALIDATION = ("validation", "val", "valid")


def folder(request: Request) -> Parts:
    """Images of class folders, (N, 1 or 3, H, W) uint8; the classes are the sorted folder names.

    On top there may be ``train``, ``test`` and ``validation`` (or ``val``, ``valid``), each with the same class
    folders; all of this may be inside one more folder. Folders inside a class folder belong to the class. Hidden
    files, ``__MACOSX`` and files that are no images by their name are left out. A path that does not exist as it is
    is looked for in the data root. Links to folders are followed, but for those to a folder that the link is in.

    An orientation in an image's EXIF data is not followed, nor is it by torchvision's ImageFolder: pixels stay as they
    lie in the file.

    With ``streaming`` the images stay where they are, see `limbeck.data.images`, and count as colour images until they
    have been looked at.

    Raises:
        LimbeckError: no path, or it does not exist; no class folder, an empty one, or not the same ones in train and
            test; an image that cannot be read; images of different sizes without ``size``.
    """
    if request.path is None:
        raise LimbeckError("source 'folder' needs a path: a folder or zip file of class folders")
    reader = Reader(_place(request.path, request.root))
    tree = Tree(reader.place, reader.names())
    found = _layout(tree)
    classes = _same_classes(tree, found)
    names = {part: tuple(name for images in of.values() for name in images) for part, of in found.items()}
    splits = {}
    for (part, files), inputs in zip(names.items(), _inputs(request, reader, list(names.values())), strict=True):
        counts = torch.tensor([len(found[part][name]) for name in classes])
        splits[part] = Split(inputs, torch.repeat_interleave(torch.arange(len(classes)), counts), files)
    return Parts(splits["train"], classes=classes, validation=splits.get("validation"), test=splits.get("test"))


def _inputs(request: Request, reader: Reader, names: Sequence[tuple[str, ...]]) -> Sequence[Inputs]:
    """The images of each part."""
    if not request.streaming:
        everything = read_images(reader, [name for part in names for name in part], request.size)
        ends = itertools.accumulate(len(part) for part in names)
        return [everything[end - len(part) : end] for part, end in zip(names, ends, strict=True)]
    if request.size is None:
        raise LimbeckError("streaming needs a size: the height and width in pixels that each image is brought to")
    images = Images(reader, (), request.size, workers=request.workers, transform=request.transform)
    return [replace(images, names=part) for part in names]


_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")
"""Names that are parts of a data set, not classes."""


def _place(path: Path, root: Path | None) -> Path:
    path = path.expanduser()
    if path.exists() or path.is_absolute():
        return path
    inside = data_root(root) / path
    return inside if inside.exists() else path


def _layout(tree: Tree) -> dict[str, Classes]:
    """The classes of each split, train first."""
    top = ""
    tops = list(_children(tree, top))
    if len(tops) == 1 and _holds_folders_only(tree, f"{tops[0]}/"):
        top = f"{tops[0]}/"
        tops = list(_children(tree, top))
    parts = [name for name in tops if name.lower() in _PARTS]
    if parts and "train" not in tops:
        raise LimbeckError(
            f"{tree.place}: {', '.join(parts)} would be classes; a split into parts is written train/ and test/, and "
            "if there is one validation/, each with class folders"
        )
    if "train" not in tops or not _holds_folders_only(tree, f"{top}train/"):
        return {"train": _children(tree, top)}
    found = {"train": "train", "test": "test", "validation": next((name for name in _VALIDATION if name in tops), "")}
    return {part: _children(tree, f"{top}{name}/") for part, name in found.items() if name in tops}


def _children(tree: Tree, top: str) -> Classes:
    """The folders directly in ``top``, each with the images at any depth in it."""
    children: dict[str, list[str]] = {}
    for name in tree.names:
        child, slash, rest = name[len(top) :].partition("/")
        if name.startswith(top) and slash:
            images = children.setdefault(child, [])
            if rest.lower().endswith(SUFFIXES):
                images.append(name)
    return dict(sorted(children.items()))


def _holds_folders_only(tree: Tree, top: str) -> bool:
    inside = [name[len(top) :] for name in tree.names if name.startswith(top)]
    loose = any("/" not in name and name.lower().endswith(SUFFIXES) for name in inside)
    return any("/" in name for name in inside) and not loose


def _same_classes(tree: Tree, found: Mapping[str, Classes]) -> tuple[str, ...]:
    train = found["train"]
    if not train:
        raise LimbeckError(f"{tree.place} has no class folders; allowed is one folder of images for each class")
    for part, classes in found.items():
        differing = sorted(train.keys() ^ classes.keys())
        if differing:
            raise LimbeckError(
                f"{tree.place}: train and {part} must have the same class folders; "
                f"only one of them has {', '.join(differing)}"
            )
        for name, images in classes.items():
            if not images:
                raise LimbeckError(
                    f"{tree.place}: class folder {name!r} of {part} has no images; their names end with "
                    f"{', '.join(SUFFIXES)}"
                )
    return tuple(train)
