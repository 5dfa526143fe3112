"""Mean and deviation of a set of inputs, and the inputs normalised with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core import LimbeckError

_CHUNK = 1024  # samples turned to float64 at a time


def channels(inputs: Tensor) -> int:
    """How many means a set of inputs has: C for (N, C, H, W), one for (N, D)."""
    return inputs.shape[1] if inputs.dim() == 4 else 1


def check_scaling(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that there is one mean and one positive deviation for each channel.

    Raises:
        LimbeckError: there is not.
    """
    wanted = channels(inputs)
    if len(mean) != wanted or len(std) != wanted:
        raise LimbeckError(
            f"{len(mean)} means and {len(std)} deviations for inputs of shape {tuple(inputs.shape)}; "
            f"allowed are {wanted} of each"
        )
    if not all(value > 0 for value in std):
        raise LimbeckError(f"the deviations are {tuple(std)}; each must be greater than 0")


def normalise(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(x - mean) / std`` for each channel as float32, where x is the input, divided by 255 if uint8.

    Args:
        inputs: (N, C, H, W) or (N, D), uint8 in 0..255 or floating.
        mean: C numbers, or a single one for (N, D).
        std: as many, greater than 0.

    Raises:
        LimbeckError: the number of means or deviations does not fit, or a deviation is not positive.
    """
    return scaled(inputs, coefficients(inputs, mean, std))


def coefficients(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor] | None:
    """Factor and summand that normalise such inputs, on their device; None where nothing is to be done."""
    check_scaling(inputs, mean, std)
    unit = 255.0 if inputs.dtype == torch.uint8 else 1.0
    if unit == 1.0 and not any(mean) and all(value == 1 for value in std):
        return None
    shape = (-1, *[1] * (inputs.dim() - 2))
    factor = torch.tensor([1 / (unit * deviation) for deviation in std], device=inputs.device)
    summand = torch.tensor([-average / deviation for average, deviation in zip(mean, std, strict=True)])
    return factor.view(shape), summand.to(inputs.device).view(shape)


def scaled(inputs: Tensor, by: tuple[Tensor, Tensor] | None) -> Tensor:
    """The inputs times the factor plus the summand of `coefficients`, float32."""
    return inputs.float() if by is None else torch.addcmul(by[1], inputs.float(), by[0])


def measure(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation of each channel, of uint8 in units of 255; a constant channel's deviation is 1.

    Args:
        inputs: (N, C, H, W) or (N, D), uint8 or floating, N at least 1.
    """
    mean, variance = _counted(inputs) if inputs.dtype == torch.uint8 else _summed(inputs)
    std = variance.sqrt()
    # What rounding leaves of a constant is below float32's resolution.
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _counted(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """By histogram: exact, and so the same on every machine."""
    by_channel = inputs.reshape(len(inputs), channels(inputs), -1).transpose(0, 1)
    counts = torch.stack([torch.bincount(values.reshape(-1), minlength=256) for values in by_channel]).double()
    levels, samples = torch.arange(256).double(), counts.sum(1)
    mean = (counts * levels).sum(1) / samples
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / samples
    return mean / 255, variance / 255**2


def _summed(inputs: Tensor) -> tuple[Tensor, Tensor]:
    whole = inputs.reshape(len(inputs), channels(inputs), -1)
    chunks = [whole[start : start + _CHUNK] for start in range(0, len(whole), _CHUNK)]
    samples = inputs.numel() / channels(inputs)
    mean = sum((chunk.double().sum((0, 2)) for chunk in chunks), torch.zeros(())) / samples
    squares = (((chunk.double() - mean[:, None]) ** 2).sum((0, 2)) for chunk in chunks)
    return mean, sum(squares, torch.zeros(())) / samples
