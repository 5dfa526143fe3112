"""State on disk that survives a crash: written whole or not at all, read back exactly."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from limbeck.core import LimbeckError
from limbeck.whole import replacing


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that ``path`` always holds one whole state, the old or the new."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: Path) -> dict[str, Any]:
    """Read a state back, onto the CPU.

    Raises:
        LimbeckError: there is no such file, or it is not a whole checkpoint.
    """
    if not path.is_file():
        raise LimbeckError(f"there is no checkpoint {path}")
    try:
        with ZipFile(path) as file:  # torch.load does not look at the checksums that torch.save writes
            damaged = file.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file zipfile, zlib, pickle and torch raise a dozen kinds
        raise LimbeckError(
            f"{path} is not a whole checkpoint: it is cut short or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict):
        raise LimbeckError(f"{path} is not a whole checkpoint: it is damaged, or holds something else")
    return state
