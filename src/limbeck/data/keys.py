"""Random numbers as a pure function of a key: independent of generators, the order of calls and the device."""

from enum import IntEnum
from typing import TypeVar

from torch import Tensor

Word = TypeVar("Word", int, Tensor)

_MASK = 0xFFFF_FFFF
_STEP = 0x9E37_79B9  # 2**32 / golden ratio, so that a run of zeros does not stay zero
# The second factor minus 2**32: a product of a 32-bit word with it stays inside int64 and is the same modulo 2**32.
_FIRST, _SECOND = 0x21F0_AAAD, 0xD35A_2D97 - 2**32


class Purpose(IntEnum):
    """What a random number is drawn for; two purposes have different numbers."""

    ORDER = 1
    SPLIT = 2
    CROP = 3
    SHIFT = 4
    FLIP = 5
    CUTOUT = 6
    TRANSFORM = 7
    MIX = 8


def mix(word: Word) -> Word:
    """Mix 32 bits: a bijection of [0, 2**32) in which each input bit changes each output bit with probability 1/2.

    The shifts and factors are those of C. Wellons' hash-prospector, `16 21f0aaad 15 d35a2d97 15`.
    """
    word = ((word ^ (word >> 16)) * _FIRST) & _MASK
    word = ((word ^ (word >> 15)) * _SECOND) & _MASK
    return word ^ (word >> 15)


def key(*parts: int) -> int:
    """A 32-bit key of integers of at most 64 bits; their order matters."""
    state = 0
    for part in parts:
        for word in (part & _MASK, (part >> 32) & _MASK):
            state = mix(((state ^ word) + _STEP) & _MASK)
    return state


def draw(index: Tensor, purpose: Purpose, *parts: int) -> Tensor:
    """A number in [0, 2**32) for each index: (N,) int64 to (N,) int64."""
    # Two keys, because with one key, another would give the same numbers in a different order of the samples.
    first, second = key(purpose, *parts), key(*parts, purpose)
    return mix(mix((index & _MASK) ^ first) ^ second)


def below(numbers: Tensor, bound: int) -> Tensor:
    """Scale numbers of `draw` to integers in [0, bound); the bound is at most 2**31."""
    return (numbers * bound) >> 32
