"""What the rows of a store depend on, part by part, so that a message can say which part differs."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import torch
from torch import nn
from xxhash import xxh3_128, xxh3_128_hexdigest

from limbeck.cache.manifest import SCHEMA, Dtype, Precision, digest_of
from limbeck.core import LimbeckError, Tap
from limbeck.models.class_order import Selected
from limbeck.models.inputs import Bridge


@dataclass(frozen=True)
class Format:
    """How a tap's rows are stored.

    Args:
        dtype: of the stored numbers. Rounding changes a number by at most 2^-24 (float32), 2^-11 (float16) or 2^-8
            (bfloat16) of itself. float16 ends at 65504, and below 6e-5 its steps are 6e-8.
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
            raise LimbeckError(f"top_k is {self.top_k}: allowed are 1 and greater, or none to keep all logits")

    def __str__(self) -> str:
        return self.dtype if self.top_k is None else f"{self.dtype} of the {self.top_k} largest"


@dataclass(frozen=True)
class Fingerprint:
    """What the numbers of a store depend on, as far as it is known without computing them.

    The code of the teacher's forward is not part of it, and neither is the device: rows that a GPU computed are also
    used on a CPU.

    Raises:
        LimbeckError: there are no views or no taps, or there is no such precision.
    """

    weights: str  # `weights_digest` of the teacher
    structure: str  # `structure_digest` of the teacher
    data: str  # a digest of the samples, before they are transformed
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
        """The parts as plain values; the order of the mappings makes no difference."""
        taps = {str(tap): [*tap, form.dtype, form.top_k] for tap, form in self.taps.items()}
        parts = {**vars(self), "taps": taps}
        plain: dict[str, Any] = json.loads(json.dumps(parts, sort_keys=True))  # tuples become lists
        return plain

    @classmethod
    def from_json(cls, parts: Mapping[str, Any]) -> "Fingerprint":
        """The fingerprint that `as_json` was called on."""
        taps = {Tap(*place): Format(dtype, top_k) for *place, dtype, top_k in parts["taps"].values()}
        return cls(**{**parts, "taps": taps})


def refuse_difference(folder: Path, found: Fingerprint, expected: Fingerprint) -> None:
    """Raise LimbeckError, naming every part that differs, unless the fingerprints are equal."""
    differences = list(_differences(found, expected))
    if differences:
        raise LimbeckError(
            f"the store {folder} does not fit: {'; '.join(differences)}. "
            "Delete the folder or name another one, and build the store again"
        )


def _differences(found: Fingerprint, expected: Fingerprint) -> Iterator[str]:
    """A sentence for every part that differs."""
    stored, needed = found.as_json(), expected.as_json()
    for part, sentence in _UNLIKE.items():
        if stored[part] != needed[part]:
            yield sentence
    for part, name in _VALUES.items():
        if stored[part] != needed[part]:
            yield f"{name} is {stored[part]} in the store, needed is {needed[part]}"
    for part, name in _MAPPINGS.items():
        was, now = stored[part], needed[part]
        for key in sorted(was | now):
            if was.get(key) != now.get(key):
                yield f"{name} {key} is {was.get(key, 'absent')} in the store, needed is {now.get(key, 'absent')}"
    if found.taps.keys() != expected.taps.keys():
        yield f"the store has the taps {_listed(found.taps)}, needed are {_listed(expected.taps)}"
        return
    for tap in sorted(found.taps, key=str):
        if found.taps[tap] != expected.taps[tap]:
            yield f"the tap {tap} is stored as {found.taps[tap]}, needed is {expected.taps[tap]}"


def _listed(taps: Mapping[Tap, Format]) -> str:
    return ", ".join(sorted(map(str, taps)))


_UNLIKE = {
    "weights": "the teacher's weights or buffers are not those that the store was built with",
    "structure": "the teacher's structure (its modules or their attributes) is not that which the store was built with",
    "data": "the training samples are not those that the store was built from",
}
"""Parts that are digests, which would tell a reader nothing."""

_VALUES = {
    "seed": "the seed of the views",
    "views": "the number of views",
    "precision": "the precision of the teacher",
}

_MAPPINGS = {"transform": "the transform of the samples:", "versions": "the version of"}


def weights_digest(network: nn.Module) -> str:
    """32 hex digits of a network's parameters and buffers: names, dtypes, shapes and numbers.

    Where the network is and its memory format make no difference.
    """
    found = xxh3_128()
    named = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    for name, tensor in sorted(named, key=lambda item: item[0]):
        whole = tensor.detach().cpu().contiguous()
        found.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        found.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def structure_digest(network: nn.Module) -> str:
    """32 hex digits of a network's modules.

    They are its ``repr`` and every module's class and plain attributes, such as ``norm_first`` or an ensemble's
    ``mean``, and what converts its inputs and selects its outputs. Whether activations work in place makes no
    difference. The code of a forward is not seen: after a change of it run `limbeck.cache.checking.verify`.
    """
    # The address of an object in a repr, such as of a function that a layer holds, changes from run to run.
    shown = re.sub(r"(, )?inplace=(True|False)| at 0x[0-9a-fA-F]+", "", repr(network))
    lines = [f"{name} {_attributes(module)}" for name, module in network.named_modules(remove_duplicate=False)]
    hooks = [
        hook
        for module in network.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]
    lines += [repr(hook) for hook in hooks if isinstance(hook, Bridge | Selected)]
    return xxh3_128_hexdigest("\n".join([shown, *lines]).encode())


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
