"""State on disk that survives a crash: written whole or not at all, read back exactly.

A checkpoint is the zip that torch.save writes; the zip's comment holds the sha256 of all before it.
"""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from limbeck.errors import LimbeckError
from limbeck.files.atomic import replacing
from limbeck.files.pickled import read_plain

_MARK = b"limbeck "
_COMMENT = len(_MARK) + 64  # bytes of a seal
_CHUNK = 2**20


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that ``path`` always holds one whole state, the old or the new.

    Raises:
        NoSpace: the disk is full.
        LimbeckError: the file may not be written.
    """
    with replacing(path) as temporary:
        torch.save(state, temporary)
        with temporary.open("rb+") as file:
            end = file.seek(-2, 2)  # a zip ends with the length of its comment, in 2 bytes, and the comment
            seal = _MARK + _hash(file, end).encode()
            file.seek(end)
            file.write(len(seal).to_bytes(2, "little") + seal)


def load(path: Path) -> dict[str, Any]:
    """Read a state back, onto the CPU; memory is taken for as many bytes as the file has.

    Raises:
        LimbeckError: there is no such file, or it is not, byte for byte, what `save` wrote.
    """
    if not path.is_file():
        raise LimbeckError(f"there is no checkpoint {path}")
    try:
        with path.open("rb") as file:
            end = file.seek(-2 - _COMMENT, 2)
            seal = file.read()
            marked = seal.startswith(_COMMENT.to_bytes(2, "little") + _MARK)
            whole = marked and seal.endswith(_hash(file, end).encode())
        state = read_plain(path, path.stat().st_size) if whole else None
    except (OSError, LimbeckError) as error:
        raise LimbeckError(
            f"{path} is not a whole checkpoint: it is cut short or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict):
        raise LimbeckError(f"{path} is not a whole checkpoint: it is damaged, was changed, or holds something else")
    return state


def _hash(file: BinaryIO, length: int) -> str:
    """Of the file's first bytes; leaves the file at their end."""
    file.seek(0)
    found = hashlib.sha256()
    while length > 0 and (chunk := file.read(min(_CHUNK, length))):
        found.update(chunk)
        length -= len(chunk)
    return found.hexdigest()
