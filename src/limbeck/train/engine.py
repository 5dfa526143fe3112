"""Where and in which precision networks run."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.train.processes import ONE, Processes

Precision = Literal["auto", "32", "bf16"]


@dataclass(frozen=True)
class Engine:
    """Where and in which precision networks run; made by `make_engine`."""

    device: torch.device
    precision: Literal["32", "bf16"]  # bf16: weights in 32 bits, forward in bfloat16
    reason: str  # why this precision
    compile: bool = False  # frozen networks and losses
    processes: Processes = ONE

    @property
    def decided(self) -> dict[str, Any]:
        """The fields as plain values, for a run's records."""
        picked = {"device": str(self.device), "precision": self.precision, "why": self.reason}
        return {**picked, "compile": self.compile, "processes": self.processes.count}

    def seed(self, seed: int) -> None:
        """Set the generators that dropout and initialisation draw from."""
        torch.manual_seed(seed)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network, or all that learns in a stage, to the device."""
        return network.to(self.device)

    def autocast(self) -> Any:
        """The context in which a network's forward runs in the engine's precision."""
        return nullcontext() if self.precision == "32" else torch.autocast(self.device.type, torch.bfloat16)

    @contextmanager
    def without_autocast(self) -> Iterator[None]:
        """Inside the block an autocast of the caller's is off, so that losses run in 32 bits.

        Its cache of cast weights is cleared: one cast without gradients would be used where a gradient is needed.
        """
        kind = self.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            torch.clear_autocast_cache()
            yield

    def generators(self) -> dict[str, Tensor]:
        """The state of every generator that training draws from."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            states["mps"] = torch.mps.get_rng_state()
        return states

    def restore_generators(self, states: dict[str, Tensor]) -> None:
        """Set the generators to the states that `generators` gave."""
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)
        if "mps" in states and self.device.type == "mps":
            torch.mps.set_rng_state(states["mps"])


def make_engine(
    *,
    device: str = "auto",
    precision: Precision = "auto",
    compile: bool = False,  # noqa: A002 (what torch calls it)
    faster: bool | None = None,
) -> Engine:
    """The engine for a device and a precision. Making one changes nothing in the process.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``mps``.
        precision: ``32``, ``bf16`` or ``auto``, see `pick_precision`.
        compile: compile frozen networks and losses.
        faster: whether bf16 was measured to be faster than 32 bits; None where it was not measured.

    Raises:
        LimbeckError: the machine has no such device or no compiler for it, or there is no such precision.
    """
    place = pick_device(device)
    picked, reason = pick_precision(place, precision, faster)
    if compile and not can_compile(place):
        raise LimbeckError(f"compile is true, but the {place.type} has no compiler: g++, clang++ or triton")
    return Engine(place, picked, reason, compile)


def pick_device(device: str) -> torch.device:
    """The device by its name, or for ``auto`` a GPU where there is one.

    Raises:
        LimbeckError: the machine has none of that name.
    """
    allowed = ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    allowed += ["mps"] if torch.backends.mps.is_available() else []
    if device not in allowed:
        raise LimbeckError(f"device is {device!r}: this machine has {', '.join(allowed)}")
    accelerator = allowed[-1] if device == "auto" else device
    return torch.device("cpu" if accelerator == "auto" else accelerator)


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def can_compile(device: torch.device) -> bool:
    """Whether the compiler that torch.compile needs for the device is there."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.type == "cpu" and any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def pick_precision(
    device: torch.device, precision: Precision, faster: bool | None = None
) -> tuple[Literal["32", "bf16"], str]:
    """The precision to use and the reason, in a few words.

    ``auto`` takes bf16 where the hardware multiplies it and it was measured to be faster. Otherwise it takes 32 bits.

    Args:
        device: where the networks run.
        precision: as in `make_engine`.
        faster: as in `make_engine`.
    """
    if precision not in get_args(Precision):
        raise LimbeckError(f"precision is {precision!r}: allowed are {', '.join(get_args(Precision))}")
    if precision != "auto":
        return precision, "asked for"
    name = "GPU" if device.type == "cuda" else device.type.upper()
    if not has_bf16_units(device):
        return "32", f"the {name} has no bf16 units"
    if faster is None:
        return "32", f"the {name} has bf16 units, but their speed was not measured"
    return ("bf16", "measured: faster than 32 bits") if faster else ("32", "measured: bf16 is not faster")
