"""The specification of a network in a weights file: plain values that are validated and never run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

_SIZES = Annotated[int, Field(ge=1, le=2**31)]

LONGEST = 2**22
"""The most characters of a specification: 4 MiB, enough for the names of about 100,000 classes."""

GIVEN = "given"
"""The name of a network that the caller passed as a module."""


@dataclass(frozen=True)
class NetworkSpec:
    """The arguments of `limbeck.models.build` for a network, and the order of its classes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    name: str  #: path/to/file.py:function is saved without its folders
    options: Mapping[str, Any]  #: as in a recipe; they can be written as JSON
    classes: _SIZES
    shape: tuple[_SIZES, ...]  #: the shape of one sample, without N
    labels: tuple[str, ...] = ()  #: the names of the classes in the order of the logits; empty if unknown
    mean: tuple[float, ...] = ()  #: the mean of the input normalisation, see `limbeck.data.normalise`; empty if unknown
    std: tuple[float, ...] = ()  #: its standard deviation
    channels: Literal["rgb", "bgr", "gray"] | None = None  #: the channels of an image, if not those of the data
    reuse: Mapping[str, Any] | None = None  #: the reuse of the teacher's classifier by a student, see `Reuse`
    pruned: bool = False  #: the tensors are smaller than those of the network that is built, see `narrow`


def parse(text: str) -> NetworkSpec:
    """Parse a spec from JSON text.

    Raises:
        ValueError: the text is not a valid spec; the reason is one line.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters, allowed are at most {LONGEST:,}")
    try:
        return TypeAdapter(NetworkSpec).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
