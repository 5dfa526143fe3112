"""Corrupted images: noise, blur and low contrast in five strengths.

D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (2019),
with the strengths of the authors' code for CIFAR-10-C, Tiny ImageNet-C and ImageNet-C.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.errors import nearest

Corruption = Literal["gaussian_noise", "gaussian_blur", "contrast"]

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)

STRENGTHS = (1, 2, 3, 4, 5)

_CIFAR: Mapping[Corruption, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}
_TINY_IMAGENET: Mapping[Corruption, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
    "gaussian_blur": (0.5, 0.75, 1, 1.25, 1.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}
_IMAGENET: Mapping[Corruption, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}

_TRUNCATED = 4  # the radius of the blur's kernel in deviations, as in the authors' code


def corrupt(images: Tensor, kind: Corruption, strength: int, *, seed: int = 0) -> Tensor:
    """Return corrupted copies of images, float32.

    ``gaussian_noise`` adds noise, ``gaussian_blur`` blurs (at the borders the image is reflected), and ``contrast``
    moves the values towards the mean of their channel of the image. The strengths are those of CIFAR-10-C for images
    of up to 32 pixels, of Tiny ImageNet-C up to 64, and otherwise of ImageNet-C. Results stay in the range of values.
    Unlike in the paper, they are not rounded to 8 bits.

    Args:
        images: (N, C, H, W), uint8, which are divided by 255, or floating. Their range is [0, 1] if they are uint8, and
            otherwise from their least to their greatest value.
        kind: of `CORRUPTIONS`.
        strength: of `STRENGTHS`.
        seed: of the noise, which has the same shape at each strength. The global generator is not used.

    Raises:
        LimbeckError: the inputs are no images; there is no such corruption or strength.
    """
    if images.dim() != 4 or not len(images):
        raise LimbeckError(f"inputs {tuple(images.shape)} cannot be corrupted: allowed are images (N, C, H, W)")
    if kind not in CORRUPTIONS:
        raise LimbeckError(f"there is no corruption {kind!r}: {nearest(kind, CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise LimbeckError(f"the strength is {strength!r}: allowed are 1 to {STRENGTHS[-1]}")
    side = max(images.shape[2:])
    amount = (_CIFAR if side <= 32 else _TINY_IMAGENET if side <= 64 else _IMAGENET)[kind][strength - 1]
    if images.dtype == torch.uint8:
        return _corrupted(images / 255, kind, amount, seed)
    low, width = images.min().float(), (images.max() - images.min()).float()
    return _corrupted((images.float() - low) / width.clamp(min=torch.finfo().tiny), kind, amount, seed) * width + low


def _corrupted(images: Tensor, kind: Corruption, amount: float, seed: int) -> Tensor:
    """The same for images with values in [0, 1]."""
    from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]  # takes a second to import

    if kind == "gaussian_noise":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            noisy: Tensor = F.gaussian_noise(images, sigma=amount)
        return noisy
    if kind == "gaussian_blur":
        radius = [min(int(_TRUNCATED * amount + 0.5), side - 1) for side in reversed(images.shape[2:])]
        blurred: Tensor = F.gaussian_blur(images, [2 * one + 1 for one in radius], [amount, amount])
        return blurred
    mean = images.mean(dim=(2, 3), keepdim=True)  # torchvision's contrast uses the mean of the grey image
    return mean + amount * (images - mean)
