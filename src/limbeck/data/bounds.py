"""How much of what lies on a disk is read: what is greater is refused by name, in bounded time and memory."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from limbeck.core import LimbeckError

PIXELS = 64_000_000
"""Of an image, as its header declares them: 61-megapixel photographs pass; decoded this is 256 MB, and twice that
where it has to be converted."""

SLOW_PIXELS: Mapping[str, int] = MappingProxyType({"ppm": 4_000_000, "ppm_plain": 4_000_000, "bmp_rle": 4_000_000})
"""The same for Pillow's decoders that are written in Python: some seconds."""

FILE_BYTES = 2**28
"""Of an image file, packed and unpacked: as many pixels as are allowed, uncompressed, with 4 bytes each."""

ENTRIES = 5_000_000
"""Files and folders below a folder, counted again for every link that leads to them: iNaturalist has 2.7 million."""

ZIP_ENTRIES = 1_500_000
"""Files and folders in a zip file, whose table is held in memory, 700 bytes each: ImageNet has 1.4 million."""

ZIP_TABLE_BYTES = 2**28
"""Of a zip file's table: so many entries have 178 bytes each."""

DEPTH = 64
"""Folders inside each other."""

VISITS = 32
"""Ways to one folder through links: where links lead to links, the ways double with every step."""

IDX_BYTES = 2**30
"""Of an IDX file, unpacked: all of EMNIST has 640 million."""


def check_memory(needed: int, what: str, advice: str) -> None:
    """Check that so many bytes fit in this machine's memory, or in what its container may use.

    Raises:
        LimbeckError: they do not; the message ends with the advice.
    """
    if not fits_in_memory(needed):
        raise LimbeckError(
            f"{what} would take {needed:,} bytes of memory, and this machine has {_memory():,}: {advice}"
        )


def fits_in_memory(needed: int) -> bool:
    """Whether so many bytes are no more than this machine's memory, or than what its container may use."""
    there = _memory()
    return there is None or needed <= there


def _memory() -> int | None:
    if sys.platform == "win32":
        return None
    physical: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return physical
