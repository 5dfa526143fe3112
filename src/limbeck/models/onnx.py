"""A file of ONNX as a teacher, run by onnxruntime on the CPU.

The file is data: onnxruntime loads no operator libraries, and refuses external data outside the folder of the file.
docs/security.md lists the limits.
"""

import os
import re
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_128

from limbeck.core import LimbeckError
from limbeck.files.paths import expanded, file_size
from limbeck.models.functions import FunctionNetwork

LARGEST = 2**31
"""The largest file in bytes, which is that of protobuf; weights may be in further files."""

MEMORY = 2**33
"""The most bytes that all ONNX networks of a process use together: 8 GiB."""

_LOCATION = re.compile(rb"\n\x08location\x12([\x80-\xff]?[\x00-\x7f])", re.DOTALL)
"""An entry of external data in onnx.proto: the key ``location``, and the length of its value, a path."""

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def onnx_network(path: Path | str) -> FunctionNetwork:
    """A network that runs a file of ONNX. It returns the file's output, or several outputs as a dict by name.

    If the file has a fixed batch size, batches are cut into parts of this size, and the last part is filled up.

    Raises:
        LimbeckError: onnxruntime is not installed; the file does not exist, is larger than `LARGEST` or damaged; it has
            several inputs, or one that is no tensor of floating-point numbers.
    """
    path = expanded(path)
    file_size(path, most=LARGEST, endings=(".onnx",))
    session = _session(path)
    inputs, outputs = session.get_inputs(), [one for one in session.get_outputs() if one.type.startswith("tensor(")]
    listed = ", ".join(f"{one.name} {one.shape} of {one.type}" for one in inputs)
    if len(inputs) != 1 or inputs[0].type not in _DTYPES:
        raise LimbeckError(
            f"{path} has the inputs {listed}: allowed is one tensor of floating-point numbers; write a function that "
            "runs the file, and name it with model: and trained: true"
        )
    name, dtype, names = inputs[0].name, _DTYPES[inputs[0].type], [one.name for one in outputs]
    fixed = inputs[0].shape[0] if inputs[0].shape and isinstance(inputs[0].shape[0], int) else None

    def run(batch: Tensor) -> Any:
        size, array = fixed or len(batch), batch.detach().cpu().numpy().astype(dtype)
        filled = np.concatenate([array, *[array[-1:]] * (-len(array) % size)])
        parts = [session.run(names, {name: filled[start : start + size]}) for start in range(0, len(array), size)]
        whole = [np.concatenate(values)[: len(array)] for values in zip(*parts, strict=True)]
        return whole[0] if len(whole) == 1 else dict(zip(names, whole, strict=True))

    return FunctionNetwork(run, kind="a file of ONNX", identity=_digest(path))


def onnx_files(path: Path) -> list[Path]:
    """The file, and the files of external data that it names, if they are in its folder."""
    folder = path.parent.resolve()
    with path.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
        names = {content[match.end() : match.end() + _length(match[1])] for match in _LOCATION.finditer(content)}
    files = sorted((folder / os.fsdecode(name.replace(b"\0", b""))).resolve() for name in names)
    return [path, *(file for file in files if file.is_relative_to(folder) and os.path.isfile(file))]


def _digest(path: Path) -> str:
    """32 hex digits of the content of `onnx_files`."""
    found = xxh3_128()
    for file in onnx_files(path):
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                found.update(part)
    return found.hexdigest()


def _length(varint: bytes) -> int:
    return sum((byte & 127) << 7 * place for place, byte in enumerate(varint))


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise LimbeckError(
            f"{path} needs onnxruntime, which is not installed: install it with pip install 'limbeck[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # errors are exceptions
    _limit_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds, which have no common base
        raise LimbeckError(f"{path} is damaged or cannot be run: {error}") from error


@cache
def _limit_memory() -> None:
    """Create the memory that is shared by the sessions of this process that ask for it."""
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    settings = onnxruntime.OrtArenaCfg({"max_mem": MEMORY, "arena_extend_strategy": 1})  # extended as requested
    onnxruntime.create_and_register_allocator(memory, settings)
