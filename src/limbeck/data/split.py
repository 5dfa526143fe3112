"""Labelled samples: one split, and the three that make a data set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import xxhash
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.images import Images, Inputs, pieces
from limbeck.data.keys import Purpose, key
from limbeck.data.scaling import channels, check_scaling, counts, measure, moments
from limbeck.data.streaming import try_transform
from limbeck.data.transforms import make_transform

_CHUNK = 1024  # samples whose bytes are put in order at a time
_LOOKED_AT, _AT_ONCE = 2000, 64  # images on disk that are looked at of each split, and are held at a time
_LISTED = 10  # classes without a sample that are named


@dataclass(frozen=True, eq=False)
class Split:
    """A set of labelled samples, in memory or, where they are `Images`, on disk."""

    inputs: Inputs  # (N, C, H, W) uint8, or floating (N, C, H, W) or (N, D)
    targets: Tensor  # (N,) int64 class indices
    names: tuple[str, ...] | None = None  # of the samples' files, such as train/cat/1.jpg; None where there are none

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: Tensor) -> "Split":
        """The samples at these places, (M,) int64, in this order; a copy, of images on disk of their names alone."""
        inputs = self.inputs.select(index) if isinstance(self.inputs, Images) else self.inputs[index]
        names = None if self.names is None else tuple(self.names[place] for place in index.tolist())
        return Split(inputs, self.targets[index], names)

    def without(self, classes: Iterable[int]) -> "Split":
        """The samples but for those of these classes; the other class indices stay what they are."""
        dropped = torch.tensor(list(classes), dtype=torch.int64)
        if not len(dropped):
            return self
        return self.select(torch.nonzero(~torch.isin(self.targets, dropped)).flatten())

    @property
    def transform(self) -> str | None:
        """What makes the training views of images on disk, each another one; None where nothing does."""
        return self.inputs.transform if isinstance(self.inputs, Images) else None

    def digest(self) -> str:
        """What the samples are, as 32 hexadecimal digits (xxh3_128), the same on every machine.

        In memory: type, shape and bytes of inputs and targets; not ``names``. On disk: the targets, the names and sizes
        of the files, the first 4 KiB of each, the channels, height and width they are decoded to, and the transform
        (its name, and the bytes of its file as they were when it was loaded). It does not see what changes behind the
        first 4 KiB of a file that keeps its size, what a transform's file imports, or another version of Pillow or
        torchvision.

        Raises:
            LimbeckError: a file cannot be read.
        """
        found = xxhash.xxh3_128()
        for part in (self.targets, self.inputs):
            for piece in part.fingerprint() if isinstance(part, Images) else _bytes(part):
                found.update(piece)
        return found.hexdigest()


def _bytes(values: Tensor) -> Iterator[bytes | memoryview]:
    yield repr((str(values.dtype), tuple(values.shape))).encode()
    for chunk in pieces(values, _CHUNK):
        yield chunk.contiguous().view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, eq=False)
class Data:
    """A data set of three splits whose samples have one shape; only ``validation`` may be empty.

    ``mean`` and ``std`` have one number for each channel (a single one for inputs of shape (N, D)) and are of the
    inputs in [0, 1] where these are uint8, as `normalise` takes them. ``origins`` says of "train", "validation" and
    "test" where each came from, and ``notes`` what a user should know of how they were loaded, each a sentence.

    Raises:
        LimbeckError: lengths, shapes, types, targets or values do not fit; the message names the split.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, without N."""
        return tuple(self.train.inputs.shape[1:])

    def check(self) -> None:
        """Check all that training relies on.

        Raises:
            LimbeckError: something does not fit.
        """
        for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            _check_split(name, split, self.shape, len(self.classes))
            if name != "validation" and not len(split):
                raise LimbeckError(f"the {name} split is empty; it needs at least one sample")
        check_scaling(self.train.inputs, self.mean, self.std)


def _check_split(name: str, split: Split, shape: tuple[int, ...], classes: int) -> None:
    inputs, targets = split.inputs, split.targets
    if inputs.dim() not in (2, 4):
        raise LimbeckError(f"{name}: inputs have shape {tuple(inputs.shape)}; allowed are (N, C, H, W) and (N, D)")
    if tuple(inputs.shape[1:]) != shape:
        raise LimbeckError(f"{name}: a sample has shape {tuple(inputs.shape[1:])}, but one of train has {shape}")
    if inputs.dtype != torch.uint8 and not inputs.dtype.is_floating_point:
        raise LimbeckError(f"{name}: inputs are {inputs.dtype}; allowed are torch.uint8 and floating types")
    if targets.dtype != torch.int64 or targets.dim() != 1:
        raise LimbeckError(
            f"{name}: targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed is torch.int64 of shape (N,)"
        )
    if len(inputs) != len(targets):
        raise LimbeckError(f"{name}: {len(inputs)} inputs, but {len(targets)} targets")
    wrong = torch.nonzero((targets < 0) | (targets >= classes)).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise LimbeckError(
            f"{name}: target {int(targets[first])} of sample {first} is no class; allowed are 0 to {classes - 1}"
        )
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        _check_finite(name, inputs)


def _check_finite(name: str, inputs: Tensor) -> None:
    bad = ~torch.isfinite(inputs)
    count = int(bad.sum())
    if count:
        first = int(torch.nonzero(bad)[0, 0])
        raise LimbeckError(f"{name}: {count} values are NaN or infinite, the first in sample {first}")


def split_off(count_or_fraction: float, split: Split, seed: int) -> tuple[Split, Split]:
    """Divide a split at random, each class as evenly as whole numbers allow; both parts keep the samples' order.

    Args:
        count_or_fraction: the size of the part: a count if int, a share in [0, 1) if float (rounded).
        split: what to divide.
        seed: the same seed gives the same division; torch's global generator is not touched.

    Returns:
        The rest, and the part.

    Raises:
        LimbeckError: the count or the share is out of range.
    """
    total = len(split)
    count = _count(count_or_fraction, total)
    sizes = torch.bincount(split.targets)
    quotas, remainders = sizes * count // max(total, 1), sizes * count % max(total, 1)
    missing = count - int(quotas.sum())
    quotas[torch.argsort(remainders, descending=True, stable=True)[:missing]] += 1

    generator = torch.Generator().manual_seed(key(Purpose.SPLIT, seed))
    shuffled = torch.randperm(total, generator=generator)
    by_class = shuffled[torch.argsort(split.targets[shuffled], stable=True)]
    labels = split.targets[by_class]
    rank = torch.arange(total) - (sizes.cumsum(0) - sizes)[labels]
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[by_class] = rank < quotas[labels]
    return split.select(torch.nonzero(~chosen).flatten()), split.select(torch.nonzero(chosen).flatten())


def _count(count_or_fraction: float, total: int) -> int:
    if isinstance(count_or_fraction, int):
        if 0 <= count_or_fraction <= total:
            return count_or_fraction
    elif 0 <= count_or_fraction < 1:
        return round(count_or_fraction * total)
    raise LimbeckError(
        f"cannot split off {count_or_fraction!r} of {total} samples; "
        f"allowed are a count from 0 to {total} and a share (a float) in [0, 1)"
    )


def in_words(count_or_fraction: float) -> str:
    """What `split_off` takes, as a message says it."""
    return (
        f"{count_or_fraction:,} samples" if isinstance(count_or_fraction, int) else f"{100 * count_or_fraction:.6g} %"
    )


def part_of_train(count_or_fraction: float, seed: int) -> str:
    """Where a validation split that `split_off` gave came from."""
    return (
        f"{in_words(count_or_fraction)} of train, evenly over the classes, seed {seed}" if count_or_fraction else "none"
    )


def build(
    *,
    train: Split,
    validation: Split,
    test: Split,
    classes: tuple[str, ...],
    normalise: bool,
    origins: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Data:
    """Put splits together as `Data`, with mean and std measured on train; 0 and 1 unless ``normalise``.

    Of images on disk at most 2,000 of each split are looked at, as evenly over the classes as `split_off` takes them,
    and without transform; those of train are measured. Where all these are grey the images have one channel.

    Raises:
        LimbeckError: the splits do not fit together; an image that is looked at cannot be read; there is no such
            transform, or it fails on the first image of train.
    """
    count = channels(train.inputs)
    data = Data(train, validation, test, classes, (0.0,) * count, (1.0,) * count, {**origins})
    data = replace(data, notes=(*notes, *_empty_classes(data)))
    if isinstance(train.inputs, Images):
        return _looked_at(data, train.inputs, normalise)
    if not normalise:
        return data
    mean, std = measure(train.inputs)
    return replace(data, mean=mean, std=std)


def _empty_classes(data: Data) -> list[str]:
    """A note of the classes that nothing is learned of."""
    counted = torch.bincount(data.train.targets, minlength=len(data.classes))
    empty = [data.classes[place] for place in torch.nonzero(counted == 0).flatten().tolist()]
    if not empty:
        return []
    listed = ", ".join(empty[:_LISTED]) + ", ..." * (len(empty) > _LISTED)
    return [f"{len(empty):,} of {len(data.classes):,} classes have no training sample: {listed}"]


def _looked_at(data: Data, images: Images, normalise: bool) -> Data:
    """The data with the channels that its images have, and their mean and std."""
    if images.transform is not None:
        make_transform(images.transform, images.size, images.code)  # refused before the work of looking at images
    parts = (data.train, data.validation, data.test)
    seen = [_look(part) for part in parts]
    kept = 1 if all(grey for grey, _ in seen) else images.channels
    mean, std = moments(seen[0][1][:kept]) if normalise else ((0.0,) * kept, (1.0,) * kept)
    train, validation, test = (_with_channels(part, kept) for part in parts)
    if images.transform is not None:
        try_transform(replace(images, channels=kept))
    return replace(data, train=train, validation=validation, test=test, mean=mean, std=std)


def _look(split: Split) -> tuple[bool, Tensor]:
    """Whether those that are looked at are all grey, and how often each channel has each value, (C, 256)."""
    few = split_off(min(_LOOKED_AT, len(split)), split, 0)[1]
    grey, counted = True, torch.zeros(channels(split.inputs), 256, dtype=torch.int64)
    for index in pieces(torch.arange(len(few)), _AT_ONCE):
        pixels = few.inputs[index]
        grey = grey and torch.equal(pixels, pixels[:, :1].expand_as(pixels))
        counted += counts(pixels)
    return grey, counted


def _with_channels(split: Split, channels: int) -> Split:
    return (
        replace(split, inputs=replace(split.inputs, channels=channels)) if isinstance(split.inputs, Images) else split
    )
