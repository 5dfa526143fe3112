"""What a backend is given."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from limbeck.core import LimbeckError

Layout = Literal["nhwc", "nchw"]
Precision = Literal["fp32", "fp16", "int8"]
LAYOUTS, PRECISIONS = get_args(Layout), get_args(Precision)


@dataclass(frozen=True)
class Graph:
    """A module to export, and how.

    Attributes:
        module: reads what is in ``example``, in eval mode.
        example: raw samples as the file reads them, (2, ...).
        outputs: the names of the module's outputs.
        any_batch: whether the file takes any number of samples; otherwise it takes one.
        precision: of the network in the file.
        calibration: raw samples of the training split, (N, ...), for int8; otherwise empty.
        card: what the file says about itself, as JSON.
        runtime: the unpacked package onnxruntime-web, for a page; None: it is fetched.
    """

    module: nn.Module
    example: Tensor
    outputs: tuple[str, ...]
    any_batch: bool
    precision: Precision
    calibration: Tensor
    card: str
    runtime: Path | None = None

    @property
    def input(self) -> str:
        """The name of the input."""
        return "images" if self.example.dim() == 4 else "inputs"

    def program(self) -> torch.export.ExportedProgram:
        """The module as `torch.export` captures it.

        Raises:
            LimbeckError: its forward depends on the values of tensors.
        """
        self.module(self.example)  # what is prepared in the first call must not be part of the graph
        shapes = ({0: torch.export.Dim("batch", min=1)},) if self.any_batch else None
        example = self.example if self.any_batch else self.example[:1]
        try:
            with warnings.catch_warnings():  # on weights that a hook computes, as those of torch.nn.utils.prune
                warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
                return torch.export.export(self.module, (example,), dynamic_shapes=shapes)
        except GuardOnDataDependentSymNode as error:
            raise LimbeckError(
                "the student cannot be exported: its forward depends on the values of tensors, as in `if x.sum() > 0`"
            ) from error
