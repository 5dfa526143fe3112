"""Files for devices, by backend; each is compared with the student."""

from collections.abc import Mapping

from limbeck.exports.base import Exporter
from limbeck.exports.coreml import COREML
from limbeck.exports.executorch import EXECUTORCH
from limbeck.exports.litert import LITERT
from limbeck.exports.onnx import ONNX
from limbeck.exports.openvino import OPENVINO
from limbeck.exports.web import WEB

EXPORTERS: Mapping[str, Exporter] = {
    "onnx": ONNX,
    "executorch": EXECUTORCH,
    "openvino": OPENVINO,
    "coreml": COREML,
    "litert": LITERT,
    "web": WEB,
}
"""By name."""
