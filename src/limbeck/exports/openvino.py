"""OpenVINO, for Intel's processors."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from limbeck.exports.base import Exporter, Runner, check_quantised
from limbeck.exports.graph import Graph
from limbeck.exports.resizing import resized_by_products

_UNKNOWN = {torch.ops.aten._upsample_bilinear2d_aa.vec: resized_by_products}
"""The operation that OpenVINO does not know, by others."""


def export(graph: Graph, path: Path) -> None:
    """Write an ``.xml`` and a ``.bin``.

    fp16: the weights have 16 bits. int8: NNCF's post-training quantisation of weights (by channel) and activations.
    """
    openvino = _openvino()
    model = openvino.convert_model(graph.program().run_decompositions(_UNKNOWN))
    model.inputs[0].get_tensor().set_names({graph.input})
    if graph.any_batch:
        model.reshape({graph.input: [-1, *graph.example.shape[1:]]})
    for output, name in zip(model.outputs, graph.outputs, strict=True):
        output.get_tensor().set_names({name})
    if graph.precision == "int8":
        model = _quantised(model, graph)
    model.set_rt_info(graph.card, "limbeck")
    openvino.save_model(model, path, compress_to_fp16=graph.precision == "fp16")


def _quantised(model: Any, graph: Graph) -> Any:
    import nncf

    samples = nncf.Dataset([sample.numpy() for sample in torch.split(graph.calibration, 1)])
    with redirect_stdout(None):  # of progress bars
        quantised = nncf.quantize(model, samples, subset_size=len(graph.calibration))
    check_quantised(any(one.get_type_name() == "FakeQuantize" for one in quantised.get_ops()))
    return quantised


def load(path: Path, output: int = 0) -> Runner:
    """Open a file on the CPU."""
    openvino = _openvino()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda inputs: torch.from_numpy(compiled(inputs.numpy())[output].copy())


def metadata(path: Path) -> str:
    """What a file says about itself."""
    found: str = _openvino().Core().read_model(path).get_rt_info("limbeck").astype(str)
    return found


def _openvino() -> Any:
    """The package, without the one that reports its imports and conversions to a server of its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino

    return openvino


OPENVINO = Exporter(
    ".xml",
    ("openvino",),
    "openvino",
    export,
    load,
    ("fp32", "fp16", "int8"),
    True,
    metadata,
    ("openvino",),
    beside=("student.bin",),
    runtime=_openvino,
    for_int8=("nncf",),
)
