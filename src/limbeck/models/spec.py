"""What a weights file says of the network that it is of: plain values, checked and never run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

_SIZES = Annotated[int, Field(ge=1, le=2**31)]

LONGEST = 2**22
"""The most characters of it in a file: 4 MiB, with the names of some 100,000 classes."""

GIVEN = "given"
"""What stands for the caller's own module where a network has a name."""


@dataclass(frozen=True)
class NetworkSpec:
    """What `limbeck.models.build` needs to build a network, and the order of its classes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    name: str  # in a file without folders, where it is path/to/file.py:function
    options: Mapping[str, Any]  # as a recipe has them, so that they can be written as JSON
    classes: _SIZES
    shape: tuple[_SIZES, ...]  # of one sample, without N
    labels: tuple[str, ...] = ()  # the classes' names in the order of the logits; empty if unknown
    mean: tuple[float, ...] = ()  # what was taken from its inputs, as `limbeck.data.normalise`; empty if unknown
    std: tuple[float, ...] = ()  # and what they were divided by
    reuse: Mapping[str, Any] | None = None  # how a student was changed that ends as its teacher does; see `Reuse`


def parse(text: str) -> NetworkSpec:
    """The spec that a JSON text is of.

    Raises:
        ValueError: it is none, with the reason in one line.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters, allowed are at most {LONGEST:,}")
    try:
        return TypeAdapter(NetworkSpec).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
