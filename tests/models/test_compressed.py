"""Entropy-coded weights in a file, and what a damaged or hostile file may not do."""

import json
import random
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import limbeck
from limbeck.models import NetworkSpec, build, compressed, load_network, load_weights, read_spec, save_network
from limbeck.models.compressed import KEY, SharedWeight

pytest.importorskip("constriction")

SPEC = NetworkSpec("mlp", {"hidden": [30]}, 3, (40,))
NAME = "stage1.linear.weight"


def shared(shape=(30, 40), centroids=4, density=0.1):
    symbols = torch.where(torch.rand(shape) < density, torch.randint(1, centroids + 1, shape), 0)
    return SharedWeight(symbols, torch.randn(centroids).half().float())


def written(path, weight=None):
    """A file with one coded weight, and the network."""
    weight = weight or shared()
    network = build("mlp", classes=3, shape=(40,), hidden=[30]).eval()
    network.state_dict()[NAME].copy_(weight.dense())
    save_network(network, path, spec=SPEC, compressed={NAME: weight})
    return network


def parts(path):
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())


def test_a_coded_weight_is_loaded_to_the_same_bits_like_any_other(tmp_path):
    network = written(tmp_path / "one.safetensors")
    loaded, spec = load_network(tmp_path / "one.safetensors")
    assert spec.name == "mlp"
    assert read_spec(tmp_path / "one.safetensors").options == {"hidden": [30]}
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    other = build("mlp", classes=3, shape=(40,), hidden=[30])
    assert load_weights(other, tmp_path / "one.safetensors") == ""
    assert torch.equal(other.state_dict()[NAME], network.state_dict()[NAME])


def test_the_code_takes_the_entropy_of_the_symbols():
    weight = shared((200, 300), centroids=16, density=0.08)
    codes, _ = compressed.encoded({NAME: weight.dense()}, {NAME: weight})
    share = np.bincount(weight.symbols.flatten(), minlength=17) / weight.symbols.numel()
    entropy = -sum(p * np.log2(p) for p in share if p) * weight.symbols.numel() / 8
    assert 0.98 * entropy < len(codes[NAME]) - 2 * 16 - 2 * 17 < 1.02 * entropy + 8


def test_columns_of_zeros_take_little_room():
    weight = shared((200, 300), centroids=16, density=0.5)
    weight.symbols[:, 30:] = 0
    dense = SharedWeight(weight.symbols[:, :30], weight.centroids)
    lengths = [len(compressed.encoded({NAME: one.dense()}, {NAME: one})[0][NAME]) for one in (weight, dense)]
    assert lengths[0] - lengths[1] < 300  # with one share of zeros for all columns, it is 1,400


@pytest.mark.parametrize(
    "weight",
    [
        shared(density=0.0),
        shared((29, 1), density=0.0),
        shared((300, 1000), density=0.0),  # a code as short as the limit
        shared(density=1.0),
        shared(centroids=1),
        shared((1, 1), 256),
        SharedWeight(shared().symbols, torch.tensor([70_000.0, 1e-8, 1 / 3, -2.0])),
        shared((600, 2, 3, 3), density=0.5),
    ],
)
def test_a_weight_of_any_density_keeps_its_bits(weight, tmp_path):
    tensors, metadata = compressed.encoded({NAME: weight.dense()}, {NAME: weight})
    coding = compressed.coding_of(tmp_path, metadata, tensors)
    found = compressed.decoded(tmp_path, tensors, coding, most=10**7)
    assert torch.equal(found[NAME], weight.dense())


def test_other_tensors_are_halved_if_that_changes_no_number(tmp_path):
    network = build("mlp", classes=3, shape=(40,), hidden=[30])
    network.head.bias.data.copy_(torch.tensor([0.5, -0.0, 3.0]))
    weight = shared()
    network.state_dict()[NAME].copy_(weight.dense())
    save_network(network, tmp_path / "one.safetensors", spec=SPEC, compressed={NAME: weight})
    tensors, _ = parts(tmp_path / "one.safetensors")
    assert tensors["head.bias"].dtype == torch.float16
    assert tensors["head.weight"].dtype == torch.float32
    loaded, _ = load_network(tmp_path / "one.safetensors")
    assert loaded.head.bias.dtype == torch.float32
    assert torch.equal(loaded.head.bias, network.head.bias)


def test_the_metadata_is_within_its_own_limits(tmp_path):
    written(tmp_path / "one.safetensors")
    tensors, metadata = parts(tmp_path / "one.safetensors")
    assert json.loads(metadata[KEY])["weights"] == {NAME: {"shape": [30, 40], "centroids": 4}}
    assert tensors[NAME].dtype == torch.uint8


