"""Images and masks of the same names in two folders, for segmentation."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.bounds import check_memory
from limbeck.data.decoding import SUFFIXES, mask, quiet
from limbeck.data.sources.base import Parts, Progress, located
from limbeck.data.sources.folders import Layout, Tree, beginning, below, find_layout
from limbeck.data.sources.images import Size, look, read_images
from limbeck.data.sources.reading import skipped
from limbeck.data.split import Split
from limbeck.data.targets import IGNORED, outputs_of
from limbeck.data.trees import Reader
from limbeck.files.columns import few, refuse_doubled

PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG."""


def masks(
    *,
    path: Path,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    image_folder: str = "images",
    mask_folder: str = "masks",
    classes: tuple[str, ...] = (),
) -> Parts:
    """Images (N, C, H, W) and the class index of every pixel (N, H, W), uint8; all are in memory.

    The mask of ``images/a/1.jpg`` is ``masks/a/1.png``: a PNG of 8-bit grey or with a palette, whose pixels are class
    indices from 0, and 255 for pixels that do not count. The two folders may be inside folders of the splits, with a
    name of `limbeck.data.sources.folders.NAMES`, and all of this inside one more folder. The EXIF orientation of images
    is ignored, because masks are not turned.

    Args:
        path: the folder or zip file, absolute, or relative to the working folder or to the data root.
        root: see `data_root`.
        size: as for class folders. A mask is cut out as its image, and the nearest pixels are chosen.
        progress: is called for every image that is decoded.
        image_folder: the folder of the images.
        mask_folder: the folder of the masks.
        classes: the names of the classes by index; by default "0", "1", ... up to the highest index.

    Raises:
        LimbeckError: the path does not exist; a split lacks a folder, an image or a mask; two images have the same name
            without its ending; a file cannot be read; a mask has another size than its image, or an index that is not a
            class; all do not fit in memory.
    """
    reader = Reader(located(path, root))
    listing = reader.listing()
    tree = Tree(reader.place, listing.names)
    layout = find_layout(tree)
    parts = layout.folders or ("train",)
    pairs = {split: _pairs(tree, beginning(layout, split), image_folder, mask_folder) for split in parts}
    names = [name for split in pairs.values() for name in split]
    found = [other for split in pairs.values() for other in split.values()]
    others = [name for name in found if reader.head(name, len(PNG))[1] != PNG]
    if others:
        raise LimbeckError(
            f"{reader.place}: {few(others)} of {len(found):,} masks are no PNG: save masks as PNG, because JPEG "
            "changes the values"
        )
    inputs, notes = read_images(reader, names, size, exif_orientation=False, progress=progress)
    targets = _read_masks(reader, names, found, (inputs.shape[2], inputs.shape[3]), len(classes) or IGNORED)
    counts = [len(split) for split in pairs.values()]
    made = zip(pairs, torch.split(inputs, counts), torch.split(targets, counts), strict=True)
    splits = {split: Split(images, indices, tuple(pairs[split])) for split, images, indices in made}
    return Parts(
        splits["train"],
        classes=classes or tuple(map(str, range(outputs_of(targets, "segmentation")))),
        validation=splits.get("validation"),
        test=splits.get("test"),
        task="segmentation",
        origins=_origins(tree, layout),
        notes=(*skipped(listing, chain(names, found), "not used"), *notes),
    )


def _pairs(tree: Tree, top: str, images: str, masks: str) -> Mapping[str, str]:
    """The names of images to those of their masks."""
    folders = [f"{top}{name.strip('/')}/" for name in (images, masks)]
    inside = [[name for name in below(tree, folder) if name.lower().endswith(SUFFIXES)] for folder in folders]
    for folder, names in zip(folders, inside, strict=True):
        if not names:
            raise LimbeckError(
                f"{tree.place} has no folder {folder} with images; allowed are {images}/ and {masks}/, each in the "
                "folder that path names or in train/, test/ and, if there is one, validation/; other names with "
                "image_folder and mask_folder"
            )
    keys = [[_key(name, folder) for name in names] for names, folder in zip(inside, folders, strict=True)]
    for folder, own in zip(folders, keys, strict=True):
        refuse_doubled(own, f"{tree.place}: more than one file in {folder} with the name")
    for folder, lacking in zip(folders, (set(keys[1]) - set(keys[0]), set(keys[0]) - set(keys[1])), strict=True):
        if lacking:
            told = f"{folder} has no file for {few(sorted(lacking))} of the names in the other folder"
            raise LimbeckError(f"{tree.place}: {told}")
    found = dict(zip(keys[1], inside[1], strict=True))
    return {name: found[key] for key, name in zip(keys[0], inside[0], strict=True)}


def _key(name: str, folder: str) -> str:
    """The name below its folder without the ending."""
    return str(PurePosixPath(name[len(folder) :]).with_suffix(""))


def _read_masks(reader: Reader, images: Sequence[str], names: Sequence[str], size: Size, classes: int) -> Tensor:
    """The masks (N, H, W) uint8 of images that were decoded to this size."""
    text = f"{len(names):,} masks of {size[0]} x {size[1]}"
    check_memory(len(names) * size[0] * size[1], text, "give a smaller size")
    targets = torch.empty(len(names), *size, dtype=torch.uint8)
    with quiet():
        for place, (image, name) in enumerate(zip(images, names, strict=True)):
            label = reader.label(name)
            pixels = mask(label, reader(name), size=size, of=look(reader, image, False).size)
            wrong = pixels[(pixels >= classes) & (pixels != IGNORED)]
            if wrong.size:
                raise LimbeckError(
                    f"{label} has the class index {wrong[0]}; allowed are 0 to {classes - 1}, and {IGNORED} for pixels "
                    "that do not count"
                )
            targets[place] = torch.from_numpy(pixels)
    return targets


def _origins(tree: Tree, layout: Layout) -> Mapping[str, str]:
    whole = f"{tree.place.name}/{layout.top}".rstrip("/")
    found = {split: f"folder {name}/ of {whole}" for split, name in layout.folders.items()}
    return found or {"train": f"the images of {whole}"}
