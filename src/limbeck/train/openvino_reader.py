"""A frozen network's tensors through OpenVINO, which runs convolutions on CPUs faster than torch does."""

import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Tap
from limbeck.train.compile import CannotCompile, Read, as_it_is, check_alike, reason, traced


def openvino_reader(
    network: nn.Module, inputs: Tensor, taps: Iterable[Tap], *, precision: Literal["32", "bf16"] = "32"
) -> Read:
    """A function of a batch's inputs that gives the taps' tensors, in 32 bits, through OpenVINO.

    Batches of another shape than ``inputs`` run the network as it is. OpenVINO's telemetry, which sends to its maker
    what is imported and converted unless the user has opted out, is kept off in this process.

    Args:
        network: frozen, in eval mode and in 32 bits, such as `limbeck.train.fuse.fold` gives; left as it is. Its
            weights must not change afterwards.
        inputs: (N, ...) inputs of a full batch, in 32 bits, on the CPU.
        taps: what to read of it.
        precision: of the computation.

    Raises:
        CannotCompile: the network's code cannot be one graph, OpenVINO lacks an operation of it, or the tensors differ
            from the network's by more than rounding.
        LimbeckError: OpenVINO is not installed; the inputs are on another device; a tap does not exist or has no one
            value.
    """
    openvino = library(inputs.device)
    wanted = tuple(dict.fromkeys(taps))

    def plain(batch: Tensor) -> dict[Tap, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return as_it_is(network, batch, wanted)

    expected = plain(inputs)
    first: dict[int, Tap] = {}  # one layer's output is the next one's input: OpenVINO minds a tensor given twice
    places = {tap: first.setdefault(id(tensor), tap) for tap, tensor in expected.items()}
    given = tuple(first.values())
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        model = openvino.convert_model(traced(network, inputs, given))
        model.reshape(list(inputs.shape))
        graph = openvino.compile_model(model, "CPU", options)
    except Exception as error:  # the network may be the user's, and both libraries raise many kinds
        raise CannotCompile(f"the network cannot be run by OpenVINO: {reason(error)}") from error

    def read(batch: Tensor) -> Mapping[Tap, Tensor]:
        if batch.shape != inputs.shape:
            return {tap: tensor.float() for tap, tensor in plain(batch).items()}
        found = graph([batch.numpy()])
        tensors = {tap: torch.from_numpy(found[place]) for place, tap in enumerate(given)}
        return {tap: tensors[places[tap]] for tap in wanted}

    check_alike({tap: tensor.float() for tap, tensor in expected.items()}, read(inputs), low=precision == "bf16")
    return read


def library(device: torch.device) -> Any:
    """OpenVINO, for networks on this device.

    Raises:
        LimbeckError: it is not installed, or the device is not a CPU.
    """
    if device.type != "cpu":
        raise LimbeckError(f"OpenVINO runs on the CPU here, but the device is {device}")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not to be imported
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise LimbeckError("OpenVINO is not installed: pip install limbeck[openvino]") from error
