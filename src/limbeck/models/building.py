"""Build a network by name: from the zoo, timm, torchvision or a user's file."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.errors import MODEL_FORMS, nearest
from limbeck.models.binary import BINARY_RESNETS
from limbeck.models.cifar_resnet import CIFAR_RESNETS
from limbeck.models.convnet import convnet_big, convnet_small
from limbeck.models.fitnets import FITNETS
from limbeck.models.foreign import from_file, from_timm, from_torchvision
from limbeck.models.maxout_teachers import maxout_cifar, maxout_mnist, maxout_svhn
from limbeck.models.mlp import mlp
from limbeck.models.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v2_half
from limbeck.models.resnet import RESNETS
from limbeck.models.shufflenet import shufflenet_v1, shufflenet_v2
from limbeck.models.vgg import vgg8, vgg13
from limbeck.models.wide_resnet import WIDE_RESNETS
from limbeck.options import keyword_model, validate
from limbeck.user_code import named

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    **CIFAR_RESNETS,
    **RESNETS,
    **BINARY_RESNETS,
    **WIDE_RESNETS,
    "vgg8": vgg8,
    "vgg13": vgg13,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_half": mobilenet_v2_half,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "maxout_cifar": maxout_cifar,
    "maxout_svhn": maxout_svhn,
    "maxout_mnist": maxout_mnist,
    **FITNETS,
    "convnet_small": convnet_small,
    "convnet_big": convnet_big,
}
"""The zoo: functions of ``classes``, the number of logits, ``shape``, that of one sample, and the network's options.

They raise LimbeckError for a shape or an option that cannot work. Convolutional networks need (C, H, W). Most end with
global pooling, so H and W are free. ``limbeck models`` prints the numbers of parameters.
"""

PARAMETERS = 2_000_000_000
"""The most parameters of a zoo network, 8 GB in 32 bits. A larger number means a typing error in a width."""


def build(name: str, /, *, classes: int, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Build a freshly initialised network that maps (N, *shape) to logits (N, classes).

    Args:
        name: one of

            * a name in `MODELS`;
            * ``timm:NAME``, any network of timm. The option ``pretrained: true`` downloads timm's weights;
            * ``torchvision:NAME``, any classifier of torchvision. The option ``weights`` downloads its weights;
            * ``path/to/file.py:function``, any function or class in a file. It is called with the options, and with
              ``classes`` and ``shape`` if its signature names them. The file's folder is not added to ``sys.path``.
        classes: the number of logits.
        shape: the shape of one sample, (C, H, W) or (D,).
        options: the options of the network, as in a recipe; lists stand for tuples.

    Raises:
        LimbeckError: the network or an option does not exist, a value is invalid, or the network's code fails (its
            exception is then the cause).
    """
    if classes < 1:
        raise LimbeckError(f"got {classes} classes, allowed are 1 and more")
    if not shape or min(shape) < 1:
        raise LimbeckError(f"got samples of shape {tuple(shape)}, allowed are one or more sizes of at least 1")
    source, colon, rest = name.partition(":")
    if source == "timm":
        return from_timm(rest, classes=classes, shape=shape, options=options)
    if source == "torchvision":
        return from_torchvision(rest, classes=classes, shape=shape, options=options)
    code = named(name)
    if code is not None:
        return from_file(*code, classes=classes, shape=shape, options=options)
    if colon:
        raise LimbeckError(f"unknown source of models {source!r}: {MODEL_FORMS}")
    return _from_zoo(name, classes, shape, options)


def options(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of a zoo network except ``classes`` and ``shape``: the parameters of its function, by name.

    Raises:
        LimbeckError: the zoo has no network of this name.
    """
    if name not in MODELS:
        raise LimbeckError(f"the zoo has no model {name!r}: {nearest(name, MODELS)} ({MODEL_FORMS})")
    parameters = inspect.signature(MODELS[name]).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in ("classes", "shape")}


def _from_zoo(name: str, classes: int, shape: tuple[int, ...], passed: Mapping[str, Any]) -> nn.Module:
    allowed = ", ".join(map(str, options(name).values())) or "no options"
    values, problems = validate(keyword_model(MODELS[name]), passed)
    if values is None:
        listed = "; ".join(".".join(map(str, (name, *problem.path))) + f": {problem.message}" for problem in problems)
        raise LimbeckError(f"{listed} ({name} takes {allowed})")
    if passed:  # the default sizes are moderate
        _refuse_huge(name, classes, shape, values.model_dump())
    return MODELS[name](classes=classes, shape=shape, **values.model_dump())


def _refuse_huge(name: str, classes: int, shape: tuple[int, ...], options: Mapping[str, Any]) -> None:
    """Count the parameters before any memory is allocated for them."""
    try:
        with torch.device("meta"):
            count = sum(
                parameter.numel() for parameter in MODELS[name](classes=classes, shape=shape, **options).parameters()
            )
    except RuntimeError as error:  # the count does not fit into 64 bits
        raise LimbeckError(f"{name} with {dict(options)} has more parameters than 64 bits can count") from error
    if count > PARAMETERS:
        raise LimbeckError(f"{name} with {dict(options)} has {count:,} parameters, allowed are at most {PARAMETERS:,}")
