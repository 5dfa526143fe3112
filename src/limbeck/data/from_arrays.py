"""A user's own arrays as data."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.split import Data, Split, build, split_off

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
) -> Data:
    """Make a data set of numpy arrays or tensors: copied, checked and split at random, evenly over the classes.

    Args:
        inputs: images (N, C, H, W), or (N, H, W) which get one channel, or features (N, D). uint8 (pixels 0..255)
            stays uint8, any floating type becomes float32.
        targets: (N,) class indices from 0; any whole numbers, also as floats.
        test: size of the test split: a share in [0, 1) if float, a count if int. Ignored if there is a ``test_set``.
        validation: size of the validation split, likewise, of what is left after the test split; may be 0.
        test_set: inputs and targets of a test split of its own.
        classes: the classes' names in the order of their indices; "0", "1", ... unless given.
        seed: of the splits.
        normalise: measure mean and std of each channel on the train split; otherwise they are 0 and 1.

    Raises:
        LimbeckError: types, shapes, lengths or values do not fit, or a split cannot be that large.
    """
    samples = Split(_inputs(inputs), _targets(targets))
    if len(samples.inputs) != len(samples):
        raise LimbeckError(f"{len(samples.inputs)} inputs, but {len(samples)} targets")
    if test_set is None:
        samples, held_out = split_off(test, samples, seed)
    else:
        held_out = Split(_inputs(test_set[0]), _targets(test_set[1]))
    rest, part = split_off(validation, samples, seed)
    names = tuple(classes) if classes is not None else _numbered(samples.targets, held_out.targets)
    return build(train=rest, validation=part, test=held_out, classes=names, normalise=normalise)


def _tensor(values: Values, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    try:
        return torch.from_numpy(numpy.array(values))
    except (TypeError, ValueError) as error:
        raise LimbeckError(f"the {what} are not an array of numbers: {error}") from error


def _inputs(values: Values) -> Tensor:
    inputs = _tensor(values, "inputs")
    if inputs.dtype != torch.uint8:
        if not inputs.is_floating_point():
            raise LimbeckError(
                f"inputs are {inputs.dtype}; allowed are uint8 (pixels 0..255) and floating types: "
                "convert with inputs.astype('uint8') or inputs.astype('float32')"
            )
        inputs = inputs.float()
    if inputs.dim() == 3:
        inputs = inputs[:, None]
    if inputs.dim() not in (2, 4):
        raise LimbeckError(
            f"inputs have shape {tuple(inputs.shape)}; allowed are (N, C, H, W), (N, H, W) and (N, D), N samples first"
        )
    if inputs.dim() == 4 and inputs.shape[3] in (1, 3, 4) and inputs.shape[1] == inputs.shape[2] > 4:
        raise LimbeckError(
            f"inputs have shape {tuple(inputs.shape)}, which looks like (N, H, W, C); allowed is (N, C, H, W): "
            "convert with inputs.transpose(0, 3, 1, 2), or inputs.permute(0, 3, 1, 2) for a tensor"
        )
    return inputs


def _targets(values: Values) -> Tensor:
    targets = _tensor(values, "targets")
    if targets.dim() != 1:
        raise LimbeckError(f"targets have shape {tuple(targets.shape)}; allowed is (N,), one class index a sample")
    whole = targets.long()
    if targets.is_floating_point() and not torch.equal(whole.to(targets.dtype), targets):
        first = int(torch.nonzero(whole.to(targets.dtype) != targets)[0, 0])
        raise LimbeckError(f"target {targets[first].item()} of sample {first} is no whole number")
    if len(whole) and int(whole.min()) < 0:
        raise LimbeckError(f"target {int(whole.min())} is no class; allowed are 0 and greater")
    return whole


def _numbered(*targets: Tensor) -> tuple[str, ...]:
    highest = max((int(part.max()) for part in targets if len(part)), default=-1)
    return tuple(str(number) for number in range(highest + 1))
