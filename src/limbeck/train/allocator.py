"""Memory that the C library keeps between steps instead of giving it back and asking for it anew."""

import ctypes
import platform

_SETTINGS = (
    (-4, 0),  # M_MMAP_MAX: no block of its own for a large tensor, which would be unmapped when the tensor goes
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: give nothing back below this
    (-2, 64 * 2**20),  # M_TOP_PAD: grow in steps of this
)


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next step; to be called before the first large tensor.

    By its defaults glibc maps each block above 32 MiB anew and unmaps it when it is freed, so that every step pays for
    fresh pages: the activations of a batch of 256 small images are such blocks. It holds for the whole process. The
    first ten steps or so still fetch pages, until the kept ones have grown together to where a block fits.

    Returns:
        Whether it was set; False where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(setting, value) == 1 for setting, value in _SETTINGS)
