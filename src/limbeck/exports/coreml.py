"""Core ML, for Apple's devices. Files are written on any system and run on macOS."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from limbeck.exports.base import Exporter, Runner, check_quantised
from limbeck.exports.graph import Graph
from limbeck.exports.resizing import resized_by_products

_UNKNOWN = {
    torch.ops.aten.addcmul.default: lambda summand, one, two: summand + one * two,
    torch.ops.aten._upsample_bilinear2d_aa.vec: resized_by_products,
    torch.ops.aten.alias.default: lambda whole: whole,
}
"""The operations that coremltools does not know, or converts without antialiasing, by others."""


def export(graph: Graph, path: Path) -> None:
    """Write an ``.mlpackage``, whose input is an array of float32, because Core ML has no arrays of bytes.

    int8: the weights alone, by channel, in layers with more than 2,048 weights; the network computes in 32 bits.

    Raises:
        LimbeckError: int8, and no layer has so many.
    """
    import coremltools
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig, linear_quantize_weights

    program = torch.export.export(graph.module, (graph.example[:1].float(),)).run_decompositions(_UNKNOWN)
    half = graph.precision == "fp16"
    model = coremltools.convert(
        program,
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
        outputs=[coremltools.TensorType(name=name) for name in graph.outputs],
    )
    if graph.precision == "int8":
        model = linear_quantize_weights(model, OptimizationConfig(OpLinearQuantizerConfig(mode="linear_symmetric")))
        operations = model._mil_program.functions["main"].operations
        check_quantised(any("dequantize" in one.op_type for one in operations), "no layer has more than 2,048 weights")
    model.user_defined_metadata["limbeck"] = graph.card
    model.save(str(path))


def load(path: Path, output: int = 0) -> Runner:
    """Open a file with Core ML."""
    import coremltools

    model = coremltools.models.MLModel(str(path))
    described = model.get_spec().description
    given, wanted = described.input[0].name, described.output[output].name

    def run(inputs: Tensor) -> Tensor:
        parts = [model.predict({given: one[None].float().numpy()}) for one in inputs]
        return torch.cat([torch.from_numpy(part[wanted]) for part in parts])

    return run


def metadata(path: Path) -> str:
    """What a file says about itself."""
    import coremltools

    found: str = coremltools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata["limbeck"]
    return found


COREML = Exporter(
    ".mlpackage",
    ("coremltools",),
    "coreml",
    export,
    load if sys.platform == "darwin" else None,
    ("fp32", "fp16", "int8"),
    False,
    metadata,
    ("coremltools",),
    calibrates=False,
)
