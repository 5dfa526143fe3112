"""A file of ONNX as a network: its inputs and outputs, its batch size, and what a received file must not do."""

import builtins
import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.models.onnx import onnx_network

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
INPUTS = torch.randn(7, 4)
LOGITS = INPUTS @ torch.from_numpy(WEIGHT)


def node(kind, inputs, outputs, **attributes):
    return onnx.helper.make_node(kind, inputs, outputs, **attributes)


def value(name, *shape, kind=FLOAT):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def write(path, *, batch="N", weight=None, nodes=(), inputs=(), outputs=(), kind=FLOAT):
    """A file whose output y is x @ w."""
    weight = weight or onnx.numpy_helper.from_array(WEIGHT, "w")
    graph = onnx.helper.make_graph(
        [node("Cast", ["x"], ["c"], to=FLOAT), node("MatMul", ["c", "w"], ["y"]), *nodes],
        "network",
        [value("x", batch, 4, kind=kind), *inputs],
        [value("y", batch, 3), *outputs],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def external(location):
    """The weight, in a file of its own."""
    weight = onnx.TensorProto(name="w", data_type=FLOAT, dims=WEIGHT.shape, data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    return weight


@pytest.mark.parametrize("batch", ["N", 1, 3, 7, 16])
def test_it_gives_the_output_for_any_batch(tmp_path, batch):
    network = onnx_network(write(tmp_path / "a.onnx", batch=batch))
    assert torch.allclose(network(INPUTS), LOGITS, atol=1e-5)
    assert torch.allclose(copy.deepcopy(network)(INPUTS.double()).float(), LOGITS, atol=1e-5)


def test_several_outputs_are_a_dict(tmp_path):
    file = write(tmp_path / "a.onnx", nodes=[node("Neg", ["y"], ["z"])], outputs=[value("z", "N", 3)])
    given = onnx_network(file)(INPUTS)
    assert torch.equal(given["z"], -given["y"])


@pytest.mark.parametrize("inputs", [{"inputs": [value("mask", "N", 4)]}, {"kind": INT}], ids=["two", "integers"])
def test_other_inputs_are_refused_with_what_the_file_has(tmp_path, inputs):
    with pytest.raises(LimbeckError, match=r"has the inputs x \['N', 4\] of tensor.*write a function that runs the"):
        onnx_network(write(tmp_path / "a.onnx", **inputs))


@pytest.mark.parametrize("name", ["a.onnx.data", "MatMul_7", "w" * 200])
def test_external_data_in_the_folder_is_read_and_is_part_of_the_identity(tmp_path, name):
    file = write(tmp_path / "a.onnx", weight=external(name))
    data = tmp_path / name
    data.write_bytes(WEIGHT.tobytes())
    first = onnx_network(file)
    assert torch.allclose(first(INPUTS), LOGITS, atol=1e-5)
    assert first.identity == onnx_network(file).identity
    data.write_bytes((WEIGHT + 1).tobytes())
    assert first.identity != onnx_network(file).identity


@pytest.mark.parametrize("name", ["../secret.bin", "/dev/zero", "x" * 9000, "\0"])
def test_a_name_of_external_data_that_is_not_used_reads_no_file_outside_the_folder(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    entry = onnx.StringStringEntryProto(key="location", value=name).SerializeToString()
    constant = node("Constant", [], ["text"], value_string=entry)
    file = write(inside / "a.onnx", nodes=[constant])
    (tmp_path / "secret.bin").write_bytes(b"1")
    first = onnx_network(file).identity
    (tmp_path / "secret.bin").write_bytes(b"2")
    assert first == onnx_network(file).identity


@pytest.mark.parametrize("place", ["../secret.bin", "{folder}/secret.bin", "link.bin", "/dev/zero"])
def test_external_data_outside_the_folder_is_refused(tmp_path, place):
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.bin").symlink_to("../secret.bin")
    file = write(inside / "a.onnx", weight=external(place.format(folder=tmp_path)))
    with pytest.raises(LimbeckError, match="damaged or cannot be run"):
        onnx_network(file)


def test_operators_of_other_libraries_are_refused(tmp_path):
    file = write(tmp_path / "a.onnx", nodes=[node("Run", ["y"], ["z"], domain="evil")], outputs=[value("z", "N", 3)])
    with pytest.raises(LimbeckError, match="damaged or cannot be run"):
        onnx_network(file)


def test_a_graph_that_asks_for_more_memory_than_is_allowed_fails(tmp_path, capfd):
    huge = onnx.numpy_helper.from_array(np.array([2**33]), "size")
    constant = node("Constant", [], ["size"], value=huge)
    nodes = [constant, node("ConstantOfShape", ["size"], ["big"]), node("Size", ["big"], ["z"])]
    network = onnx_network(write(tmp_path / "a.onnx", nodes=nodes, outputs=[value("z", kind=INT)]))
    with pytest.raises(Exception, match=r"Available memory of .* is smaller than requested bytes of 34359738368"):
        network(INPUTS)


@pytest.mark.parametrize("content", [b"", b"text", bytes(range(256)) * 4])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(LimbeckError, match=r"a\.onnx is damaged or cannot be run"):
        onnx_network(tmp_path / "a.onnx")


def test_a_file_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path):
    write(tmp_path / "teacher.onnx")
    with pytest.raises(LimbeckError, match=r"there is no file .*techer\.onnx: did you mean 'teacher\.onnx'"):
        onnx_network(tmp_path / "techer.onnx")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    file = write(tmp_path / "a.onnx")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LimbeckError, match=r"needs onnxruntime, .* pip install 'limbeck\[onnx\]'"):
        onnx_network(Path(file))
