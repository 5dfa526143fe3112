"""Device and precision. The only module that knows Lightning Fabric."""

import logging
from typing import Any, Literal, get_args

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.core import LimbeckError

Precision = Literal["auto", "32", "bf16"]

SMALL = 150_000
"""Multiply-accumulates of one forward below which converting to bf16 costs more than it saves.

Measured on 2 cores with AVX-512 bf16, batches of 64 and 256: bf16 takes 1.8 times as long at 17,000, 0.8 at 190,000,
0.5 at 330,000 and above.
"""

_FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"32": "32-true", "bf16": "bf16-mixed"}


class Engine:
    """Where and how precisely the networks run.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``mps``.
        precision: ``32``; ``bf16`` (weights in 32 bits, forward in bfloat16); or ``auto``, see `pick_precision`.
        macs: multiply-accumulates of one sample through all networks, where they are known.

    Attributes:
        device: the torch device. precision: ``32`` or ``bf16``. reason: why ``auto`` picked it.

    Raises:
        LimbeckError: the device is not there, or there is no such precision.
    """

    def __init__(self, *, device: str = "auto", precision: Precision = "auto", macs: int | None = None) -> None:
        allowed = ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        allowed += ["mps"] if torch.backends.mps.is_available() else []
        if device not in allowed:
            raise LimbeckError(f"device is {device!r}: this machine has {', '.join(allowed)}")
        accelerator = allowed[-1] if device == "auto" and len(allowed) > 2 else device
        self.device = torch.device("cpu" if accelerator == "auto" else accelerator)
        self.precision, self.reason = pick_precision(self.device, precision, macs)
        library = logging.getLogger("lightning_fabric")
        level = library.level
        library.setLevel(logging.WARNING)  # what it says of precision, the commands say better
        self._fabric = Fabric(accelerator=self.device.type, devices=1, precision=_FABRIC_PRECISION[self.precision])
        library.setLevel(level)

    def seed(self, seed: int) -> None:
        """Set the generators that dropout and initialisation draw from."""
        torch.manual_seed(seed)

    def prepare(self, step: nn.Module, optimizer: Optimizer) -> tuple[Any, Any]:
        """Put what learns and its optimizer on the device, ready to run in the engine's precision."""
        module, prepared = self._fabric.setup(step, optimizer)
        return module, prepared

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device."""
        return network.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, in the engine's precision."""
        self._fabric.backward(loss)

    def autocast(self) -> Any:
        """The context in which a network's forward runs in the engine's precision."""
        return self._fabric.autocast()

    def generators(self) -> dict[str, Tensor]:
        """The state of every generator that training draws from."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            states["mps"] = torch.mps.get_rng_state()
        return states

    def restore_generators(self, states: dict[str, Tensor]) -> None:
        """Put back what `generators` gave."""
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)
        if "mps" in states and self.device.type == "mps":
            torch.mps.set_rng_state(states["mps"])


def pick_precision(device: torch.device, precision: Precision, macs: int | None = None) -> tuple[str, str]:
    """The precision to use and the reason, in a few words.

    ``auto`` takes bf16 where the hardware multiplies it faster than 32 bits, a GPU with bf16 units or a CPU with AMX
    or AVX-512 bf16, unless the networks are known to be too small to gain. Elsewhere it takes 32 bits.
    """
    if precision not in get_args(Precision):
        raise LimbeckError(f"precision is {precision!r}: allowed are {', '.join(get_args(Precision))}")
    if precision != "auto":
        return precision, "asked for"
    if device.type == "cuda":
        fast, units = torch.cuda.is_bf16_supported(including_emulation=False), "the GPU has bf16 units"
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        units = "the CPU has bf16 units"
    else:
        return "32", f"bf16 is not known to pay on {device.type}"
    if not fast:
        return "32", units.replace("has", "has no")
    if macs is not None and macs < SMALL:
        return "32", f"{units}, but networks of {macs:,} MACs are too small to gain"
    return "bf16", units
