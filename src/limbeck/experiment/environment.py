"""What a run depends on besides its recipe: versions, hardware, commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("limbeck", "torch", "torchvision", "timm", "numpy", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, hardware, processes on this machine and commit, as plain values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes_here": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of limbeck's checkout, with ``-dirty`` after changes; None if it was installed without one."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # another project's checkout may hold our files
        return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
