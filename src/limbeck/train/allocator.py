"""Memory that the C library keeps between steps instead of giving it back to the system."""

import ctypes
import platform

_SETTINGS = (
    (-4, 0),  # M_MMAP_MAX: a large tensor has no mapping that is unmapped when the tensor is freed
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: give nothing back below this
    (-2, 64 * 2**20),  # M_TOP_PAD: grow in steps of this
)


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next step, in the whole process, until it ends.

    By default glibc maps each block above 32 MiB and unmaps it when it is freed, so that every step pays for fresh
    pages: the activations of a batch of 256 small images are such blocks. The commands and the benchmark call this
    before their first large tensor. The library never calls it: call it yourself where a program of your own trains on
    a CPU. The first ten steps or so still fetch pages.

    Returns:
        Whether the settings took effect; False for a C library other than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(setting, value) == 1 for setting, value in _SETTINGS)
