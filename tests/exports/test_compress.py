"""Deep compression: pruning, shared weights and the file, on tiny networks."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import limbeck
from limbeck.exports.compress import Options, compress
from limbeck.exports.sharing import bake, clustered, entries, layers_of, prune, share, shared_of, shorten, sparse_bytes
from limbeck.models import build, load_network
from limbeck.models.files import read_state

pytest.importorskip("constriction")


SIZES = {"mlp": {"hidden": (40,)}, "resnet8": {}}


def digits(validation=0.1, **options):
    return limbeck.load(source="digits", limit=400, validation=validation, **options)


def trained(data, model="mlp", **options):
    network = build(model, classes=10, shape=data.shape, **(options or {"hidden": (40,)} if model == "mlp" else {}))
    limbeck.distill(
        None,
        network,
        data,
        method="alone",
        epochs=8,
        optimizer={"name": "adam", "lr": 1e-2},
        device="cpu",
        precision="32",
    )
    return network


def test_weights_up_to_quality_times_their_deviation_are_pruned():
    layer = nn.Linear(20, 30)
    before = layer.weight.detach().clone()
    prune(layer, quality=0.8, keep=None)
    mean = before.mean()
    deviation = math.sqrt(sum(float(value - mean) ** 2 for value in before.flatten()) / 600)
    expected = torch.tensor([[value if abs(value) > 0.8 * deviation else 0 for value in row] for row in before])
    assert torch.equal(layer.weight, expected)


def test_a_share_keeps_the_largest_weights():
    layer = nn.Conv2d(3, 5, 3)
    before = layer.weight.detach().clone().abs().flatten()
    prune(layer, quality=9.0, keep=0.2)
    kept = layer.weight.detach().flatten() != 0
    assert kept.sum() == 27
    assert before[kept].min() >= before[~kept].max()


def test_pruned_weights_stay_0_in_training():
    layer = nn.Linear(6, 4)
    prune(layer, quality=1.0, keep=None)
    zero = layer.weight == 0
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        layer(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
    assert zero.any()
    assert torch.equal(layer.weight == 0, zero)


def test_clusters_are_those_of_k_means_from_values_at_equal_distances():
    weight = torch.randn(6, 7)
    weight[weight.abs() < 0.5] = 0
    found = clustered(weight, 2)
    values = [float(one) for one in weight.flatten() if one != 0]
    centroids = [min(values) + step * (max(values) - min(values)) / 3 for step in range(4)]
    for _ in range(100):
        nearest = [min(range(4), key=lambda place: abs(value - centroids[place])) for value in values]
        members = [[value for value, place in zip(values, nearest, strict=True) if place == one] for one in range(4)]
        centroids = [sum(one) / len(one) for one in members]
    torch.testing.assert_close(found.centroids, torch.tensor(centroids))
    assert torch.equal(found.symbols == 0, weight == 0)
    assert [int(one) - 1 for one in found.symbols.flatten() if one] == nearest


@pytest.mark.parametrize(("weight", "count"), [(torch.zeros(2, 3), 1), (torch.ones(2, 3), 1), (torch.eye(3) * 2, 1)])
def test_fewer_distinct_weights_have_fewer_centroids(weight, count):
    found = clustered(weight, 5)
    assert len(found.centroids) == count
    assert torch.equal(found.dense(), weight)


def test_centroids_and_small_biases_are_rounded_to_16_bits():
    layers = [nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(5, 3, bias=False)]
    layers[1].bias.data[0] = 1990.3
    before = [layer.bias.clone() for layer in layers[:2]]
    for layer in layers:
        prune(layer, quality=0.5, keep=None)
        share(layer, 2)
        exact = shared_of(layer).centroids.clone()
        shorten(layer)
        assert torch.equal(shared_of(layer).centroids, exact.half().float())
    assert torch.equal(layers[0].bias, before[0].half().float())
    assert torch.equal(layers[1].bias, before[1])


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_centroids_that_float16_cannot_hold_keep_32_bits(scale):
    layer = nn.Linear(5, 3)
    layer.weight.data *= scale
    prune(layer, quality=0.5, keep=None)
    share(layer, 2)
    exact = shared_of(layer).centroids.clone()
    shorten(layer)
    assert torch.equal(shared_of(layer).centroids, exact)


def test_the_gradient_of_a_centroid_is_the_sum_over_its_cluster():
    layer = nn.Linear(5, 3)
    prune(layer, quality=0.5, keep=None)
    share(layer, 2)
    weight = shared_of(layer)
    upstream = torch.randn(3, 5)
    (layer.weight * upstream).sum().backward()
    sums = [upstream[weight.symbols == place].sum() for place in range(1, 5)]
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, torch.stack(sums))
    bake(layer)
    assert torch.equal(layer.weight, weight.dense())
    assert type(layer) is nn.Linear
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 1.0])
def test_relative_indices_fill_gaps_that_they_cannot_span(density):
    mask = torch.rand(30, 50) < density
    places = [-1, *torch.nonzero(mask.flatten()).flatten().tolist()]
    fillers = sum((after - before - 1) // 8 for before, after in pairwise(places))
    assert entries(mask, 3) == int(mask.sum()) + fillers


def test_sparse_bytes_count_values_and_indices():
    layer, conv = nn.Linear(8, 4), nn.Conv1d(2, 3, 5)
    assert sparse_bytes([layer, conv], [5, 8]) == (32 * (5 + 5) + 30 * (8 + 8)) // 8


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_a_student_is_compressed_to_a_file_of_the_same_weights(model, tmp_path):
    data = digits()
    network = trained(data, model, **SIZES[model])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done = compress(network, data, tmp_path / "small.safetensors", epochs=2, centroid_epochs=1)
    assert [step.name for step in done.steps] == ["original", "pruned", "quantised", "coded"]
    original, pruned, quantised, _ = (step.bytes for step in done.steps)
    assert original > pruned > quantised
    assert done.steps[-1].bytes == done.file.stat().st_size
    assert done.steps[-1].score == done.steps[-2].score
    assert done.steps[-1].score > done.steps[0].score - 0.1
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    loaded, _ = load_network(done.file, network=build(model, classes=10, shape=data.shape, **SIZES[model]))
    for name, layer in layers_of(loaded).items():
        assert float((layer.weight != 0).double().mean()) == done.kept[name]
        assert len(layer.weight.unique()) <= 2 ** (5 if isinstance(layer, nn.Linear) else 8) + 1
        assert torch.equal(layer.weight, layer.weight.half().float())
    with torch.no_grad():
        outputs = loaded(limbeck.data.normalise(data.test.inputs, data.mean, data.std))
    assert float((outputs.argmax(dim=1) == data.test.targets).double().mean()) == done.steps[-1].score


def test_shares_and_bits_of_a_layer_come_before_those_of_its_kind(tmp_path):
    data = digits()
    network = build("mlp", classes=10, shape=data.shape, hidden=(40,))
    options = {"keep": {"linear": 0.1, "head": 0.5}, "bits": {"linear": 2, "head": 3}}
    done = compress(network, data, tmp_path / "small.safetensors", epochs=0, centroid_epochs=0, **options)
    assert done.kept == {"stage1.linear": 0.1, "head": 0.5}
    loaded, _ = load_network(done.file, network=network)
    assert [len(layer.weight.unique()) for layer in layers_of(loaded).values()] == [5, 9]


def test_the_teacher_teaches_both_trainings_and_is_not_changed(tmp_path):
    data = digits()
    network, teacher = trained(data), trained(data, hidden=(60,)).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    options = {"epochs": 1, "centroid_epochs": 1}
    files = [tmp_path / f"{name}.safetensors" for name in ("alone", "taught", "again")]
    compress(network, data, files[0], **options)
    compress(network, data, files[1], teacher=teacher, **options)
    compress(network, data, files[2], teacher=teacher, **options)
    alone, taught, again = ([*load_file(file).values()] for file in files)
    assert all(map(torch.equal, taught, again))
    assert not all(map(torch.equal, alone, taught))
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_centroids_learn(tmp_path):
    data = digits()
    network, scores = trained(data), []
    for epochs in (0, 4):
        done = compress(
            network, data, tmp_path / "small.safetensors", epochs=0, centroid_epochs=epochs, bits={"linear": 1}
        )
        scores.append(done.steps[2].score)
    assert scores[1] > scores[0]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.two.weight = self.one.weight

    def forward(self, inputs):
        return self.head(self.two(self.one(inputs.flatten(1))))


def normed():
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)))


def mlp():
    return build("mlp", classes=10, shape=(1, 8, 8), hidden=(20,))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (mlp, {"quality": -1.0}, "quality is -1.0: allowed are numbers from 0"),
        (mlp, {"quality": math.nan}, "quality is nan"),
        (mlp, {"keep": {"linaer": 0.1}}, "there is no layer 'linaer': did you mean 'linear'"),
        (mlp, {"keep": {"head": 0.0}}, "keep of head is 0.0: allowed are shares above 0, at most 1"),
        (mlp, {"bits": {"hed": 3}}, "there is no layer 'hed': did you mean 'head'"),
        (mlp, {"bits": {"head": 9}}, "bits of head is 9: allowed are 1 to 8"),
        (mlp, {"bits": {"head": 2.5}}, "bits of head is 2.5"),
        (mlp, {"epochs": -1}, "epochs is -1: allowed are whole numbers from 0"),
        (mlp, {"centroid_epochs": 1.5}, "centroid_epochs is 1.5"),
        (mlp, {"optimizer": "adamm"}, "there is no optimizer 'adamm': did you mean 'adam'"),
        (mlp, {"teacher": mlp(), "method": "kdd"}, "there is no method 'kdd': did you mean 'kd'"),
        (mlp, {"teacher": mlp(), "method": "mutual"}, "choose a method such as kd"),
        (Tied, {}, "one and two have one weight: shared layers cannot be compressed"),
        (normed, {}, "the weight of 1 is computed from others"),
        (lambda: mlp().double(), {}, "the weight of stage1.linear is of torch.float64"),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), {}, "no convolution and no linear layer"),
    ],
)
def test_what_cannot_be_compressed_is_one_error_before_training(network, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.compress.run", None)
    with pytest.raises(limbeck.LimbeckError, match=message):
        compress(network(), digits(), tmp_path / "small.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_instead_of_a_file_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.compress.run", None)
    with pytest.raises(limbeck.LimbeckError, match=r"is a folder: name a file, such as .*compressed\.safetensors"):
        compress(mlp(), digits(), tmp_path)


def test_a_file_that_cannot_be_written_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.compress.run", None)
    (tmp_path / "file").touch()
    with pytest.raises(limbeck.LimbeckError, match=r"small\.safetensors cannot be written"):
        compress(mlp(), digits(), tmp_path / "file" / "small.safetensors")


def test_without_the_package_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.models.compressed.find_spec", lambda name: None)
    with pytest.raises(limbeck.LimbeckError, match=r"limbeck compress needs constriction: pip install 'limbeck\[comp"):
        compress(mlp(), digits(), tmp_path / "small.safetensors")


def test_the_defaults_are_those_of_the_paper():
    layers = {"conv": nn.Conv2d(1, 1, 3), "linear": nn.Linear(2, 2)}
    assert [Options().bits_of(name, layer) for name, layer in layers.items()] == [8, 5]


def test_a_file_that_gives_other_weights_is_not_kept(tmp_path, monkeypatch):
    def other(path, expected):
        found = read_state(path, expected)
        found.state["head.bias"] += 1
        return found

    monkeypatch.setattr("limbeck.exports.compress.read_state", other)
    (tmp_path / "small.safetensors").write_text("earlier")
    with pytest.raises(limbeck.LimbeckError, match=r"the file gives other values of head\.bias than the student has"):
        compress(mlp(), digits(), tmp_path / "small.safetensors", epochs=0, centroid_epochs=0)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["earlier"]
