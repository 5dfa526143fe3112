"""`limbeck.export`: the file answers as the student does, in another process too, or there is none."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.exports import EXPORTERS
from limbeck.exports.card import CARD
from limbeck.exports.parity import LIMITS, compare
from limbeck.models import build
from limbeck.models.inputs import Input
from limbeck.train.quantise import rounded
from tests.exports.conftest import installed

INSTALLED = [name for name in EXPORTERS if name != "web" and installed(name)]
pytestmark = [
    pytest.mark.skipif("onnx" not in INSTALLED, reason="needs limbeck[export]"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # some of the packages warn
]


def images(shape=(3, 8, 8), count=60, classes=3):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return limbeck.arrays(inputs, torch.arange(count) % classes)


def trained(network):
    """A network with the statistics of BatchNorm as after a training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.dim() > 1:  # some are so small at first that the outputs do not depend on the inputs
            nn.init.kaiming_normal_(parameter, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) / 10 - 0.05)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network.eval()


def small(shape=(3, 8, 8)):
    return trained(build("resnet8", classes=3, shape=shape))


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, inputs):
        pooled = self.one(inputs).relu().mean(dim=(2, 3))
        return {"features": pooled, "logits": self.head(pooled)}


NETWORKS = {
    "mlp": lambda: build("mlp", classes=3, shape=(3, 8, 8), hidden=(9,)),
    "resnet8": small,
    "maxout": lambda: trained(build("fitnet1", classes=3, shape=(3, 32, 32))),
    "vit": lambda: build(
        "timm:vit_tiny_patch16_224",
        classes=3,
        shape=(3, 8, 8),
        img_size=8,
        patch_size=4,
        depth=1,
        embed_dim=12,
        num_heads=2,
    ).eval(),
    "dict": OfDict,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("to", INSTALLED)
def test_every_backend_takes_every_network(to, name, tmp_path):
    shape = (3, 32, 32) if name == "maxout" else (3, 8, 8)
    network, data = NETWORKS[name](), images(shape)
    outputs = network(limbeck.data.normalise(data.test.inputs, data.mean, data.std))
    assert (outputs["logits"] if name == "dict" else outputs).std(dim=0).min() > 1e-3  # else every file would agree
    done = limbeck.export(network, data, tmp_path / "out", to=to)
    assert done.file.exists()
    card = json.loads((done.folder / CARD).read_text())
    assert card["reads"] == {
        "name": "images",
        "shape": [None if EXPORTERS[to].any_batch else 1, *shape[1:], 3],
        "type": "uint8",
        "layout": "nhwc",
        "channels": "rgb",
    }
    assert card["classes"] == ["0", "1", "2"]
    if EXPORTERS[to].load is not None:
        assert card["results"]["parity"]["relative"] <= 1e-4
        assert card["results"]["student"] == card["results"]["exported"]


def test_a_binary_network_is_written(tmp_path):
    network = trained(build("binary_resnet8", classes=3, shape=(3, 8, 8)))
    done = limbeck.export(network, images(), tmp_path / "out")
    assert done.card.results.parity.agreement >= 0.99


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("to", INSTALLED)
def test_lower_precisions_are_smaller(to, precision, tmp_path):
    if precision not in EXPORTERS[to].precisions or not installed(to, precision):
        pytest.skip(f"{to} has no {precision} here")
    network = build("mlp", classes=3, shape=(3, 8, 8), hidden=(300,))
    whole = limbeck.export(network, images(), tmp_path / "whole", to=to)
    done = limbeck.export(network, images(), tmp_path / "out", to=to, precision=precision, probabilities=True)
    assert done.card.results.bytes < 0.75 * whole.card.results.bytes
    assert done.card.versions.keys() >= {
        *EXPORTERS[to].modules,
        *(EXPORTERS[to].for_int8 if precision == "int8" else ()),
    }


def test_int8_of_onnx_takes_an_operator_whose_shape_onnxruntime_does_not_infer(tmp_path):
    network = trained(build("fitnet_depth", layers=5, init="modern", classes=3, shape=(3, 8, 8)))
    results = limbeck.export(network, images(), tmp_path / "out", precision="int8").card.results
    assert results.fallbacks == {}
    assert 0 < results.parity.relative < 0.1


OUTSIDE = """
import sys, json
sys.modules["limbeck"] = sys.modules["torch"] = None  # neither can be imported
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
images = numpy.load(sys.argv[2])
card = json.loads(session.get_modelmeta().custom_metadata_map["limbeck"])
logits, probabilities = session.run(card["outputs"], {card["reads"]["name"]: images})
numpy.savez(sys.argv[3], logits=logits, probabilities=probabilities)
"""


def test_a_file_answers_where_limbeck_and_torch_cannot_be_imported(tmp_path):
    network, data = small(), images()
    done = limbeck.export(network, data, tmp_path / "out", probabilities=True)
    raw = data.test.inputs
    np.save(tmp_path / "images.npy", raw.permute(0, 2, 3, 1).numpy())
    subprocess.run(
        [sys.executable, "-c", OUTSIDE, done.file, tmp_path / "images.npy", tmp_path / "found.npz"],
        check=True,
        timeout=60,
    )
    found = np.load(tmp_path / "found.npz")
    with torch.no_grad():
        expected = network(limbeck.data.normalise(raw, data.mean, data.std))
    torch.testing.assert_close(torch.from_numpy(found["logits"]), expected, rtol=1e-4, atol=1e-5)
    softmax = (expected / done.card.temperature).softmax(dim=1)
    torch.testing.assert_close(torch.from_numpy(found["probabilities"]), softmax, rtol=1e-3, atol=1e-5)


def test_a_student_with_inputs_of_its_own_reads_the_raw_images_of_the_data(tmp_path):
    reads = Input(mean="imagenet", std="imagenet", size=16, channels="bgr")
    done = limbeck.export(small((3, 16, 16)), images(), tmp_path / "out", student_input=reads)
    assert done.card.reads.shape == (None, 8, 8, 3)
    assert done.card.results.parity.relative < 1e-4


def test_features_are_read_as_floats(tmp_path):
    inputs = torch.randn(60, 5)
    data = limbeck.arrays(inputs, torch.arange(60) % 3)
    done = limbeck.export(build("mlp", classes=3, shape=(5,), hidden=(9,)), data, tmp_path / "out", batch=1)
    assert (done.card.reads.type, done.card.reads.shape, done.card.reads.layout) == ("float32", (1, 5), None)
    assert done.card.results.parity.batches == (1,)


def test_the_student_is_not_changed(tmp_path):
    network = small().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    limbeck.export(network, images(), tmp_path / "out", precision="fp16")
    assert network.training
    assert all(value.dtype == before[name].dtype for name, value in network.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_int8_keeps_the_grid_of_rounded_weights_also_where_a_batchnorm_is_folded_into_them(tmp_path):
    network, expected = small(), set()
    for layer in network.modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            layer.weight.data = rounded(layer.weight.data, 8)
            steps = layer.weight.data.flatten(1).abs().amax(dim=1) / 127
            expected.add((layer.weight.data.flatten(1) / steps[:, None]).round().abs().int().numpy().tobytes())
    done = limbeck.export(network, images(), tmp_path / "out", precision="int8")
    onnx = pytest.importorskip("onnx")
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(done.file).graph.initializer]
    found = {np.abs(one.reshape(len(one), -1).astype(np.int32)).tobytes() for one in stored if one.dtype == np.int8}
    assert expected <= found


def wrong(layer, to="onnx"):
    """A backend that changes the weights of a layer when it writes a file."""

    def write(graph, path):
        network = getattr(graph.module, "module", graph.module).network
        weight = network.get_submodule(layer).weight
        kept = weight.clone()
        weight.mul_(1.1)
        fallbacks = EXPORTERS[to].export(graph, path)
        weight.copy_(kept)
        return fallbacks

    return replace(EXPORTERS[to], export=write)


@pytest.mark.parametrize("to", [name for name in INSTALLED if EXPORTERS[name].load is not None])
def test_a_file_that_differs_names_the_first_layer_and_is_not_kept(to, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.options.EXPORTERS", {to: wrong("two", to)})
    network = nn.Sequential()
    for name in ("one", "two", "three", "four"):
        network.add_module(name, nn.Linear(5, 5))
    data = limbeck.arrays(torch.randn(60, 5), torch.arange(60) % 5)
    with pytest.raises(limbeck.LimbeckError, match=r"differ by .*; the first layer that differs is two"):
        limbeck.export(network, data, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_leaves_the_export_before_it(tmp_path, monkeypatch):
    network = NETWORKS["mlp"]()
    done = limbeck.export(network, images(), tmp_path / "out")
    before = done.file.read_bytes()
    monkeypatch.setattr("limbeck.exports.options.EXPORTERS", {"onnx": wrong("head")})
    with pytest.raises(limbeck.LimbeckError, match="the first layer that differs is head"):
        limbeck.export(network, images(), tmp_path / "out")
    assert done.file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [done.folder]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", LIMITS)
def test_outputs_that_are_not_finite_never_agree(value, precision):
    parity = compare(lambda one: one + value, lambda one: one, torch.rand(4, 3), [1], task="regression", split="test")
    assert "not finite" in parity.problem(LIMITS[precision])


def test_probabilities_that_are_not_the_softmax_of_the_logits_are_refused(tmp_path, monkeypatch):
    def load(path, output=0):
        run = EXPORTERS["onnx"].load(path, output)
        return lambda raw: run(raw) * (1 + output / 100)

    monkeypatch.setattr("limbeck.exports.options.EXPORTERS", {"onnx": replace(EXPORTERS["onnx"], load=load)})
    limbeck.export(NETWORKS["mlp"](), images(), tmp_path / "out")
    with pytest.raises(limbeck.LimbeckError, match=r"the probabilities of the file differ by .* from the softmax"):
        limbeck.export(NETWORKS["mlp"](), images(), tmp_path / "other", probabilities=True)
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_the_card_says_how_many_samples_gave_the_ranges_of_int8(tmp_path, monkeypatch):
    data = images()
    done = limbeck.export(NETWORKS["mlp"](), data, tmp_path / "out", precision="int8")
    assert done.card.results.calibration == len(data.train)
    monkeypatch.setattr("limbeck.exports.samples.MOST_VALUES", 20 * 192)
    done = limbeck.export(NETWORKS["mlp"](), data, tmp_path / "out", precision="int8")
    assert done.card.results.calibration == 20
    assert limbeck.export(NETWORKS["mlp"](), data, tmp_path / "out").card.results.calibration == 0
