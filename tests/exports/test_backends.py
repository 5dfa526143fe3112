"""What is particular to one backend: files that are read without limbeck, fallbacks, and quantised weights."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.exports import litert
from limbeck.exports.executorch import quiet
from tests.exports.conftest import installed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # some of the packages warn


def needs(name):
    return pytest.mark.skipif(not installed(name), reason=f"needs the packages of {name}")


def images(count=60):
    inputs = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return limbeck.arrays(inputs, torch.arange(count) % 3)


def network(pool):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(3)).eval()
    student(torch.rand(1, 3, 8, 8))
    return student


OUTSIDE = """
import sys
sys.modules["limbeck"] = None  # cannot be imported
import numpy, torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(sys.argv[1])
images = torch.from_numpy(numpy.load(sys.argv[2]))
forward = program.load_method("forward")
numpy.save(sys.argv[3], torch.cat([forward.execute([image[None]])[0].clone() for image in images]).numpy())
print("card:" + program.load_method("limbeck").execute([])[0])
"""


@quiet()
def _fails():
    os.write(2, b"Missing operator: aten::foo")
    raise RuntimeError


def test_what_executorch_writes_to_stderr_is_shown_only_with_an_error(capfd):
    with quiet():
        os.write(2, b"cpuinfo_utils.cpp: Reading file midr_el1")
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError):
        _fails()
    os.write(2, b".")
    assert capfd.readouterr().err == "Missing operator: aten::foo."


@needs("executorch")
def test_a_file_of_executorch_answers_raw_images_where_limbeck_cannot_be_imported(tmp_path):
    student, data = network(nn.AdaptiveAvgPool2d(1)), images()
    raw = data.test.inputs
    with torch.no_grad():
        expected = student(limbeck.data.normalise(raw, data.mean, data.std))
    done = limbeck.export(student, data, tmp_path / "out", to="executorch")
    np.save(tmp_path / "images.npy", raw.permute(0, 2, 3, 1).contiguous().numpy())
    command = [sys.executable, "-c", OUTSIDE, done.file, tmp_path / "images.npy", tmp_path / "found.npy"]
    shown = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "found.npy")), expected, rtol=1e-4, atol=1e-5)
    card = json.loads(next(line[5:] for line in shown.splitlines() if line.startswith("card:")))
    assert card["reads"]["type"] == "uint8"


@needs("executorch")
def test_operators_that_xnnpack_does_not_take_are_in_the_card(tmp_path):
    student = network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8)))
    done = limbeck.export(student, images(), tmp_path / "out", to="executorch")
    assert done.card.results.fallbacks["native_layer_norm"] == 1
    assert "convolution" not in done.card.results.fallbacks
    assert json.loads((done.folder / "card.json").read_text())["results"]["fallbacks"] == done.card.results.fallbacks


@needs("executorch")
@pytest.mark.parametrize("size", [1, 2, (3, 2)])
def test_executorch_pools_the_maxima_of_windows_of_one_size(size, tmp_path):
    student = network(nn.AdaptiveMaxPool2d(size))
    done = limbeck.export(student, images(), tmp_path / "out", to="executorch")
    assert done.card.results.parity.relative < 1e-4


@needs("executorch")
def test_executorch_refuses_windows_of_several_sizes(tmp_path):
    student = network(nn.AdaptiveMaxPool2d(4))
    with pytest.raises(limbeck.LimbeckError, match="adaptive_max_pool2d"):
        limbeck.export(student, images(), tmp_path / "out", to="executorch")


@needs("onnx")
def test_layers_that_stay_in_32_bits_are_in_the_card(tmp_path, monkeypatch):
    from onnxruntime import quantization

    student, whole = network(nn.AdaptiveAvgPool2d(1)), quantization.quantize_static
    done = limbeck.export(student, images(), tmp_path / "out", precision="int8")
    assert done.card.results.fallbacks == {}
    monkeypatch.setattr(
        quantization,
        "quantize_static",
        lambda *args, **options: whole(*args, **options, op_types_to_quantize=["Gemm", "MatMul"]),
    )
    done = limbeck.export(student, images(), tmp_path / "out", precision="int8")
    assert done.card.results.fallbacks == {"Conv": 1}


@needs("coreml")
@pytest.mark.filterwarnings("ignore")  # of temporary folders
def test_int8_of_core_ml_rounds_the_weights_of_each_channel(tmp_path):
    import coremltools

    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 30), nn.ReLU(), nn.Linear(30, 3))
    done = limbeck.export(student, images(), tmp_path / "out", to="coreml", precision="int8")
    model = coremltools.optimize.coreml.decompress_weights(
        coremltools.models.MLModel(str(done.file), skip_model_load=True)
    )
    layers = [one for one in model._mil_program.functions["main"].operations if one.op_type == "linear"]
    weight = student[1].weight.detach().numpy()
    apart, step = np.abs(layers[0].weight.val - weight), np.abs(weight).max(axis=1, keepdims=True) / 127
    assert apart.max() > 0
    assert (apart <= 0.51 * step).all()
    assert done.card.results.calibration == 0
    assert done.card.results.fallbacks is None


def test_without_the_other_environment_the_export_to_litert_tells_the_commands_that_make_it(monkeypatch):
    monkeypatch.delenv("LIMBECK_LITERT_PYTHON", raising=False)
    with pytest.raises(limbeck.LimbeckError, match=r"pip install litert-torch==.* && export LIMBECK_LITERT_PYTHON="):
        litert.versions()


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (sys.executable, r"LIMBECK_LITERT_PYTHON.* cannot convert to litert: .*litert-torch"),
        ("no/such/python", r"no/such/python \(LIMBECK_LITERT_PYTHON\) cannot convert to litert: .*No such file"),
    ],
)
def test_an_environment_without_litert_torch_is_told(python, message, monkeypatch):
    monkeypatch.setenv("LIMBECK_LITERT_PYTHON", python)
    with pytest.raises(limbeck.LimbeckError, match=message) as caught:
        litert.versions()
    assert "\n" not in str(caught.value)


OUTSIDE_LITERT = """
import sys
sys.modules["limbeck"] = sys.modules["torch"] = None  # neither can be imported
import numpy
from ai_edge_litert.interpreter import Interpreter
run = Interpreter(sys.argv[1]).get_signature_runner()
found = [run(images=image[None])["logits"] for image in numpy.load(sys.argv[2])]
numpy.save(sys.argv[3], numpy.concatenate(found))
"""


@needs("litert")
def test_a_file_of_litert_answers_raw_images_where_limbeck_and_torch_cannot_be_imported(tmp_path):
    from ai_edge_litert.tools.flatbuffer_utils import read_model

    student, data = network(nn.AdaptiveAvgPool2d(1)), images()
    raw = data.test.inputs
    with torch.no_grad():
        expected = student(limbeck.data.normalise(raw, data.mean, data.std))
    done = limbeck.export(student, data, tmp_path / "out", to="litert", probabilities=True)
    np.save(tmp_path / "images.npy", raw.permute(0, 2, 3, 1).contiguous().numpy())
    command = [sys.executable, "-c", OUTSIDE_LITERT, done.file, tmp_path / "images.npy", tmp_path / "found.npy"]
    subprocess.run(command, check=True, timeout=120)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "found.npy")), expected, rtol=1e-4, atol=1e-5)
    model = read_model(done.file)
    (place,) = (one.buffer for one in model.metadata if one.name == b"limbeck")
    assert json.loads(bytes(model.buffers[place].data))["outputs"] == ["logits", "probabilities"]


@needs("litert")
def test_an_operator_that_litert_does_not_take_is_one_line(tmp_path):
    with pytest.raises(limbeck.LimbeckError, match=r"cannot convert to litert: .*adaptive_max_pool2d") as caught:
        limbeck.export(network(nn.AdaptiveMaxPool2d(4)), images(), tmp_path / "out", to="litert")
    assert "\n" not in str(caught.value)


@needs("litert")
def test_int8_of_litert_does_not_cut_the_greatest_outputs(tmp_path):
    done = limbeck.export(network(nn.AdaptiveMaxPool2d(2)), images(), tmp_path / "out", to="litert", precision="int8")
    assert done.card.results.parity.relative < 0.1


@needs("litert")
def test_int8_of_litert_reads_features_as_floats(tmp_path):
    data = limbeck.arrays(torch.randn(60, 5), torch.arange(60) % 3)
    student = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    done = limbeck.export(student, data, tmp_path / "out", to="litert", precision="int8", probabilities=True)
    assert done.card.reads.type == "float32"
    assert done.card.results.parity.agreement >= 0.9


@needs("coreml")
@pytest.mark.filterwarnings("ignore")  # of temporary folders
def test_int8_of_core_ml_is_refused_if_it_changes_nothing(tmp_path):
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(limbeck.LimbeckError, match="no layer has more than 2,048 weights"):
        limbeck.export(student, images(), tmp_path / "out", to="coreml", precision="int8")


QUANTISING = "onnx", "openvino", "executorch", "litert"


def quantises_nothing(to, monkeypatch):
    """Let the tools of a backend return the network as it is."""
    if to == "onnx":
        monkeypatch.setattr(
            "onnxruntime.quantization.quantize_static", lambda one, two, *_, **__: shutil.copy(one, two)
        )
    elif to == "openvino":
        monkeypatch.setattr("nncf.quantize", lambda model, *_, **__: model)
    elif to == "executorch":
        place = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer.XNNPACKQuantizer"
        monkeypatch.setattr(f"{place}.set_global", lambda self, _: self)
    else:
        run = litert._run
        monkeypatch.setattr(litert, "_run", lambda arguments, seconds: run(arguments[:3], seconds))


@pytest.mark.parametrize(
    "to", [pytest.param(to, marks=needs(to)) for to in ("onnx", "openvino", "executorch", "litert")]
)
def test_int8_is_refused_if_no_operator_is_quantised(to, tmp_path, monkeypatch):
    quantises_nothing(to, monkeypatch)
    with pytest.raises(limbeck.LimbeckError, match="int8 changes nothing"):
        limbeck.export(network(nn.AdaptiveAvgPool2d(1)), images(), tmp_path / "out", to=to, precision="int8")
