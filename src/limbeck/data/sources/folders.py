"""A folder or zip file in which each class is a folder of images."""

import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch
from torch.nn import functional

from limbeck.core import LimbeckError
from limbeck.data.decoding import SUFFIXES
from limbeck.data.sources.base import Parts, Progress, located
from limbeck.data.sources.reading import Reading, skipped
from limbeck.data.split import Split
from limbeck.data.trees import Reader
from limbeck.errors import close_names

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("train", "training"),
        "validation": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing"),
    }
)
"""The names that the folder of each split may have, in lower or upper case."""

_ADVICE = "allowed are train/, test/ and, if there is one, validation/, each with class folders"


class Tree(NamedTuple):
    """The content of a folder or zip file."""

    place: Path
    names: Sequence[str]  # as `Reader.listing` gives them


Classes: TypeAlias = Mapping[str, Sequence[str]]  # a class's name to its images' names


class Layout(NamedTuple):
    """Where the splits of a tree are."""

    top: str  # the beginning of all names of the data
    folders: Mapping[str, str]  # the name of each split's folder in the top; empty if the top holds the classes


def folder(
    *,
    path: Path,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    exif_orientation: bool = True,
    streaming: bool = False,
    workers: int | None = None,
    transform: str | None = None,
    unlabelled: str | None = None,
) -> Parts:
    """Images of class folders, (N, C, H, W); the classes are the sorted folder names.

    The top folder may hold folders of the splits, with a name of `NAMES`, each with the same class folders; all of this
    may be inside one more folder. Folders inside a class folder belong to the class. Hidden files and files whose names
    are not of images are skipped, and a note counts them. Links to folders are followed, except for a link to a folder
    that holds the link.

    Images are uint8 with 1 or 3 channels. Those of more than 8 bits a channel become float32, see
    `limbeck.data.sources.images.read_images`. A .npy file holds an image of any number of channels, see
    `limbeck.data.pixels.decoded`. With ``streaming`` the images stay where they are, see `limbeck.data.images`, and
    count as colour images until `load` has looked at some of them.

    Args:
        path: the folder or zip file, absolute, or relative to the working folder or to the data root.
        root: see `data_root`.
        size: height and width of the images. None: their own where all have the same; else a square of the median of
            their shorter sides, at most 224.
        progress: is called for every file that is decoded. Where sizes differ and none is given, it is also called for
            every file whose size is looked at before.
        exif_orientation: turn and mirror images as their EXIF data says.
        streaming: leave the images on disk, where they do not fit in memory.
        workers: with streaming, the number of processes that decode images; 0: only this one; None: one a processor,
            at most 4.
        transform: with streaming, what makes a training view of an image instead of the resizing, before the
            augmentation: ``random_resized_crop`` or ``path/to/file.py:function``, see `limbeck.data.transforms`.
            Evaluation never uses it.
        unlabelled: a folder in ``path``. Its images, at any depth, have no labels and are used for training only.

    Raises:
        LimbeckError: the path does not exist; there is no class folder, an empty one, or not the same ones in all
            splits; two folders for one split, or a folder beside train that is not a split; ``unlabelled`` holds no
            image; an image cannot be read; an option is out of range, or needs streaming.
    """
    how = Reading(size, exif_orientation, streaming, workers, transform, progress)
    reader = Reader(located(path, root))
    listing = reader.listing()
    tree, extra = _without(Tree(reader.place, listing.names), unlabelled)
    layout = find_layout(tree)
    found = {split: _children(tree, beginning(layout, split)) for split in layout.folders or ("train",)}
    classes = _same_classes(tree, layout, found)
    names = {part: tuple(name for images in of.values() for name in images) for part, of in found.items()}
    names["train"] += extra
    inputs, notes = how.inputs(reader, tuple(names.values()))
    splits = {}
    for (part, files), samples in zip(names.items(), inputs, strict=True):
        counts = torch.tensor([len(found[part][name]) for name in classes])
        labels = torch.repeat_interleave(torch.arange(len(classes)), counts)
        splits[part] = Split(samples, functional.pad(labels, (0, len(files) - len(labels)), value=-1), files)
    return Parts(
        splits["train"],
        classes=classes,
        validation=splits.get("validation"),
        test=splits.get("test"),
        origins=_origins(tree, layout, unlabelled),
        notes=(*skipped(listing, chain(*names.values()), "in no class folder"), *notes),
    )


def _without(tree: Tree, folder: str | None) -> tuple[Tree, tuple[str, ...]]:
    """The tree without a folder, and the names of the images in the folder, of which there is at least one."""
    if folder is None:
        return tree, ()
    inside = below(tree, f"{folder.strip('/')}/")
    images = tuple(name for name in inside if name.lower().endswith(SUFFIXES))
    if not images:
        near = close_names(folder, {str(PurePosixPath(name).parent) for name in tree.names})
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise LimbeckError(f"{tree.place} has no folder {folder!r} with images for unlabelled{hint}")
    rest = set(inside)
    return Tree(tree.place, [name for name in tree.names if name not in rest]), images


