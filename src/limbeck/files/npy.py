"""Check the header of an array in numpy's format before numpy allocates memory for what it says."""

import math
from typing import IO

import numpy
from numpy.lib import format as npy


def array_header(stream: IO[bytes], size: int, name: str) -> tuple[tuple[int, ...], "numpy.dtype[numpy.generic]"]:
    """Read the shape and the type of an array of plain values.

    Args:
        stream: at the beginning of the array.
        size: the bytes of the array with its header.
        name: what the message calls it.

    Raises:
        ValueError: the header is damaged, or does not fit the size; the array holds Python objects, which would be
            unpickled.
    """
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"the array {name} has the version {version}, allowed are {', '.join(map(str, readers))}")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError(f"the array {name} holds Python objects, which would be unpickled: allowed are plain values")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"the array {name} says its shape is {shape}, but its size in bytes is another")
    return shape, dtype
