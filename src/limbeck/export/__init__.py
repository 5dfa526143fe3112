"""Files for devices, by backend; each is compared with the student."""

from collections.abc import Mapping

from limbeck.export.base import Exporter
from limbeck.export.coreml import COREML
from limbeck.export.executorch import EXECUTORCH
from limbeck.export.onnx import ONNX
from limbeck.export.openvino import OPENVINO

EXPORTERS: Mapping[str, Exporter] = {
    "onnx": ONNX,
    "executorch": EXECUTORCH,
    "openvino": OPENVINO,
    "coreml": COREML,
}
"""By name."""