def changed(path, **values):
    """The file with other values in the description of its coded weight, or other tensors."""
    written(path)
    tensors, metadata = parts(path)
    coding = json.loads(metadata[KEY])
    tensors |= values.pop("tensors", {})
    coding |= {key: values.pop(key) for key in ("version", "sha256", "weights", "more") if key in values}
    if values:
        coding["weights"][NAME] |= values
    save_file(tensors, path, metadata | {KEY: json.dumps(coding)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shape": [2**31, 2**31]}, r"has \d+ bytes for the compressed weight '.*' of 18,446,744,073,709,551,616"),
        ({"shape": [30_000, 4000]}, "bytes for the compressed weight"),
        ({"shape": [30, 41]}, "is damaged"),
        ({"shape": [40, 30]}, "is damaged: its decoded weights are not those that were compressed"),
        ({"shape": [1] * 1000}, "that limbeck cannot read"),
        ({"shape": [-30, -40]}, "that limbeck cannot read"),
        ({"shape": [0]}, "that limbeck cannot read"),
        ({"shape": "30"}, "that limbeck cannot read"),
        ({"centroids": 257}, "that limbeck cannot read"),
        ({"centroids": 250}, "has no code of the compressed weight|bytes for the compressed weight"),
        ({"centroids": 6}, "is damaged"),
        ({"tensors": {NAME: torch.zeros(6, dtype=torch.uint8)}}, "has 6 bytes .* of 4,800: allowed are 18 and more"),
        ({"sha256": "0" * 64}, "its decoded weights are not those that were compressed"),
        (
            {"version": 1},
            "has compressed weights of version 1, but .* reads version 2: compress again",
        ),
        ({"version": "2"}, "that limbeck cannot read"),
        ({"centroid_bytes": 3}, "that limbeck cannot read"),
        ({"centroid_bytes": 8}, "that limbeck cannot read"),
        ({"centroid_bytes": 4}, "is damaged|has no code"),
        ({"more": 1}, "that limbeck cannot read"),
        ({"weights": {str(one): {} for one in range(100_000)}}, "describes its compressed weights in .* allowed are"),
        ({"weights": {"other": {"shape": [2], "centroids": 1}}}, "has no code of the compressed weight 'other'"),
        ({"weights": []}, "that limbeck cannot read"),
        ({"tensors": {NAME: torch.zeros(10, 10, dtype=torch.uint8)}}, "has no code of the compressed weight"),
        ({"tensors": {NAME: torch.zeros(30, 40)}}, "has no code of the compressed weight"),
        ({"tensors": {NAME: torch.zeros(400, dtype=torch.int32)}}, "is damaged|has no code"),
        ({"tensors": {NAME: torch.zeros(98, dtype=torch.uint8)}}, "is damaged"),
        ({"tensors": {"head.bias": torch.ones(3)}}, "its decoded weights are not those that were compressed"),
    ],
)
def test_a_false_description_is_one_error_without_the_memory_that_it_asks_for(values, message, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    changed(tmp_path / "one.safetensors", **values)
    with pytest.raises(limbeck.LimbeckError, match=message) as caught:
        load_weights(build("mlp", classes=3, shape=(40,), hidden=[30]), tmp_path / "one.safetensors")
    assert "\n" not in str(caught.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 100


def test_a_file_may_not_decode_to_more_than_the_network_justifies(tmp_path):
    written(tmp_path / "one.safetensors")
    tensors, metadata = parts(tmp_path / "one.safetensors")
    coding = compressed.coding_of(tmp_path, metadata, tensors)
    with pytest.raises(limbeck.LimbeckError, match=r"weights of 4,800 bytes, allowed are at most 4,799"):
        compressed.decoded(tmp_path, tensors, coding, most=4799)


def test_the_limit_of_a_network_is_20_times_its_size(tmp_path):
    weights = {name: shared((300, 300)) for name in ("one", "two")}
    tensors, metadata = compressed.encoded({name: weight.dense() for name, weight in weights.items()}, weights)
    save_file(tensors, tmp_path / "one.safetensors", metadata)
    with pytest.raises(limbeck.LimbeckError, match="weights of 720,000 bytes, allowed are at most 105,840"):
        load_weights(build("mlp", classes=3, shape=(40,), hidden=[30]), tmp_path / "one.safetensors")


def test_a_file_with_damaged_bytes_is_an_error_or_gives_the_same_weights(tmp_path):
    path = tmp_path / "one.safetensors"
    network = written(path)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sound, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        data = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data) // 2, len(data))] ^= draw.randint(1, 255)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            load_weights(network, path)
        except limbeck.LimbeckError:
            refused += 1
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert refused > 150


def test_without_the_package_the_error_gives_the_command_that_installs_it(tmp_path, monkeypatch):
    written(tmp_path / "one.safetensors")
    monkeypatch.setattr(compressed, "find_spec", lambda name: None)
    with pytest.raises(limbeck.LimbeckError, match=r"one.safetensors needs constriction: pip install 'limbeck\[comp"):
        load_network(tmp_path / "one.safetensors")


def test_a_plain_file_is_written_as_before(tmp_path):
    network = build("mlp", classes=3, shape=(40,), hidden=[30])
    save_network(network, tmp_path / "plain.safetensors", spec=replace(SPEC, options={"hidden": [30]}))
    assert set(parts(tmp_path / "plain.safetensors")[1]) == {"limbeck"}
