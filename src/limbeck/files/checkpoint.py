"""Save and load checkpoints: atomic writes, and exact reads that detect damage.

A checkpoint is a zip file of torch.save. The comment of the zip file is the sha256 of all bytes before it.
"""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from limbeck.errors import LimbeckError
from limbeck.files.atomic import replacing
from limbeck.files.pickled import read_pickled

_MARK = b"limbeck "
_COMMENT = len(_MARK) + 64  # the length of the comment in bytes
_CHUNK = 2**20


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values. ``path`` always contains a complete state, the old or the new one.

    Raises:
        NoSpace: the disk is full.
        LimbeckError: the file is not writable.
    """
    with replacing(path) as temporary:
        torch.save(state, temporary)
        with temporary.open("rb+") as file:
            end = file.seek(-2, 2)  # a zip file ends with the length of its comment in 2 bytes and the comment
            seal = _MARK + _hash(file, end).encode()
            file.seek(end)
            file.write(len(seal).to_bytes(2, "little") + seal)


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU. It takes as much memory as the file has bytes.

    Raises:
        LimbeckError: the file does not exist, or its bytes are not those that `save` wrote.
    """
    if not path.is_file():
        raise LimbeckError(f"there is no checkpoint {path}")
    try:
        with path.open("rb") as file:
            end = file.seek(-2 - _COMMENT, 2)
            seal = file.read()
            marked = seal.startswith(_COMMENT.to_bytes(2, "little") + _MARK)
            whole = marked and seal.endswith(_hash(file, end).encode())
        state = read_pickled(path, path.stat().st_size, foreign=False) if whole else None
    except (OSError, LimbeckError) as error:
        raise LimbeckError(
            f"{path} is not a complete checkpoint: it is truncated or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict):
        raise LimbeckError(f"{path} is not a complete checkpoint: it is damaged, changed or a file of another kind")
    return state


def _hash(file: BinaryIO, length: int) -> str:
    """Return the sha256 of the first ``length`` bytes, and leave the file at their end."""
    file.seek(0)
    digest = hashlib.sha256()
    while length > 0 and (chunk := file.read(min(_CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()
