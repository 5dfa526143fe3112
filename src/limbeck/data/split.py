"""The types of data: `Split`, a set of labelled samples, and `Data`, a data set of three splits."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.checking import check_samples
from limbeck.data.images import Images, Inputs
from limbeck.data.scaling import check_scaling
from limbeck.data.targets import TaskName

_CHUNK = 1024  # samples whose bytes are hashed at a time


@dataclass(frozen=True, eq=False)
class Split:
    """A set of labelled samples, in memory, or on disk if the inputs are `Images`."""

    inputs: Inputs  #: (N, C, H, W), (N, C, L) or (N, D), uint8 or floating
    #: (N,) int64 class indices, -1 for a training sample without a label; or those of `limbeck.data.targets`
    targets: Tensor
    names: tuple[str, ...] | None = None  #: of the files, such as train/cat/1.jpg; None if there are no files
    weights: Tensor | None = None  #: (N,) float32, the weights of the samples in the hard loss; None: all are 1

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"Split({len(self)} samples, {self.inputs.dtype}, shape={tuple(self.inputs.shape[1:])})"

    @property
    def labels(self) -> Tensor:
        """The class indices (N,) int64, -1 for no label; all 0 if the targets are not class indices."""
        return self.targets if self.targets.dtype == torch.int64 else torch.zeros(len(self), dtype=torch.int64)

    def select(self, index: Tensor) -> "Split":
        """A copy of the samples at these places, (M,) int64, in this order; of images on disk, of their names."""
        inputs = self.inputs.select(index) if isinstance(self.inputs, Images) else self.inputs[index]
        names = None if self.names is None else tuple(self.names[place] for place in index.tolist())
        weights = None if self.weights is None else self.weights[index]
        return Split(inputs, self.targets[index], names, weights)

    def without(self, classes: Iterable[int]) -> "Split":
        """All samples except those of these classes; the other class indices do not change."""
        dropped = torch.tensor(list(classes), dtype=torch.int64)
        if not len(dropped):
            return self
        return self.select(torch.nonzero(~torch.isin(self.labels, dropped)).flatten())

    @property
    def transform(self) -> str | None:
        """The name of the transform that makes the training views of images on disk; None if there is none."""
        return self.inputs.transform if isinstance(self.inputs, Images) else None

    def digest(self) -> str:
        """A hash of the samples (xxh3_128, 32 hexadecimal digits), the same on every machine.

        It covers the targets and weights. In memory, it covers the type, shape and bytes of the inputs, and not
        ``names``. On disk, it covers the names and sizes of the files, the first 4 KiB of each file, the channels,
        height and width of the decoded images, and the transform: its name, and the bytes of its file when it was
        loaded. It does not cover the rest of a file, what a transform's file imports, or the versions of Pillow and
        torchvision.

        Raises:
            LimbeckError: a file cannot be read.
        """
        found = xxhash.xxh3_128()
        for part in (self.targets, self.inputs, *(() if self.weights is None else (self.weights,))):
            for piece in part.fingerprint() if isinstance(part, Images) else _bytes(part):
                found.update(piece)
        return found.hexdigest()


def _bytes(values: Tensor) -> Iterator[bytes | memoryview]:
    yield repr((str(values.dtype), tuple(values.shape))).encode()
    for chunk in torch.split(values, _CHUNK):
        yield chunk.contiguous().view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, eq=False)
class Data:
    """A data set of three splits whose samples have the same shape; only ``validation`` may be empty.

    ``classes`` are the names of the classes by index; of other tasks, of the labels, numbers or points.
    ``mean`` and ``std`` have one number for each channel (one number for inputs of shape (N, D)), as `normalise` takes
    them: of uint8 inputs divided by 255. ``origins`` says where "train", "validation" and "test" came from. ``notes``
    are sentences about the loading for the user.

    Raises:
        LimbeckError: a length, shape, type, target or value does not fit; the message names the split.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    task: TaskName = "classification"
    task_options: Mapping[str, Any] = field(default_factory=dict)  #: what the user chose, see `limbeck.tasks.task_of`

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            check_samples(
                name,
                split.inputs,
                split.targets,
                split.weights,
                shape=self.shape,
                classes=len(self.classes),
                unlabelled=name == "train",
                task=self.task,
            )
            if name != "validation" and not len(split):
                raise LimbeckError(f"the {name} split is empty; allowed are one sample and more")
        check_scaling(self.train.inputs, self.mean, self.std)

    def __repr__(self) -> str:
        counts = f"train={len(self.train)}, validation={len(self.validation)}, test={len(self.test)}"
        names = ", ".join(self.classes[:9]) + ", ..." * (len(self.classes) > 9)
        scaling = f"mean={self.mean}, std={self.std}"
        return f"Data({self.task}, {counts}, shape={self.shape}, classes=[{names}], {scaling})"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of a network's outputs: the classes, labels or numbers, or the coordinates of the points."""
        if self.task != "landmarks":
            return self.classes
        return tuple(f"{name}.{axis}" for name in self.classes for axis in "xy")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, without N."""
        return tuple(self.train.inputs.shape[1:])
