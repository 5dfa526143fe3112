"""Random numbers as a pure function of a key: no generator, no order of calls, the same on every device."""

from enum import IntEnum
from typing import TypeVar

from torch import Tensor

Word = TypeVar("Word", int, Tensor)

_MASK = 0xFFFF_FFFF
_STEP = 0x9E37_79B9  # 2**32 / golden ratio, so that a run of zeros does not stay zero
# The second factor minus 2**32: a product of a 32-bit word with it stays inside int64 and is the same modulo 2**32.
_FIRST, _SECOND = 0x21F0_AAAD, 0xD35A_2D97 - 2**32


class Purpose(IntEnum):
    """What a draw is for; two purposes never share their numbers."""

    ORDER = 1
    SPLIT = 2
    CROP = 3
    SHIFT = 4
    FLIP = 5
    CUTOUT = 6
    TRANSFORM = 7


def mix(word: Word) -> Word:
    """Stir 32 bits: a bijection of [0, 2**32) in which every input bit changes every output bit half of the time.

    Shifts and factors are those of C. Wellons' hash-prospector, `16 21f0aaad 15 d35a2d97 15`.
    """
    word = ((word ^ (word >> 16)) * _FIRST) & _MASK
    word = ((word ^ (word >> 15)) * _SECOND) & _MASK
    return word ^ (word >> 15)


def key(*parts: int) -> int:
    """32 bits from any whole numbers of at most 64 bits; their order counts."""
    state = 0
    for part in parts:
        for word in (part & _MASK, (part >> 32) & _MASK):
            state = mix(((state ^ word) + _STEP) & _MASK)
    return state


def draw(index: Tensor, purpose: Purpose, *parts: int) -> Tensor:
    """One number in [0, 2**32) for each index; (N,) int64 to (N,) int64."""
    # Two keys: with one, another key would give the same numbers in a different order of the samples.
    first, second = key(purpose, *parts), key(*parts, purpose)
    return mix(mix((index & _MASK) ^ first) ^ second)


def below(numbers: Tensor, bound: int) -> Tensor:
    """Numbers of `draw` to whole numbers in [0, bound); the bound is at most 2**31."""
    return (numbers * bound) >> 32
