"""Images of one split that are in other splits too: identical ones, and nearly identical ones."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from limbeck.data.images import Images
from limbeck.data.split import Split

COMPARED, SEARCHED = 2000, 100_000
"""Of one split, the most images that are compared; of each other split, the most that they are compared with."""

ALIKE = 0.1
"""The largest L2 distance between the thumbnails, of norm 1, of two nearly identical images."""

NEAR = 8 / 255
"""The largest mean difference between the grey values of two nearly identical images, as a share of their range."""

_FLAT = 2.0  # the standard deviation, of values from 0 to 255, up to which a thumbnail has no contrast
_CHUNK = 512  # images that are reduced at a time


class Match(NamedTuple):
    """An image that is also in another split."""

    place: int  # in its own split
    split: str  # the name of the other split
    other: int  # the place there


def identical(splits: Mapping[str, Split]) -> dict[str, list[Match]]:
    """For each split, the images that are also in a split before it, each once.

    Images in memory (N, C, H, W) are compared by the hash of their pixels (xxh3_128), images on disk by the hash of
    their files. A file is read in full only if its size and its first 4 KiB are those of a file of another split.
    Samples of another shape (N, D) are not compared.

    Raises:
        LimbeckError: a file cannot be read.
    """
    keys = {name: _keys(split) for name, split in splits.items()}
    shared = set[bytes]().union(*(one & other for one, other in combinations(map(set, keys.values()), 2)))
    known: dict[bytes, tuple[str, int]] = {}
    found = {}
    for name, split in splits.items():
        images = split.inputs
        full = {place: key for place, key in enumerate(keys[name]) if key in shared}
        if isinstance(images, Images):
            full = {
                place: key + xxhash.xxh3_128_digest(images.reader(images.names[place])) for place, key in full.items()
            }
        found[name] = [Match(place, *known[key]) for place, key in full.items() if key in known]
        for place, key in full.items():
            known.setdefault(key, (name, place))
    return found


def similar(split: Split, others: Mapping[str, Split]) -> list[Match]:
    """The images in memory of a split that look like an image of another split, each once; also identical ones.

    An image is reduced to 8 x 8 grey values, from which their mean is subtracted and which are divided by their norm.
    The image of the other splits with the most similar values is compared at 16 x 16: the two look alike if the values
    differ by at most `ALIKE` (L2), and the grey values themselves by at most `NEAR` of their range on average. The
    range is 255 for uint8, and otherwise that of all values in the split. Images without contrast are not compared. At
    most `COMPARED` images are compared with at most `SEARCHED` of each other split, spread evenly over the splits.
    """
    if isinstance(split.inputs, Images) or split.inputs.dim() != 4 or not len(split):
        return []
    most = NEAR * _range(split.inputs)
    theirs = [(name, place) for name, other in others.items() for place in _spread(other, SEARCHED).tolist()]
    known = torch.cat([_thumbnails(other, _spread(other, SEARCHED), 8) for other in others.values()])
    found = []
    for places in torch.split(_spread(split, COMPARED), _CHUNK):
        alike, best = (_thumbnails(split, places, 8) @ known.T).max(dim=1)
        for row in torch.nonzero(alike >= 1 - 2 * ALIKE**2).flatten().tolist():
            match = Match(int(places[row]), *theirs[int(best[row])])
            pair = (split, torch.tensor([match.place])), (others[match.split], torch.tensor([match.other]))
            shapes, greys = ([form(*one, 16) for one in pair] for form in (_thumbnails, _grey))
            if (greys[0] - greys[1]).abs().mean() <= most and (shapes[0] - shapes[1]).norm() <= ALIKE:
                found.append(match)
    return found


def _keys(split: Split) -> list[bytes]:
    """A hash of each image in memory; of each file on disk, its size and its beginning."""
    inputs = split.inputs
    if inputs.dim() != 4:
        return []
    if isinstance(inputs, Images):
        heads = (inputs.reader.beginning(name) for name in inputs.names)
        return [size.to_bytes(8) + xxhash.xxh3_128_digest(head) for size, head in heads]
    chunks = (chunk.contiguous().flatten(1).view(torch.uint8).numpy() for chunk in torch.split(inputs, _CHUNK))
    return [xxhash.xxh3_128_digest(row) for chunk in chunks for row in chunk]


def _spread(split: Split, most: int) -> Tensor:
    """The places of at most so many samples, evenly spread, (M,) int64."""
    kept = min(len(split), most)
    return torch.arange(kept) * len(split) // max(1, kept)


def _range(images: Tensor) -> float:
    if images.dtype == torch.uint8:
        return 255.0
    least, most = images.aminmax()
    return float(most - least)


def _grey(split: Split, places: Tensor, side: int) -> Tensor:
    """The grey values (M, side²) of the images at these places."""
    return F.adaptive_avg_pool2d(split.inputs[places].float().mean(dim=1, keepdim=True), side).flatten(1)


def _thumbnails(split: Split, places: Tensor, side: int) -> Tensor:
    """The grey thumbnails (M, side²) of the images at these places, of mean 0 and norm 1, or 0 without contrast."""
    found = []
    for few in torch.split(places, _CHUNK):
        grey = _grey(split, few, side)
        centred = grey - grey.mean(dim=1, keepdim=True)
        flat = _FLAT if split.inputs.dtype == torch.uint8 else _FLAT / 255
        shown = centred.norm(dim=1, keepdim=True) > side * flat
        found.append(F.normalize(centred, dim=1) * shown)
    return torch.cat(found)
