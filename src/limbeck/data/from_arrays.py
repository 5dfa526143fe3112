"""Data from arrays of the user."""

from collections.abc import Sequence
from typing import TypeAlias, get_args

import numpy
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.building import build
from limbeck.data.checking import check_samples
from limbeck.data.dividing import how_divided, in_words, part_of_train, split_off
from limbeck.data.split import Data, Split
from limbeck.data.targets import UNITS, TaskName, as_targets, outputs_of
from limbeck.errors import nearest

Values: TypeAlias = "ArrayLike | Tensor"


def arrays(
    inputs: Values,
    targets: Values,
    *,
    test: float = 0.2,
    validation: float = 0.1,
    test_set: tuple[Values, Values] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    normalise: bool = True,
    weights: "Values | None" = None,
    signals: bool = False,
    task: TaskName = "classification",
) -> Data:
    """Make a data set from numpy arrays or tensors: copy, check and split them at random, evenly over the classes.

    Args:
        inputs: images (N, C, H, W), or (N, H, W) which get one channel, features (N, D), or signals (N, C, L). uint8
            (pixels 0..255) stays uint8, uint16 (pixels 0..65,535) becomes float32 in [0, 1], any floating type and bool
            become float32.
        targets: (N,) class indices from 0, integers or bool. Floats are class indices only if ``classes`` is given and
            all of them are whole numbers. -1 means no label; such a sample is used for training only. For another
            ``task``: (N, K) numbers in [0, 1], one for each label; (N, D) or (N,) numbers; (N, L, 2) points x, y; or
            (N, H, W) class indices, where 255 does not count.
        test: size of the test split: a share in [0, 1) if float, a count if int. Not used with ``test_set``.
        validation: likewise of the validation split, of the samples that are left after the test split; may be 0.
        test_set: inputs and targets of the test split, if it is given separately.
        classes: the classes' names in the order of their indices; by default "0", "1", ... Of other tasks, the names of
            the labels, numbers or points.
        seed: of the splits.
        normalise: measure mean and std of each channel on the train split; otherwise they are 0 and 1.
        weights: (N,) weights of the training samples, at least 0. The hard loss is then the weighted mean. The metrics
            are not weighted.
        signals: the inputs are signals (N, C, L) and not images (N, H, W).
        task: "classification", "multi_label", "regression", "landmarks" or "segmentation", which decides the losses and
            metrics.

    Raises:
        LimbeckError: a type, shape, length or value does not fit, or a split cannot be that large; or there are more
            classes than training samples and ``classes`` is not given.
    """
    if task not in get_args(TaskName):
        raise LimbeckError(f"there is no task {task!r}: {nearest(task, get_args(TaskName))}")
    samples = _samples(inputs, targets, weights, classes, signals, task, unlabelled=True)
    origins = {"train": "given", "test": "given as test_set", "validation": part_of_train(validation, seed, task)}
    if test_set is None:
        count = outputs_of(samples.targets, task)
        check_number(count, samples, classes)
        samples, held_out = split_off(test, samples, seed)
        origins["test"] = f"{in_words(test)} of the given samples, {how_divided(task)}, seed {seed}"
    else:
        held_out = _samples(*test_set, None, classes, signals, task, unlabelled=False)
        count = max(outputs_of(one.targets, task) for one in (samples, held_out))
        check_number(count, samples, classes)
    rest, part = split_off(validation, samples, seed)
    check_number(count, rest, classes)
    if test_set is None or len(part):
        origins["train"] = "the remaining given samples"
    names = tuple(classes) if classes is not None else tuple(map(str, range(count)))
    return build(
        train=rest, validation=part, test=held_out, classes=names, task=task, normalise=normalise, origins=origins
    )


def _samples(
    inputs: Values,
    targets: Values,
    weights: "Values | None",
    classes: Sequence[str] | None,
    signals: bool,
    task: TaskName,
    *,
    unlabelled: bool,
) -> Split:
    weight = None if weights is None else _tensor(weights, "weights").float()
    converted = as_targets(_tensor(targets, "targets"), task, classes)
    samples = Split(checked_inputs(_tensor(inputs, "inputs"), signals), converted, weights=weight)
    count, found = outputs_of(converted, task) if classes is None else len(classes), outputs_of(converted, task)
    if task in UNITS and count != found and converted.dim() == 2 + (task == "landmarks"):
        raise LimbeckError(f"classes has {count} names, but the targets have {found} {UNITS[task]}")
    check_samples(
        "the given arrays",
        samples.inputs,
        samples.targets,
        samples.weights,
        shape=tuple(samples.inputs.shape[1:]),
        classes=count,
        unlabelled=unlabelled,
        task=task,
    )
    return samples


def check_number(count: int, samples: Split, classes: Sequence[str] | None) -> None:
    """Refuse values that cannot be class indices, such as years, before each gets a class name.

    Raises:
        LimbeckError: there are more classes than training samples, and their names are not given.
    """
    if classes is None and samples.targets.dtype == torch.int64 and count > len(samples) > 0:
        raise LimbeckError(
            f"targets up to {count - 1} are {count:,} classes, but there are {len(samples):,} training samples: class "
            "indices start at 0. numpy.unique(targets, return_inverse=True) gives classes and indices; if there are so "
            "many classes, name them with classes="
        )


def _tensor(values: Values, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    try:
        return torch.from_numpy(numpy.array(values))
    except (TypeError, ValueError) as error:
        raise LimbeckError(
            f"the {what} are not an array ({error}); allowed are arrays of numbers and tensors"
        ) from error


def checked_inputs(inputs: Tensor, signals: bool) -> Tensor:
    """The inputs with the type and the dimensions that `limbeck.data.Split` has.

    Raises:
        LimbeckError: the type or the shape does not fit.
    """
    if inputs.dtype == torch.uint16 and inputs.dim() > 2:
        inputs = inputs.float() / 65_535
    elif inputs.dtype != torch.uint8:
        if not inputs.is_floating_point() and inputs.dtype != torch.bool:
            raise LimbeckError(
                f"inputs are {inputs.dtype}; allowed are uint8 (pixels 0..255), uint16 images (0..65535), bool and "
                "floating types: convert with inputs.astype('uint8') or inputs.astype('float32')"
            )
        inputs = inputs.float()
    if inputs.dim() not in ((3,) if signals else (2, 3, 4)):
        allowed = "(N, C, L)" if signals else "(N, C, H, W), (N, H, W) and (N, D), or (N, C, L) with signals=True"
        raise LimbeckError(f"inputs have shape {tuple(inputs.shape)}; allowed are {allowed}, N samples first")
    if inputs.dim() == 3 and not signals:
        inputs = inputs[:, None]
    if inputs.dim() == 4 and inputs.shape[3] in (1, 3, 4) and inputs.shape[1] == inputs.shape[2] > 4:
        raise LimbeckError(
            f"inputs have shape {tuple(inputs.shape)}, which looks like (N, H, W, C); allowed is (N, C, H, W): "
            "convert with inputs.transpose(0, 3, 1, 2), or inputs.permute(0, 3, 1, 2) for a tensor"
        )
    return inputs
