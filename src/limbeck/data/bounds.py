"""The largest files, images and folders that are read. Larger ones are refused by name, in bounded time and memory."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from limbeck.core import LimbeckError

PIXELS = 64_000_000
"""Pixels of an image, as its header declares them. Photographs of 61 megapixels pass. Decoded, they take 256 MB, and
twice that where they are converted."""

SLOW_PIXELS: Mapping[str, int] = MappingProxyType({"ppm": 4_000_000, "ppm_plain": 4_000_000, "bmp_rle": 4_000_000})
"""The same for Pillow's decoders that are written in Python: some seconds an image."""

FILE_BYTES = 2**28
"""Bytes of an image file, packed and unpacked: as many pixels as are allowed, uncompressed, with 4 bytes each."""

ENTRIES = 5_000_000
"""Files and folders below a folder, counted once for every link to them: iNaturalist has 2.7 million."""

ZIP_ENTRIES = 1_500_000
"""Files and folders in a zip file. The table takes 700 bytes of memory for each: ImageNet has 1.4 million."""

ZIP_TABLE_BYTES = 2**28
"""Bytes of a zip file's table: `ZIP_ENTRIES` entries of 178 bytes."""

DEPTH = 64
"""Folders inside one another."""

VISITS = 32
"""Paths to one folder through links: where links lead to links, the paths double with every step."""

IDX_BYTES = 2**30
"""Bytes of an IDX file, unpacked: the whole of EMNIST has 640 million."""


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raise LimbeckError, which ends with the advice, unless so many bytes fit in memory as in `fits_in_memory`."""
    if not fits_in_memory(needed):
        raise LimbeckError(
            f"{what} would take {needed:,} bytes of memory, and this machine has {_memory():,}: {advice}"
        )


def fits_in_memory(needed: int) -> bool:
    """Whether so many bytes fit in the memory of this machine, or in the limit of its container."""
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
