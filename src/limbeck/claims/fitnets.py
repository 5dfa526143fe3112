"""Romero et al. (2015)."""

from collections.abc import Iterator

import torch

from limbeck.claims.checks import Part
from limbeck.claims.claim import Claim, Results, System
from limbeck.methods.fitnets import PAPER, regressor


def _weights(source: tuple[int, ...], target: tuple[int, ...], *, full: bool = False) -> int:
    """Of a regressor, for each linear piece of its units, without biases."""
    with torch.device("meta"):
        network = regressor(source, target, kind="full" if full else "conv", activation="none")
    return sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)


def _regressors(_: Results) -> Iterator[Part]:
    guided, hint = (80, 8, 8), (192, 7, 7)  # layer 11 of FitNet 4 and layer 2 of the teacher on CIFAR
    few, many = _weights(guided, hint), _weights(guided, hint, full=True)
    yield Part(f"FitNet 4: {few:,} instead of {many:,} weights", fact=(few, many) == (61_440, 48_168_960))
    few, many = _weights((16, 4, 4), (48, 4, 4)), _weights((16, 4, 4), (48, 4, 4), full=True)
    yield Part(f"FitNet on MNIST: {few:,} instead of {many:,} weights", fact=(few, many) == (768, 196_608))


FITNETS_2015 = System(
    "fitnets",
    PAPER,
    (
        Claim(
            "B5",
            "A convolutional regressor has far fewer weights than a fully connected one.",
            "k1 k2 Oh Og instead of Nh1 Nh2 Oh Ng1 Ng2 Og weights for each linear piece",
            _regressors,
        ),
    ),
)
