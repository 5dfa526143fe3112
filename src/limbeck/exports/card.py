"""What an exported file says about itself. A card that a user received is data: it is checked before it is used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.evaluate import Latency
from limbeck.experiment.results import from_json
from limbeck.exports.deferring import Deferring
from limbeck.exports.graph import Layout, Precision
from limbeck.exports.parity import Parity
from limbeck.files.atomic import JSON_BYTES, read_sealed

CARD = "card.json"
EXPORTS = "export"
"""The folder of the exports in that of a run or comparison."""

SCHEMA = 1

LARGEST_SAMPLE = 2**28
"""The most values of a sample."""


@dataclass(frozen=True)
class Reads:
    """The input of a file."""

    name: str
    shape: tuple[int | None, ...]  #: None for any number of samples
    type: Literal["uint8", "float32"]  #: uint8: 0 to 255
    layout: Layout | None  #: of images
    channels: str | None  #: of images: "rgb" or "gray"

    def random(self) -> Tensor:
        """One random raw sample, (1, ...); the same in every call."""
        generator, shape = torch.Generator().manual_seed(0), (1, *(side or 1 for side in self.shape[1:]))
        if self.type == "uint8":
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.rand(shape, generator=generator)


@dataclass(frozen=True)
class Results:
    """What was measured on the finished file."""

    bytes: int  #: of all its files
    student_bytes: int  #: of the student as safetensors
    parity: Parity | None  #: None if this machine cannot run the file
    figure: str  #: what the next two are, on the test split
    student: float | None  #: None without parity
    exported: float | None
    latency: dict[str, Latency] = field(default_factory=dict)  #: of one sample: of the student in PyTorch and the file
    memory: dict[str, int | None] = field(default_factory=dict)  #: of the same: see `limbeck.exports.memory`
    processor: str = ""  #: of the latencies, as in environment.json
    memory_problem: str = ""  #: why a peak memory could not be measured
    #: How many operators of each kind XNNPACK does not run (ExecuTorch), or stay in 32 bits (convolutions and matrix
    #: products of ONNX in int8). None: not known, as of other backends.
    fallbacks: dict[str, int] | None = None
    calibration: int = 0  #: the training samples from which the ranges of int8 activations come


@dataclass(frozen=True)
class About:
    """What is known of a file before it is written. The metadata of the file hold it, too."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    schema: int
    backend: str
    precision: Precision
    network: str  #: such as kd/seed0
    weights_sha256: str | None  #: of the student's weights, if they come from a run folder
    task: str
    reads: Reads
    outputs: tuple[str, ...]  #: by name, in order; the first has the logits, or the numbers
    classes: tuple[str, ...]  #: the names of what the outputs stand for
    temperature: float | None  #: of the probabilities; None if the file returns none
    deferring: Deferring | None  #: None unless a teacher is behind the file
    versions: dict[str, str]


@dataclass(frozen=True)
class Card(About):
    """What ``card.json`` holds: what was known before, and what was measured."""

    results: Results


Kind = TypeVar("Kind", bound=About)


def read_card(folder: Path) -> Card:
    """The card in the folder of an export.

    Raises:
        LimbeckError: there is none; it is damaged, or of another schema; or its input is too large.
    """
    path = folder / CARD
    values = read_sealed(path)
    if values is None:
        cards = (card for pattern in (f"*/{CARD}", f"{EXPORTS}/*/{CARD}") for card in folder.glob(pattern))
        place = next((card.parents[1] for card in cards), None)
        hint = f"{folder} holds no export" if place is None else f"the exports are in {place}, so name {place}/*"
        raise LimbeckError(f"there is no {path}: {hint}")
    return _checked(Card, values, path)


def read_metadata(text: str, file: Path) -> About:
    """What the metadata of a file say.

    Raises:
        LimbeckError: as for `read_card`.
    """
    try:
        values = json.loads(text if len(text) <= JSON_BYTES else "")
    except (ValueError, RecursionError) as error:
        raise LimbeckError(f"the metadata of {file} are damaged") from error
    return _checked(About, values, file)


def _checked(kind: type[Kind], values: Any, path: Path) -> Kind:
    if isinstance(values, Mapping) and values.get("schema") != SCHEMA:
        raise LimbeckError(
            f"{path} has schema {values.get('schema')}, but this version of limbeck reads schema {SCHEMA}: export again"
        )
    try:
        card = from_json(kind, values)
    except LimbeckError as error:
        raise LimbeckError(f"{path} is not the card of an export: {error}") from error
    sides = [side or 0 for side in card.reads.shape[1:]]
    if not 0 < len(sides) <= 4 or min(sides) < 1 or prod(sides) > LARGEST_SAMPLE:
        raise LimbeckError(f"{path} has an input that is no sample of at most {LARGEST_SAMPLE:,} values")
    return card
