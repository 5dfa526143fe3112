"""Weights as zeros and centroids, entropy-coded: how a weights file holds them, and how they are decoded.

A coded weight is a tensor of bytes in the safetensors file: the centroids (float32), the frequencies of the symbols
(uint16), and the words of a range coder (uint32), all little-endian. Symbol 0 is a zero, symbol j is centroid j. The
metadata has the shapes, the numbers of centroids, and the sha256 of all decoded tensors.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from limbeck.core import LimbeckError

KEY = "limbeck.compressed"
"""The key of the metadata that describes coded weights."""

MOST_BITS = 8
"""The most bits of a number of a centroid."""

TIMES = 1000
"""The most bytes of a decoded weight for each byte of its code."""


@dataclass(frozen=True)
class Coded:
    """The size of a coded weight."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(max_length=8)]
    centroids: Annotated[int, Field(ge=1, le=2**MOST_BITS)]

    @property
    def bytes(self) -> int:
        """Of the decoded weight."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Coding:
    """What the metadata says."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    version: Literal[1]
    weights: Mapping[str, Coded]
    sha256: str  #: as `digest` of all decoded tensors


@dataclass(frozen=True)
class SharedWeight:
    """A weight whose values are 0 or one of a few centroids."""

    symbols: Tensor  #: int64, of the weight's shape; 0: zero, j: centroid j from 1
    centroids: Tensor  #: (K,) float32, at most 2**8

    def dense(self) -> Tensor:
        """The weight, float32."""
        return torch.cat([self.centroids.new_zeros(1), self.centroids])[self.symbols]


def check_installed(what: str) -> None:
    """Raise LimbeckError unless the package of the range coder is installed; ``what`` needs it."""
    if find_spec("constriction") is None:
        raise LimbeckError(f"{what} needs constriction: pip install 'limbeck[compress]'")


def encoded(
    tensors: Mapping[str, Tensor], weights: Mapping[str, SharedWeight]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a weights file.

    Args:
        tensors: all tensors of a network, on the CPU.
        weights: those of them that are coded.
    """
    sizes = {name: Coded(tuple(weight.symbols.shape), len(weight.centroids)) for name, weight in weights.items()}
    coding = Coding(1, sizes, digest(tensors))
    codes = {name: _encode(weight) for name, weight in weights.items()}
    return {**tensors, **codes}, {KEY: json.dumps(asdict(coding), separators=(",", ":"))}


def coding_of(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Coding | None:
    """Read the description of coded weights, and compare it with the file's tensors before anything is decoded.

    Args:
        path: of the file.
        metadata: of the file.
        tensors: those of the file; only names, dtypes and shapes are used.

    Returns:
        The description; None if no weight is coded.

    Raises:
        LimbeckError: the description is invalid, does not fit the tensors, or a weight is more than `TIMES` as large as
            its code.
    """
    if KEY not in metadata:
        return None
    try:
        coding = TypeAdapter(Coding).validate_json(metadata[KEY])
    except ValidationError as error:
        raise LimbeckError(f"{path} has a description of its compressed weights that limbeck cannot read") from error
    for name, coded in coding.weights.items():
        code = tensors.get(name)
        if code is None or code.dtype != torch.uint8 or code.dim() != 1 or (len(code) - _start(coded)) % 4:
            raise LimbeckError(f"{path} has no code of the compressed weight {name!r}")
        if len(code) < _start(coded) or coded.bytes > TIMES * len(code):
            raise LimbeckError(
                f"{path} has {len(code):,} bytes for the compressed weight {name!r} of {coded.bytes:,}: allowed are "
                f"{coded.bytes // TIMES:,} and more"
            )
    return coding


def shapes_of(coding: Coding) -> dict[str, Tensor]:
    """The decoded weights as meta tensors."""
    return {name: torch.empty(coded.shape, device="meta") for name, coded in coding.weights.items()}


def decoded(path: Path, tensors: Mapping[str, Tensor], coding: Coding, *, most: int) -> dict[str, Tensor]:
    """The tensors of a file with its weights decoded, of at most ``most`` bytes.

    Raises:
        LimbeckError: the weights have more bytes; a code is damaged, or the decoded tensors are not those that were
            encoded; the package is missing.
    """
    check_installed(str(path))
    total = sum(coded.bytes for coded in coding.weights.values())
    if total > most:
        raise LimbeckError(f"{path} has compressed weights of {total:,} bytes, allowed are at most {most:,}")
    try:
        found = {**tensors, **{name: _decode(tensors[name], coded) for name, coded in coding.weights.items()}}
    except (AssertionError, ValueError) as error:  # constriction raises these
        raise LimbeckError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if digest(found) != coding.sha256:
        raise LimbeckError(f"{path} is damaged: its decoded weights are not those that were compressed")
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, dtypes, shapes and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _start(coded: Coded) -> int:
    """Where the words begin: after the centroids and the frequencies."""
    return 4 * coded.centroids + 2 * (coded.centroids + 1)


def _encode(weight: SharedWeight) -> Tensor:
    from constriction import stream

    symbols = weight.symbols.flatten().numpy().astype(np.int32)
    counts = np.bincount(symbols, minlength=len(weight.centroids) + 1)
    frequencies = np.ceil(counts * (65535 / len(symbols))).astype("<u2")
    encoder = stream.queue.RangeEncoder()
    encoder.encode(symbols, _model(frequencies))
    words = encoder.get_compressed().astype("<u4")
    parts = (weight.centroids.numpy().astype("<f4"), frequencies, words)
    return torch.from_numpy(np.concatenate([part.view(np.uint8) for part in parts]))


def _decode(code: Tensor, coded: Coded) -> Tensor:
    from constriction import stream

    data, middle, start = code.numpy(), 4 * coded.centroids, _start(coded)
    centroids = data[:middle].view("<f4").astype(np.float32)
    words = data[start:].copy().view("<u4").astype(np.uint32)
    symbols = stream.queue.RangeDecoder(words).decode(_model(data[middle:start].view("<u2")), math.prod(coded.shape))
    return SharedWeight(torch.from_numpy(symbols).long().view(coded.shape), torch.from_numpy(centroids)).dense()


def _model(frequencies: NDArray[np.uint16]) -> Any:
    from constriction import stream

    return stream.model.Categorical(frequencies.astype(np.float32), perfect=False)
