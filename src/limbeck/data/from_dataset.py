"""Data from datasets of PyTorch and Hugging Face and from iterables of batches, read once into memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeAlias

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from limbeck.core import LimbeckError
from limbeck.data.bounds import check_memory
from limbeck.data.decoding import loaded
from limbeck.data.from_arrays import check_number, checked_inputs
from limbeck.data.sources import as_data
from limbeck.data.sources.base import Parts, Progress
from limbeck.data.split import Data, Split
from limbeck.data.targets import TaskName, as_targets, outputs_of
from limbeck.errors import nearest


class Indexed(Protocol):
    """Samples by number, such as a `datasets.Dataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Samples: TypeAlias = Dataset[Any] | Iterable[Any] | Indexed

INPUTS = ("image", "img", "pixel_values", "inputs", "features")
"""The columns of inputs that are found by their names."""

TARGETS = ("label", "labels", "target")
"""Likewise of targets. Names such as fine_label are not: a data set that has one usually has another."""

_LISTED = 100  # columns that an error lists

_READ_TWICE = 32  # samples that are compared when they are read again


def dataset(
    train: Samples,
    validation: Samples | None = None,
    test: Samples | None = None,
    *,
    classes: Sequence[str] | None = None,
    normalise: bool = True,
    limit: int | None = None,
    progress: Progress | None = None,
    signals: bool = False,
    task: TaskName = "classification",
    columns: tuple[str, str] | None = None,
) -> Data:
    """Read datasets into memory: check them, and split off what is not given as `limbeck.load` does.

    Each split is a map-style `torch.utils.data.Dataset`, a `datasets.Dataset` of Hugging Face or another object with
    ``__len__`` and ``__getitem__``, of samples ``(input, target)``, or an iterable of batches ``(inputs, targets)``,
    such as a DataLoader. Samples and batches may be dicts, see ``columns``. An input is a tensor or a numpy array (C,
    H, W), (H, W) or (D,), see `limbeck.arrays` for its types, or a PIL image, which becomes uint8 with 1 or 3 channels,
    or float32 if it has more than 8 bits. A target is a class index, or -1 for a training sample without a label. 32
    samples are read twice and must be equal, except for those of an iterator, which gives its samples only once.

    Args:
        train: the training samples.
        validation: 10 % of the training samples by default.
        test: 20 % of the training samples by default.
        classes: the classes' names in the order of their indices; by default ``train.classes``, as the datasets of
            torchvision have it, or ``train.features[target].names``, as those of Hugging Face have it, else "0", "1",
            ...
        normalise: measure mean and std of each channel on the train split; otherwise they are 0 and 1.
        limit: read at most so many samples of each split: of a dataset a random choice, the same in every run; of an
            iterable the first.
        progress: is called with the number of samples or batches of a split that are read and of all, if it has a
            length.
        signals: the inputs are signals (C, L) and not images (H, W).
        task: what the targets are, as in `limbeck.arrays`.
        columns: the keys of input and target, if samples are dicts. By default, those that are in
            `INPUTS` and `TARGETS`; other keys are not read.

    Raises:
        LimbeckError: a sample is no pair, or a dict with other keys, has another shape than the first, or differs when
            it is read again; a target is not a class; the samples do not fit in memory; the classes of two datasets
            differ.
    """
    if limit is not None and limit < 1:
        raise LimbeckError(f"limit is {limit}; allowed are 1 and greater")
    given = {"train": train, "validation": validation, "test": test}
    names = tuple(classes) if classes is not None else _classes(train, columns)
    for name, samples in given.items():
        if isinstance(samples, Mapping) or not (isinstance(samples, Dataset | Iterable | None) or _indexed(samples)):
            raise LimbeckError(
                f"{name} is a {type(samples).__name__}; allowed are a torch Dataset and a DataLoader, a "
                'datasets.Dataset, and the splits of a DatasetDict: limbeck.dataset(d["train"], test=d["test"])'
            )
        other = _classes(samples, columns)
        if classes is None and other and names and other != names:
            raise LimbeckError(f"{name} has the classes {other[:9]}, and train {names[:9]}; allowed are the same")
    splits = {
        name: _read(_Batches(name, samples, limit, signals, task, columns), names, progress)
        for name, samples in given.items()
        if samples is not None
    }
    count = max(outputs_of(split.targets, task) for split in splits.values())
    check_number(count, splits["train"], names or None)
    parts = Parts(
        splits["train"],
        names or tuple(map(str, range(count))),
        splits.get("validation"),
        splits.get("test"),
        origins=dict.fromkeys(splits, "given"),
        task=task,
    )
    return as_data(parts, normalise=normalise)


def _indexed(samples: object) -> bool:
    """Whether these are `Indexed` samples; lists and tuples are batches."""
    methods = all(hasattr(type(samples), name) for name in ("__len__", "__getitem__"))
    return methods and not isinstance(samples, Sequence | Mapping)


def _column(names: Iterable[str], given: str | None, known: tuple[str, ...], option: str) -> str:
    """The column that is given; otherwise the only one whose name is in ``known``; ``option`` names it in messages."""
    listed = [str(name) for name in islice(names, _LISTED)]
    found = [name for name in listed if name == given or (given is None and name in known)]
    if len(found) == 1:
        return found[0]
    if given is not None:
        raise LimbeckError(f"there is no column {given!r}: {nearest(given, listed)}")
    got = " and ".join(found) if found else f"none of {', '.join(known)}"
    raise LimbeckError(f"the columns {', '.join(listed)} contain {got}; allowed is one of them: name it with {option}")


def _classes(samples: Any, columns: tuple[str, str] | None) -> tuple[str, ...]:
    """The names of the classes that a dataset has, or the dataset that it is a part of; none if it has none."""
    while samples is not None:
        found, features = getattr(samples, "classes", None), getattr(samples, "features", None)
        if isinstance(features, Mapping):
            key = columns[1] if columns else next((name for name in TARGETS if name in features), None)
            found = getattr(features.get(key), "names", found)
        if isinstance(found, list | tuple):
            return tuple(map(str, found))
        samples = getattr(samples, "dataset", None)
    return ()


@dataclass(frozen=True)
class _Batches:
    """The samples of one split in batches ``(inputs, targets)``; those of a dataset one by one."""

    name: str
    samples: Any
    limit: int | None
    signals: bool
    task: TaskName
    columns: tuple[str, str] | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        found = 0
        for sample in self._items() if self._one_by_one else self.samples:
            pair = self._pair(sample)
            inputs, targets = self._input(pair[0]), self._target(pair[1])
            if self._one_by_one:
                inputs, targets = inputs[None], targets[None]
            flat = self.task == "classification" and targets.dim() != 1
            if flat or targets.dim() < 1 or inputs.dim() < 2 or len(inputs) != len(targets):
                raise LimbeckError(
                    f"{self.name} gave inputs of shape {tuple(inputs.shape)} and targets of shape "
                    f"{tuple(targets.shape)}; allowed are samples of a torch.utils.data.Dataset with one class index "
                    "each, and batches (N, ...) with (N,) class indices, such as those of a DataLoader; for targets of "
                    "other shapes, give a task="
                )
            yield checked_inputs(inputs, self.signals), targets
            found += len(targets)
            if self.limit is not None and found >= self.limit:
                return

    def number(self, size: int) -> int:
        """The number of batches, if they have this size; 0 if it is not known."""
        try:
            whole = len(self.samples)
        except TypeError:  # a generator, or a DataLoader of an IterableDataset
            return 0
        return min(whole, whole if self.limit is None else -(-self.limit // size))

    def check_repeatable(self) -> None:
        """Check that a few samples are equal when they are read again.

        Raises:
            LimbeckError: one is not.
        """
        if isinstance(self.samples, Iterator):
            return  # it gives its samples only once
        some = replace(self, limit=min(self.limit or _READ_TWICE, _READ_TWICE))
        for pair, again in zip(list(some), some, strict=False):
            if not all(torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in zip(pair, again, strict=True)):
                raise LimbeckError(
                    f"{self.name}: one of {some.limit} samples that were read twice differs: there are random "
                    "transforms, or another order. limbeck reads each sample once: remove random transforms and pass "
                    "augment= to limbeck.distill instead, and give a Dataset, or a DataLoader with shuffle=False"
                )

    @property
    def _one_by_one(self) -> bool:
        if isinstance(self.samples, Dataset):
            return not isinstance(self.samples, IterableDataset)
        return _indexed(self.samples)

    def _items(self) -> Iterator[Any]:
        """The samples of a dataset; with a limit a random choice, in order."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.samples), generator=generator)[: self.limit].sort().values
        return (self.samples[place] for place in chosen.tolist())

    def _pair(self, sample: Any) -> Sequence[Any]:
        """The input and the target of a sample or a batch."""
        if isinstance(sample, Mapping):
            own = self.columns or (None, None)
            return [sample[_column(sample, own[at], (INPUTS, TARGETS)[at], "columns=(input, target)")] for at in (0, 1)]
        if self.columns is not None or not isinstance(sample, tuple | list) or len(sample) != 2:
            allowed = "pairs (input, target) and dicts" if self.columns is None else "dicts, because columns is given"
            raise LimbeckError(f"{self.name} gave {type(sample).__name__}; allowed are {allowed}")
        return sample

    def _input(self, values: Any) -> Tensor:
        if isinstance(values, Image.Image):
            pixels = numpy.array(loaded(values))
            return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
        if isinstance(values, numpy.ndarray):
            return torch.from_numpy(values.copy())
        if isinstance(values, Tensor):
            return values.detach().cpu()
        kind = type(values).__name__
        raise LimbeckError(f"{self.name} gave inputs of type {kind}; allowed are tensors, arrays and PIL images")

    def _target(self, values: Any) -> Tensor:
        values = numpy.array(values) if isinstance(values, Image.Image) else values  # the mask of a segmentation
        try:
            return torch.as_tensor(values).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise LimbeckError(f"{self.name} gave the target {values!r:.60}; allowed are numbers") from error


def _read(batches: _Batches, classes: Sequence[str], progress: Progress | None) -> Split:
    """All samples of a split."""
    batches.check_repeatable()
    inputs, targets, held, total = list[Tensor](), list[Tensor](), 0, 0
    for done, (batch, of) in enumerate(batches, start=1):
        if done == 1:
            total = batches.number(len(of))
        first = (inputs or [batch])[0]
        if batch.shape[1:] != first.shape[1:] or batch.dtype != first.dtype:
            raise LimbeckError(
                f"{batches.name}: sample {sum(map(len, targets))} is {batch.dtype} of shape {tuple(batch.shape[1:])}, "
                f"and the first {first.dtype} of shape {tuple(first.shape[1:])}; allowed is one type and one shape: "
                "convert and resize the images in the dataset"
            )
        inputs.append(batch)
        targets.append(of)
        held += batch.nbytes
        what, advice = f"the inputs of {batches.name}", "give a limit=, or leave images on disk with limbeck.load"
        check_memory(max(held, total * first.nbytes), what, advice)
        if progress is not None and total:
            progress(done, total)
    if not inputs:
        raise LimbeckError(f"{batches.name} has no samples; allowed are one and more")
    kept = slice(batches.limit)
    return Split(_joined(inputs)[kept], as_targets(torch.cat(targets)[kept], batches.task, classes or None))


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor; each part is dropped when it is copied, so that memory holds the samples about once."""
    result = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        result[start : start + len(part)] = part
        start += len(part)
    return result
