"""ONNX, for onnxruntime on phones, servers and browsers."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from limbeck.exports.base import Exporter, Runner, check_quantised
from limbeck.exports.graph import Graph

OPSET = 20
CALIBRATED = 64
"""The samples of a batch in calibration, if the file takes any number."""


def export(graph: Graph, path: Path) -> dict[str, int]:
    """Write a file of ONNX. int8: onnxruntime's static quantisation of weights (by channel) and activations, as QDQ."""
    import onnx

    program: Any = torch.onnx.export(
        graph.program(),
        input_names=[graph.input],
        output_names=list(graph.outputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    written = path.with_suffix(".fp32.onnx") if graph.precision == "int8" else path
    program.save(written)
    if graph.precision == "int8":
        _quantise(written, path, graph)
        written.unlink()
    model = onnx.load(path)
    model.metadata_props.add(key="limbeck", value=graph.card)
    onnx.save(model, path)
    if graph.precision != "int8":
        return {}
    check_quantised(any(node.op_type == "QuantizeLinear" for node in model.graph.node))
    return _in_32_bits(model.graph.node)


def _in_32_bits(nodes: Iterable[Any]) -> dict[str, int]:
    """The convolutions and matrix products that the quantisation left in 32 bits."""
    made = {name: node.op_type for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return dict(Counter(node.op_type for node in layers if made.get(node.input[0]) != "DequantizeLinear"))


def load(path: Path, output: int = 0) -> Runner:
    """Open a file with onnxruntime on the CPU."""
    session = _session(path)
    given, wanted = session.get_inputs()[0].name, [session.get_outputs()[output].name]
    return lambda inputs: torch.from_numpy(session.run(wanted, {given: inputs.numpy()})[0])


def metadata(path: Path) -> str:
    """What a file says about itself."""
    found: str = _session(path).get_modelmeta().custom_metadata_map["limbeck"]
    return found


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are exceptions
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _quantise(source: Path, path: Path, graph: Graph) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self._parts = iter(torch.split(graph.calibration, CALIBRATED if graph.any_batch else 1))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self._parts, None)
            return None if part is None else {graph.input: part.numpy()}

    prepared = path.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(source, prepared)
    except Exception:  # what infers symbolic shapes raises anything where it does not know an operator, as in maxout
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    rest = set(graph.outputs[1:])  # the softmax, whose result would have 256 values
    quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[one.name for one in onnx.load(prepared).graph.node if rest & {*one.output}],
    )
    prepared.unlink()


ONNX = Exporter(
    ".onnx",
    ("onnx", "onnxscript", "onnxruntime"),
    "export",
    export,
    load,
    ("fp32", "fp16", "int8"),
    True,
    metadata,
    ("onnxruntime",),
    runtime=partial(import_module, "onnxruntime"),
)
