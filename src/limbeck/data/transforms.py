"""Random changes of single images by a library or the user, as a pure function of (seed, view, index)."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy
import torch
from PIL import Image
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.keys import Purpose, key
from limbeck.errors import nearest
from limbeck.user_code import function, named

Transform: TypeAlias = Callable[[Image.Image], Tensor]
"""An image of mode L or RGB to (C, H, W) uint8; it may use `random`, `numpy.random` and torch's CPU generator."""


def make_transform(text: str, size: tuple[int, int], code: bytes) -> Transform:
    """The transform that a text of a recipe names.

    Args:
        text: ``random_resized_crop``, torchvision's (a part of 8 to 100 % of the area and of proportions 3:4 to 4:3,
            resized, bilinear), or ``path/to/file.py:function``; the function takes the size and returns a `Transform`.
        size: height and width of the result.
        code: the bytes of the file.

    Raises:
        LimbeckError: the transform does not exist, or its function fails.
    """
    if text in _NAMED:
        return _NAMED[text](size)
    found = named(text)
    if found is None:
        raise LimbeckError(f"there is no transform {text!r}: {nearest(text, _NAMED)}, and path/to/file.py:function")
    make = function(*found, code)
    try:
        made: Transform = make(size)
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        raise LimbeckError(f"{text} could not be called with {size}: {type(error).__name__}: {error}") from error
    if not callable(made):
        raise LimbeckError(f"{text} gave {type(made).__name__}; allowed is a function of an image")
    return made


def seed_generators(seed: int, view: int, index: int) -> None:
    """Seed `random`, `numpy.random` and torch's CPU generator as a function of these alone."""
    word = key(Purpose.TRANSFORM, seed, view, index)
    random.seed(word)
    numpy.random.seed(word)
    torch.default_generator.manual_seed(word)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the three generators of `seed_generators` at the end of the block."""
    python, arrays, tensors = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_rng_state(tensors)


def _random_resized_crop(size: tuple[int, int]) -> Transform:
    from torchvision.transforms import v2  # type: ignore[import-untyped]  # takes a second to import

    made: Transform = v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor()])
    return made


_NAMED: dict[str, Callable[[tuple[int, int]], Transform]] = {"random_resized_crop": _random_resized_crop}
