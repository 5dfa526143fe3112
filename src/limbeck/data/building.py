"""Build a data set from three splits: measure the mean and deviation, and check images on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.dividing import limited
from limbeck.data.images import Images
from limbeck.data.scaling import channels, counts, measure, moments, moments_of_sums, sums
from limbeck.data.split import Data, Split
from limbeck.data.streaming import Decoder, Wanted
from limbeck.data.targets import TaskName
from limbeck.data.transforms import make_transform

_LOOKED_AT, _AT_ONCE = 2000, 64  # images on disk that are decoded of each split, and at a time
_LISTED = 10  # classes without a sample that are named


def build(
    *,
    train: Split,
    validation: Split,
    test: Split,
    classes: tuple[str, ...],
    task: TaskName = "classification",
    normalise: bool,
    origins: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Data:
    """Build `Data` from splits, with mean and std measured on train, or 0 and 1 without ``normalise``.

    At most 2,000 images on disk are decoded of each split, evenly over the classes and without transform; mean and std
    are measured on those of train. If all of them are grey, the images have one channel.

    Raises:
        LimbeckError: the splits do not fit together; an image cannot be read; the transform does not exist, or it fails
            on the first image of train or gives two different views of it.
    """
    count = channels(train.inputs)
    data = Data(train, validation, test, classes, (0.0,) * count, (1.0,) * count, {**origins}, task=task)
    if task == "classification":
        notes = (*notes, *_unlabelled(data), *empty_classes("training", train, classes))
    data = replace(data, notes=(*notes,))
    if isinstance(train.inputs, Images):
        return _looked_at(data, train.inputs, normalise)
    if not normalise:
        return data
    mean, std = measure(train.inputs)
    return replace(data, mean=mean, std=std)


def _unlabelled(data: Data) -> list[str]:
    """A note that counts the training samples without a label."""
    count = int((data.train.labels < 0).sum())
    return [f"{count:,} of {len(data.train):,} training samples are unlabelled"] if count else []


def empty_classes(name: str, split: Split, classes: Sequence[str]) -> list[str]:
    """A note that names the classes without a sample in a split; ``name`` is what the note calls its samples."""
    counted = torch.bincount(split.labels[split.labels >= 0], minlength=len(classes))
    empty = [classes[place] for place in torch.nonzero(counted == 0).flatten().tolist()]
    if not empty:
        return []
    listed = ", ".join(empty[:_LISTED]) + ", ..." * (len(empty) > _LISTED)
    return [f"{len(empty):,} of {len(classes):,} classes have no {name} sample: {listed}"]


def _looked_at(data: Data, images: Images, normalise: bool) -> Data:
    """The data with the channels of its images, and their mean and std."""
    if images.transform is not None:
        make_transform(images.transform, images.size, images.code)  # an error here comes before the images are decoded
    parts = (data.train, data.validation, data.test)
    seen = [_look(part) for part in parts]
    kept = 1 if images.channels == 3 and all(grey for grey, _ in seen) else images.channels
    summary = moments_of_sums if images.deep else moments
    mean, std = summary(seen[0][1][:kept]) if normalise else ((0.0,) * kept, (1.0,) * kept)
    train, validation, test = (_with_channels(part, kept) for part in parts)
    if images.transform is not None:
        _try_transform(replace(images, channels=kept))
    return replace(data, train=train, validation=validation, test=test, mean=mean, std=std)


def _try_transform(images: Images) -> None:
    """Make view 0 of the first image twice.

    Raises:
        LimbeckError: the image cannot be read; the transform fails or gives two different views.
    """
    decoder, first = Decoder(images, seed=0), Wanted(images.names[:1], [0], 0)
    (one, problem), (other, _) = (decoder[first] for _ in range(2))
    if problem:
        raise LimbeckError(problem)
    if not torch.equal(one, other):
        raise LimbeckError(
            f"{images.transform} gives two different views of {images.names[0]} for the same seed, so a run could not "
            "be resumed exactly: draw random numbers from random, numpy.random or torch, which limbeck seeds"
        )


def _look(split: Split) -> tuple[bool, Tensor]:
    """Whether the decoded images of a split are all grey, and their `counts`; of floats, their `sums`."""
    few = limited(split, _LOOKED_AT, 0)
    count = counts if split.inputs.dtype == torch.uint8 else sums
    grey, counted = True, count(torch.empty(0, *split.inputs.shape[1:], dtype=split.inputs.dtype))
    for index in torch.split(torch.arange(len(few)), _AT_ONCE):
        pixels = few.inputs[index]
        grey = grey and torch.equal(pixels, pixels[:, :1].expand_as(pixels))
        counted += count(pixels)
    return grey, counted


def _with_channels(split: Split, channels: int) -> Split:
    return (
        replace(split, inputs=replace(split.inputs, channels=channels)) if isinstance(split.inputs, Images) else split
    )