def split_of(name: str) -> str | None:
    """The split of a folder with this name; None if it is not one of `NAMES`."""
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def find_layout(tree: Tree) -> Layout:
    """Find the splits.

    Raises:
        LimbeckError: there are folders of splits, but not of train, or two of one split; other folders, or images in no
            class folder, are beside them.
    """
    top = ""
    tops = list(_children(tree, top))
    if len(tops) == 1 and split_of(tops[0]) is None and _wraps(tree, f"{tops[0]}/"):
        top = f"{tops[0]}/"
        tops = list(_children(tree, top))
    parts = [(name, split) for name in tops if (split := split_of(name)) is not None]
    others = [name for name in tops if split_of(name) is None]
    if not parts or (others and _is_class(tree, top, [name for name, _ in parts])):
        return Layout(top, {})
    folders: dict[str, str] = {}
    for name, split in parts:
        if split in folders:
            raise LimbeckError(f"{tree.place}: {folders[split]}/ and {name}/ are both {split}; allowed is one of them")
        folders[split] = name
    if "train" not in folders:
        raise LimbeckError(f"{tree.place}: no train/ beside {', '.join(folders.values())}; {_ADVICE}")
    loose = [name for at in (top, *(f"{top}{name}/" for name in folders.values())) for name in _loose(tree, at)]
    if loose:
        raise LimbeckError(f"{tree.place}: {_first(loose)}, in no class folder; {_ADVICE}")
    if others:
        allowed = ", ".join(f"{name}/" for names in NAMES.values() for name in names)
        raise LimbeckError(
            f"{tree.place}: {_first([f'{name}/' for name in others])} beside {folders['train']}/ is not a split; "
            f"allowed are {allowed}, in lower or upper case, and hidden folders"
        )
    return Layout(top, {split: folders[split] for split in NAMES if split in folders})


def _wraps(tree: Tree, top: str) -> bool:
    """Whether the only folder holds the splits or classes, and is not a class."""
    trains = [name for name in _children(tree, top) if split_of(name) == "train"]
    return _holds_folders_only(tree, top) or any(_holds_folders_only(tree, f"{top}{name}/") for name in trains)


def _is_class(tree: Tree, top: str, parts: Sequence[str]) -> bool:
    """Whether the only folder with a split's name is a class with the name train, because it holds images."""
    return len(parts) == 1 and parts[0].lower() == "train" and not _holds_folders_only(tree, f"{top}{parts[0]}/")


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def beginning(layout: Layout, split: str) -> str:
    """The beginning of the names of a split's images."""
    return f"{layout.top}{layout.folders[split]}/" if layout.folders else layout.top


def below(tree: Tree, top: str) -> Sequence[str]:
    """The names that begin with ``top``, sorted."""
    return tree.names[bisect_left(tree.names, top) : bisect_left(tree.names, top + chr(sys.maxunicode))]


def _children(tree: Tree, top: str) -> Classes:
    """The folders directly in ``top``, each with the images at any depth in it."""
    children: dict[str, list[str]] = {}
    for name in below(tree, top):
        child, slash, rest = name[len(top) :].partition("/")
        if slash:
            images = children.setdefault(child, [])
            if rest.lower().endswith(SUFFIXES):
                images.append(name)
    return dict(sorted(children.items()))


def _loose(tree: Tree, top: str) -> list[str]:
    """The images directly in ``top``."""
    return [name for name in below(tree, top) if "/" not in name[len(top) :] and name.lower().endswith(SUFFIXES)]


def _holds_folders_only(tree: Tree, top: str) -> bool:
    return any("/" in name[len(top) :] for name in below(tree, top)) and not _loose(tree, top)


def _same_classes(tree: Tree, layout: Layout, found: Mapping[str, Classes]) -> tuple[str, ...]:
    train = found["train"]
    if not train:
        raise LimbeckError(f"{tree.place} has no class folders; allowed is one folder of images for each class")
    for split, classes in found.items():
        missing, more = sorted(train.keys() - classes.keys()), sorted(classes.keys() - train.keys())
        if missing or more:
            one, other = layout.folders["train"], layout.folders[split]
            only = [f"only {name}/ has {', '.join(names)}" for name, names in ((one, missing), (other, more)) if names]
            raise LimbeckError(f"{tree.place}: {one}/ and {other}/ must have the same class folders; {'; '.join(only)}")
        for name, images in classes.items():
            _check_class(tree, layout, split, name, images)
    return tuple(train)


def _check_class(tree: Tree, layout: Layout, split: str, name: str, images: Sequence[str]) -> None:
    if not images:
        raise LimbeckError(
            f"{tree.place}: class folder {name!r} of {split} has no images; their names end with {', '.join(SUFFIXES)}"
        )
    for image in images:
        try:
            image.encode()
        except UnicodeEncodeError as error:
            readable = image.encode(errors="backslashreplace").decode()
            raise LimbeckError(f"{tree.place}: the name {readable} is not UTF-8; allowed are UTF-8 names") from error
    top = f"{beginning(layout, split)}{name}/"
    inside = {image[len(top) :].rpartition("/")[0] for image in images}
    splits = {split_of(part) for folders in inside for part in folders.split("/")}
    if "train" in splits and splits & {"validation", "test"}:
        raise LimbeckError(
            f"{tree.place}: class folder {top} has folders in it with the names of splits; {_ADVICE}, in the folder "
            "that path names"
        )


def _origins(tree: Tree, layout: Layout, unlabelled: str | None) -> Mapping[str, str]:
    whole = f"{tree.place.name}/{layout.top}".rstrip("/")
    found = {split: f"folder {name}/ of {whole}" for split, name in layout.folders.items()}
    found = found or {"train": f"the class folders of {whole}"}
    return found if unlabelled is None else found | {"train": f"{found['train']}, with the images of {unlabelled}"}
