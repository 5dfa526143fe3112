"""The mean and standard deviation of a set of inputs, and the normalised inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.images import Inputs

_CHUNK = 1024  # samples turned to float64 at a time


def channels(inputs: Inputs) -> int:
    """The number of means of a set of inputs: C for (N, C, H, W) and (N, C, L), one for (N, D)."""
    return inputs.shape[1] if inputs.dim() > 2 else 1


def check_scaling(inputs: Inputs, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that there is one mean and one positive deviation for each channel.

    Raises:
        LimbeckError: the number of means or deviations does not fit, or a deviation is not positive.
    """
    wanted = channels(inputs)
    if len(mean) != wanted or len(std) != wanted:
        raise LimbeckError(
            f"{len(mean)} means and {len(std)} deviations for inputs of shape {tuple(inputs.shape)}; "
            f"allowed are {wanted} of each"
        )
    if not all(value > 0 for value in std):
        raise LimbeckError(f"the deviations are {tuple(std)}; allowed are numbers greater than 0")


def normalise(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(x - mean) / std`` for each channel as float32, where x is the input, divided by 255 if uint8.

    Args:
        inputs: (N, C, H, W) or (N, D), uint8 in 0..255 or floating.
        mean: C numbers, or one number for (N, D).
        std: likewise, greater than 0.

    Raises:
        LimbeckError: the number of means or deviations does not fit, or a deviation is not positive.
    """
    return scaled(inputs, coefficients(inputs, mean, std, device=inputs.device))


def coefficients(
    inputs: Inputs,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device,
) -> tuple[Tensor, Tensor] | None:
    """The factor and the summand that normalise these inputs; None where normalising changes nothing.

    Each is (1, C, H, W) or (1, D), the size of a whole sample, because torch is slow where both are broadcast.

    Raises:
        LimbeckError: the number of means or deviations does not fit, or a deviation is not positive.
    """
    check_scaling(inputs, mean, std)
    unit = 255.0 if inputs.dtype == torch.uint8 else 1.0
    if unit == 1.0 and not any(mean) and all(value == 1 for value in std):
        return None
    factor = torch.tensor([1 / (unit * deviation) for deviation in std], device=device)
    summand = torch.tensor([-average / deviation for average, deviation in zip(mean, std, strict=True)], device=device)
    by_channel, whole = (1, -1, *[1] * (inputs.dim() - 2)), (1, *inputs.shape[1:])
    return (
        factor.view(by_channel).expand(whole).contiguous(),
        summand.view(by_channel).expand(whole).contiguous(),
    )


def scaled(inputs: Tensor, by: tuple[Tensor, Tensor] | None) -> Tensor:
    """The inputs times the factor plus the summand of `coefficients`, float32."""
    values = inputs.float()
    if by is None:
        return values
    return torch.addcmul(by[1], values, by[0], out=values if inputs.dtype == torch.uint8 else None)


def measure(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and population deviation of each channel, of uint8 divided by 255; a constant channel has deviation 1.

    Args:
        inputs: (N, C, H, W) or (N, D), uint8 or floating, N at least 1.
    """
    if inputs.dtype == torch.uint8:
        return moments(sum((counts(chunk) for chunk in torch.split(inputs, _CHUNK)), counts(inputs[:0])))
    chunks = torch.split(inputs.reshape(len(inputs), channels(inputs), -1), _CHUNK)
    samples = inputs.numel() / channels(inputs)
    mean = sum((chunk.double().sum((0, 2)) for chunk in chunks), torch.zeros(())) / samples
    squares = (((chunk.double() - mean[:, None]) ** 2).sum((0, 2)) for chunk in chunks)
    return _as_scaling(mean, sum(squares, torch.zeros(())) / samples)


def counts(inputs: Tensor) -> Tensor:
    """The count of each value in each channel of uint8 inputs, (C, 256) int64; the counts of parts can be added."""
    by_channel = inputs.transpose(0, 1) if inputs.dim() > 2 else inputs[None]
    return torch.stack([torch.bincount(values.reshape(-1), minlength=256) for values in by_channel])


def moments(counted: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As `measure`, from the sum of `counts`. It is exact, and therefore the same on every machine."""
    times, levels = counted.double(), torch.arange(256).double()
    samples = times.sum(1)
    mean = (times * levels).sum(1) / samples
    variance = (times * (levels - mean[:, None]) ** 2).sum(1) / samples
    return _as_scaling(mean / 255, variance / 255**2)


def sums(inputs: Tensor) -> Tensor:
    """The number, sum and sum of squares of each channel of images, (C, 3) float64; those of parts can be added."""
    values = inputs.transpose(0, 1).flatten(1).double()
    number = values.new_full((len(values),), values.shape[1])
    return torch.stack([number, values.sum(1), values.square().sum(1)], dim=1)


def moments_of_sums(summed: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As `measure`, from the sum of `sums`."""
    number, total, squares = summed.unbind(1)
    mean = total / number
    return _as_scaling(mean, (squares / number - mean**2).clamp(min=0))


def _as_scaling(mean: Tensor, variance: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    std = variance.sqrt()
    # A constant channel has the deviation of rounding errors, which is below the resolution of float32.
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
