"""What the rows of a store depend on, part by part, so that each difference can be told by its name."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from xxhash import xxh3_128, xxh3_128_hexdigest

from limbeck.core import LimbeckError, Tap

SCHEMA = 1  # of the folder; a store of another one is refused

Dtype = Literal["float32", "float16", "bfloat16"]
Precision = Literal["32", "bf16"]


@dataclass(frozen=True)
class Format:
    """How a tap's rows are stored.

    Args:
        dtype: of the stored numbers. Rounding to it changes a number by at most 2^-24 (float32), 2^-11 (float16) or
            2^-8 (bfloat16) of itself; float16 ends at 65504, and below 6e-5 its steps are 6e-8.
        top_k: keep only the k largest of (N, classes) logits, from 1 to classes - 1; see `limbeck.cache.encoding`.

    Raises:
        LimbeckError: there is no such dtype, or top_k is less than 1.
    """

    dtype: Dtype = "float16"
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise LimbeckError(f"a store cannot hold {self.dtype!r}: allowed are {', '.join(get_args(Dtype))}")
        if self.top_k is not None and self.top_k < 1:
            raise LimbeckError(f"top_k is {self.top_k}: allowed are 1 and greater, or none for all the logits")

    def __str__(self) -> str:
        return self.dtype if self.top_k is None else f"{self.dtype} of the {self.top_k} largest"


@dataclass(frozen=True)
class Fingerprint:
    """What the numbers of a store depend on, as far as it can be known without computing them.

    The code of the teacher's forward is not in it, and neither is the device: rows that a GPU made serve on a CPU.

    Raises:
        LimbeckError: there are no views or no taps, or no such precision.
    """

    teacher: str  # `network_digest`
    data: str  # any digest of the samples, such as `tensors_digest`
    transform: Mapping[str, Any]  # what turns a sample into an input, as plain values that JSON can hold
    seed: int  # of the views
    views: int  # how many augmented views of each sample, from 1
    taps: Mapping[Tap, Format]  # what is stored, and how
    precision: Precision  # in which the teacher computed
    versions: Mapping[str, str]  # package -> version, of all that computes

    def __post_init__(self) -> None:
        if self.views < 1:
            raise LimbeckError(f"a store of {self.views} views: allowed are 1 and greater")
        if not self.taps:
            raise LimbeckError("a store needs at least one tap")
        if self.precision not in get_args(Precision):
            raise LimbeckError(f"precision is {self.precision!r}: allowed are {', '.join(get_args(Precision))}")

    @property
    def digest(self) -> str:
        """32 hex digits of all parts together."""
        return digest_of({"schema": SCHEMA, **self.as_json()})

    def as_json(self) -> dict[str, Any]:
        """The parts as plain values; the same whatever the order of the mappings."""
        taps = [[*tap, form.dtype, form.top_k] for tap, form in self.taps.items()]
        parts = {**vars(self), "taps": sorted(taps, key=str)}
        plain: dict[str, Any] = json.loads(json.dumps(parts, sort_keys=True))  # tuples are lists from here on
        return plain

    @classmethod
    def from_json(cls, parts: Mapping[str, Any]) -> "Fingerprint":
        """What `as_json` was called on."""
        taps = {Tap(*place): Format(dtype, top_k) for *place, dtype, top_k in parts["taps"]}
        return cls(**{**parts, "taps": taps})


def refuse_difference(folder: Path, found: Fingerprint, expected: Fingerprint) -> None:
    """Raise LimbeckError, naming the first part that differs, unless the fingerprints are equal."""
    there, wanted = found.as_json(), expected.as_json()
    if there == wanted:
        return
    part = next(name for name in _SENTENCES if there[name] != wanted[name])
    tell = _SENTENCES[part]
    if isinstance(there[part], dict):
        names = sorted(name for name in there[part] | wanted[part] if there[part].get(name) != wanted[part].get(name))
        got, asked = (
            [f"{name} {parts.get(name, 'absent')}" for name in names] for parts in (there[part], wanted[part])
        )
    elif part == "taps":
        got, asked = _tap_difference(found.taps, expected.taps)
        tell = tell if found.taps.keys() != expected.taps.keys() else "holds its rows in another format"
    else:
        got, asked = [str(there[part])], [str(wanted[part])]
    raise LimbeckError(
        f"the store {folder} {tell}: it has {', '.join(got)}, needed is {', '.join(asked)}. "
        "Delete the folder or name another one, and build again"
    )


_SENTENCES = {
    "teacher": "was built with another teacher (weights, buffers or structure)",
    "data": "was built from other data",
    "transform": "was built with another transform of the samples",
    "seed": "was built with another seed of the views",
    "views": "has another number of views",
    "taps": "holds other taps",
    "precision": "was built by a teacher that computed in another precision",
    "versions": "was built with another version of a library",
}


def _tap_difference(found: Mapping[Tap, Format], expected: Mapping[Tap, Format]) -> tuple[list[str], list[str]]:
    if found.keys() != expected.keys():
        return sorted(map(str, found)), sorted(map(str, expected))
    differ = sorted((tap for tap in found if found[tap] != expected[tap]), key=str)
    return [f"{tap} as {found[tap]}" for tap in differ], [f"{tap} as {expected[tap]}" for tap in differ]


def digest_of(values: Mapping[str, Any]) -> str:
    """32 hex digits of plain values."""
    return xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def network_digest(network: nn.Module) -> str:
    """32 hex digits of a network's parameters, buffers and structure.

    The structure is the network's ``repr`` and every module's class and plain attributes, such as ``norm_first`` or an
    ensemble's ``mean``. Where the network is, its memory format and whether its activations work in place do not count.
    The code of a forward is not seen here: after a change of it run `limbeck.cache.verify`.
    """
    # An object's address in a repr, such as of a function that a layer holds, changes from run to run.
    structure = re.sub(r"(, )?inplace=(True|False)| at 0x[0-9a-fA-F]+", "", repr(network))
    lines = [f"{name} {_attributes(module)}" for name, module in network.named_modules(remove_duplicate=False)]
    named = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    return xxh3_128_hexdigest("\n".join([structure, *lines, _digest(named)]).encode())


def _attributes(module: nn.Module) -> str:
    """The module's class, and those of its attributes that are plain values or functions."""
    kind, every = type(module), vars(nn.Module())
    plain = {
        name: getattr(value, "__qualname__", repr(value))
        for name, value in vars(module).items()
        if name not in every and name != "inplace" and _is_plain(value)
    }
    return f"{kind.__module__}.{kind.__qualname__} {sorted(plain.items())}"


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, tuple | list) else (value,)
    return isinstance(value, FunctionType) or all(isinstance(part, bool | int | float | str | None) for part in parts)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits of the tensors' names, dtypes, shapes and numbers, in any order."""
    return _digest(tensors.items())


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    hashed = xxh3_128()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        whole = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        hashed.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
