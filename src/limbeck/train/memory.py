"""The memory that is free."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

_ROOT = Path("/")

_CONTROL_GROUPS = {  # by their controllers in /proc/self/cgroup; of version 2 and of version 1
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(device: torch.device, root: Path = _ROOT) -> int:
    """Return the bytes of memory that are free on a device; 2**40 if that is not known.

    On Linux and a CPU this is the memory that new programs can have without swapping, but at most what the control
    groups of this process leave it, such as those of its container or batch job. Cached files count as free.

    Args:
        device: if it is a GPU, the memory of this GPU.
        root: the folder that contains ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = 1024 * _table(root / "proc/meminfo").get("MemAvailable:", 2**30)
    return max(0, min([available, *_left(root)]))


def _left(root: Path) -> Iterator[int]:
    """The bytes that each control group of this process leaves it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for key in _CONTROL_GROUPS.keys() & controllers.split(","):
            mount, limit, used, cached = _CONTROL_GROUPS[key]
            own = PurePosixPath(path.lstrip("/"))
            for group in (own, *own.parents):  # a container sees its own group as the root
                folder = root / mount / group
                numbers = [line for name in (limit, used) for line in _lines(folder / name)]
                if len(numbers) == 2 and numbers[0] != "max":
                    yield int(numbers[0]) - int(numbers[1]) + _table(folder / "memory.stat").get(cached, 0)


def _table(file: Path) -> dict[str, int]:
    """The first number of each line, by its first word."""
    return {words[0]: int(words[1]) for words in map(str.split, _lines(file))}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # it does not exist: not Linux, or another version
        return []
