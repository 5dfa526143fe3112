"""outputs.safetensors: the outputs of a network on the validation and the test split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.experiment.runfiles import file_record
from limbeck.files.atomic import replacing
from limbeck.files.paths import file_size

OUTPUTS = "outputs.safetensors"

MOST_OUTPUTS = 2**24
"""The most outputs of a network that a comparison keeps: 64 MiB in 32 bits."""

MOST_BYTES = 4 * MOST_OUTPUTS + 2**20
"""The largest size of the file."""


def write_outputs(path: Path, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write outputs (N, K) by split, and return the `file_record`."""
    with replacing(path) as temporary:
        save_file({split: tensor.contiguous().cpu() for split, tensor in outputs.items()}, temporary)
    return file_record(path)


def read_outputs(path: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Read the outputs of these splits.

    Raises:
        LimbeckError: the file is missing, too large, or has no outputs of such a shape (N, K) in 32 bits.
    """
    file_size(path, most=MOST_BYTES)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    for split, shape in shapes.items():
        if split not in found:
            raise LimbeckError(f"{path} has no outputs of the {split} split, but of {', '.join(found) or 'none'}")
        if found[split].shape != shape or found[split].dtype != torch.float32:
            kind = f"{found[split].dtype} of shape {tuple(found[split].shape)}"
            raise LimbeckError(f"{path} has {kind} for the {split} split, but its outputs have float32 of {shape}")
    return {split: found[split] for split in shapes}
