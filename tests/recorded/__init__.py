"""How each recorded method is called with our functions; `tests/test_golden.py` compares the values."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

Case = Mapping[str, Tensor]
"""The stored tensors of a case by key: inputs, ``param/...`` and ``teacher_param/...``."""

Recorded = Callable[[Case, Mapping[str, Any]], Tensor]
"""``(inputs, hyper-parameters) -> loss``."""


def with_parameters(module: nn.Module, parameters: Mapping[str, Tensor], *args: Tensor) -> Tensor:
    """The module in training mode, in 64 bits, called with these tensors as its parameters and buffers."""
    return functional_call(module.double().train(), dict(parameters), args)


def numbered(case: Case, prefix: str) -> list[Tensor]:
    """``prefix0``, ``prefix1``, ... in order."""
    count = sum(key.startswith(prefix) and key.removeprefix(prefix).isdecimal() for key in case)
    return [case[f"{prefix}{index}"] for index in range(count)]
