"""Optimizers by name. Each function takes the keys of a recipe as keyword arguments and returns a `MakeOptimizer`."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from limbeck.core import MakeOptimizer


def sgd(*, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False) -> MakeOptimizer:
    """Stochastic gradient descent with momentum."""
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)


def adam(
    *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> MakeOptimizer:
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient."""
    return partial(torch.optim.Adam, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def adamw(
    *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
) -> MakeOptimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return partial(torch.optim.AdamW, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def rmsprop(
    *, lr: float, alpha: float = 0.9, eps: float = 1e-5, momentum: float = 0.0, weight_decay: float = 0.0
) -> MakeOptimizer:
    """RMSProp; the default ``alpha`` is 0.9, as in FitNets (2015)."""
    return partial(torch.optim.RMSprop, lr=lr, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Callable[..., MakeOptimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
}
