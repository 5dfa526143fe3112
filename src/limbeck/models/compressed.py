"""Weights as zeros and centroids, entropy-coded: how a weights file holds them, and how they are decoded.

A coded weight is a tensor of bytes in the safetensors file: the centroids (float16, or float32 if `shortest` keeps it),
the frequencies of the symbols (uint16), and the words of a range coder (uint32), all little-endian. Symbol 0 is a zero,
symbol j is centroid j. The words say which weights are not 0, and then the symbols of these. Other tensors are written
in float16 if that changes no number. The metadata has the shapes, the numbers of centroids, and the sha256 of all
decoded tensors.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from limbeck.core import LimbeckError

KEY = "limbeck.compressed"
"""The key of the metadata that describes coded weights."""

VERSION = 2
"""The version of the format."""

MOST_BITS = 8
"""The most bits of a number of a centroid."""

TIMES = 1000
"""The most bytes of a decoded weight for each byte of its code; a shorter code is padded."""

LONGEST = 2**20
"""The most characters of the description: enough for about 10,000 weights."""

PRIOR = 16
"""The number of rows as which the share of a whole weight counts when the share of a column is estimated."""

BLOCKS = 256
"""The most blocks of rows after which these shares are estimated again."""

_FULL = 2**16 - 1  # the largest frequency


@dataclass(frozen=True)
class Coded:
    """The size of a coded weight."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(min_length=1, max_length=8)]
    centroids: Annotated[int, Field(ge=1, le=2**MOST_BITS)]
    centroid_bytes: Annotated[int, Field(ge=2, le=4, multiple_of=2)] = 2

    @property
    def bytes(self) -> int:
        """Of the decoded weight."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Coding:
    """What the metadata says."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    version: int
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
    sizes = {
        name: Coded(tuple(weight.symbols.shape), len(weight.centroids), shortest(weight.centroids).itemsize)
        for name, weight in weights.items()
    }
    others = {name: shortest(tensor) for name, tensor in tensors.items() if name not in weights}
    coding = Coding(VERSION, sizes, digest({**tensors, **others}))
    codes = {name: _encode(weight) for name, weight in weights.items()}
    return {**others, **codes}, {KEY: TypeAdapter(Coding).dump_json(coding, exclude_defaults=True).decode()}


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
    if len(metadata[KEY]) > LONGEST:
        raise LimbeckError(
            f"{path} describes its compressed weights in {len(metadata[KEY]):,} characters, allowed are {LONGEST:,}"
        )
    try:
        coding = TypeAdapter(Coding).validate_json(metadata[KEY])
    except ValidationError as error:
        raise LimbeckError(f"{path} has a description of its compressed weights that limbeck cannot read") from error
    if coding.version != VERSION:
        raise LimbeckError(
            f"{path} has compressed weights of version {coding.version}, but this version of limbeck reads version "
            f"{VERSION}: compress again"
        )
    for name, coded in coding.weights.items():
        code = tensors.get(name)
        if code is None or code.dtype != torch.uint8 or code.dim() != 1 or (len(code) - _start(coded)) % 4:
            raise LimbeckError(f"{path} has no code of the compressed weight {name!r}")
        least = max(_start(coded), -(-coded.bytes // TIMES))
        if len(code) < least:
            raise LimbeckError(
                f"{path} has {len(code):,} bytes for the compressed weight {name!r} of {coded.bytes:,}: allowed are "
                f"{least:,} and more"
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


def shortest(tensor: Tensor) -> Tensor:
    """The tensor in float16 if it is in float32 and this changes no number."""
    if tensor.dtype != torch.float32:
        return tensor
    short = tensor.half()
    return short if torch.equal(short.float(), tensor) else tensor


def _start(coded: Coded) -> int:
    """Where the words begin: after the centroids and the frequencies."""
    return coded.centroid_bytes * coded.centroids + 2 * (coded.centroids + 1)


def _encode(weight: SharedWeight) -> Tensor:
    from constriction import stream

    symbols = weight.symbols.flatten().numpy().astype(np.int32)
    counts = np.bincount(symbols, minlength=len(weight.centroids) + 1)
    frequencies = (-(-counts * _FULL // len(symbols))).astype("<u2")
    used = (symbols != 0).reshape(len(weight.symbols), -1)
    encoder, bernoulli = stream.queue.RangeEncoder(), stream.model.Bernoulli(perfect=False)
    for block, chances in _blocks(used, frequencies):
        encoder.encode(block.ravel().astype(np.int32), bernoulli, chances)
    if used.any():
        encoder.encode(symbols[symbols > 0], _model(frequencies))
    words = encoder.get_compressed().astype("<u4")
    centroids = shortest(weight.centroids).numpy()
    parts = (centroids.astype(centroids.dtype.newbyteorder("<")), frequencies, words)
    code = np.concatenate([part.view(np.uint8) for part in parts])
    missing = max(0, -(-4 * len(symbols) // TIMES) - len(code))
    return torch.from_numpy(np.pad(code, (0, missing + -missing % 4)))


def _decode(code: Tensor, coded: Coded) -> Tensor:
    from constriction import stream

    data, middle, start = code.numpy(), coded.centroid_bytes * coded.centroids, _start(coded)
    centroids = data[:middle].view(f"<f{coded.centroid_bytes}").astype(np.float32)
    values = np.concatenate([np.zeros(1, np.float32), centroids])
    frequencies = data[middle:start].view("<u2")
    decoder = stream.queue.RangeDecoder(data[start:].copy().view("<u4").astype(np.uint32))
    used = np.empty((coded.shape[0], math.prod(coded.shape[1:])), dtype=bool)
    bernoulli = stream.model.Bernoulli(perfect=False)
    for block, chances in _blocks(used, frequencies):
        block[:] = decoder.decode(bernoulli, chances).reshape(block.shape)
    weight = np.zeros(used.shape, np.float32)
    if used.any():
        weight[used] = values[decoder.decode(_model(frequencies), int(used.sum()))]
    return torch.from_numpy(weight).view(coded.shape)


def _blocks(
    used: NDArray[np.bool_], frequencies: NDArray[np.uint16]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Blocks of rows of a weight, and the chances that its entries are used, by what is used in the blocks before.

    Args:
        used: (rows, columns), which weights are not 0. A block is a view of it, and may be filled by the caller.
        frequencies: of the symbols.
    """
    rows, columns = used.shape
    step = -(-rows // BLOCKS)
    counts = np.full(columns, PRIOR * (1 - int(frequencies[0]) / _FULL))
    for start in range(0, rows, step):
        block = used[start : start + step]
        yield block, np.tile(counts / (PRIOR + start), len(block))
        counts += block.sum(axis=0)


def _model(frequencies: NDArray[np.uint16]) -> Any:
    """The distribution of the symbols of the weights that are not 0."""
    from constriction import stream

    return stream.model.Categorical(np.append(0, frequencies[1:]).astype(np.float32), perfect=False)
