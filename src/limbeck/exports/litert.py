"""LiteRT, for Android, iOS and microcontrollers.

The packages of litert-torch clash with limbeck's, so the conversion runs in an environment of its own.
"""

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.exports.base import Exporter, Runner, check_quantised
from limbeck.exports.executorch import with_windows
from limbeck.exports.graph import Graph

PYTHON = "LIMBECK_LITERT_PYTHON"
"""The environment variable with the Python of the other environment."""

PACKAGE = "litert-torch==0.10.0"
"""The version that is tested."""

LONGEST = 3600
"""The most seconds of a conversion."""


def export(graph: Graph, path: Path) -> None:
    """Write a ``.tflite``. int8: static quantisation of weights (by channel) and activations with AI Edge Quantizer.

    Raises:
        LimbeckError: the environment is missing, or the conversion fails.
    """
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT, TensorType
    from ai_edge_litert.tools import flatbuffer_utils

    with TemporaryDirectory() as folder:
        program, calibration = Path(folder) / "program.pt2", Path(folder) / "calibration.npy"
        torch.export.save(with_windows(graph.program()), program)
        arguments = [Path(__file__).with_name("to_litert.py"), program, path]
        if graph.precision == "int8":
            np.save(calibration, graph.calibration.numpy())
            arguments.append(calibration)
        _run(arguments, LONGEST)
    model = flatbuffer_utils.read_model(path)
    if graph.precision == "int8":
        tensors = (tensor for part in model.subgraphs for tensor in part.tensors)
        check_quantised(any(tensor.type == TensorType.INT8 for tensor in tensors))
    (signature,) = model.signatureDefs
    for tensor, name in zip(signature.inputs + signature.outputs, (graph.input, *graph.outputs), strict=True):
        tensor.name = name
    model.buffers.append(BufferT(data=graph.card.encode()))
    model.metadata = [*(model.metadata or []), MetadataT(name="limbeck", buffer=len(model.buffers) - 1)]
    flatbuffer_utils.write_model(model, path)


def load(path: Path, output: int = 0) -> Runner:
    """Open a file with the interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    (given,), wanted = interpreter.get_input_details(), interpreter.get_output_details()[output]

    def run(inputs: Tensor) -> Tensor:
        interpreter.set_tensor(given["index"], inputs.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(wanted["index"]))

    return run


def metadata(path: Path) -> str:
    """What a file says about itself."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(path)
    found = next(one.buffer for one in model.metadata if one.name in ("limbeck", b"limbeck"))
    return bytes(model.buffers[found].data).decode()


def versions() -> dict[str, str]:
    """The version of litert-torch in the other environment.

    Raises:
        LimbeckError: there is none.
    """
    return {"litert-torch": _run(["-c", "from importlib.metadata import version; print(version('litert-torch'))"], 60)}


def _run(arguments: Sequence[str | Path], seconds: int) -> str:
    """What a command of the other Python prints."""
    python = os.environ.get(PYTHON)
    if not python:
        raise LimbeckError(
            f"the export to litert needs {PACKAGE.partition('=')[0]}, whose packages clash with limbeck's, in another "
            f"environment: python -m venv litert && litert/bin/pip install {PACKAGE} && "
            f'export {PYTHON}="$PWD/litert/bin/python"'
        )
    try:
        done = subprocess.run([python, "-I", *arguments], check=True, capture_output=True, text=True, timeout=seconds)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise LimbeckError(f"{python} ({PYTHON}) cannot convert to litert: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LimbeckError(f"{python} ({PYTHON}) cannot convert to litert: {error}") from error
    return done.stdout.strip()


LITERT = Exporter(
    ".tflite",
    ("ai_edge_litert",),
    "litert",
    export,
    load,
    ("fp32", "int8"),
    False,
    metadata,
    ("ai_edge_litert",),
    runtime=partial(import_module, "ai_edge_litert.interpreter"),
    elsewhere=versions,
)
