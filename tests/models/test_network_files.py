import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.models import NetworkSpec, build, load_network, load_weights, read_spec, save_network

SPEC = NetworkSpec("resnet8", {}, 3, (3, 8, 8), ("cat", "dog", "eel"))


def small(classes=3, hidden=(5,)):
    return build("mlp", classes=classes, shape=(4,), hidden=list(hidden))


def resnet():
    """A network whose BatchNorm buffers are not as they were made."""
    network = build(SPEC.name, classes=SPEC.classes, shape=SPEC.shape)
    network(torch.randn(4, 3, 8, 8))
    return network


def same(first, second):
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(resnet(), path, spec=SPEC)
    return path


def test_a_network_of_torchvision_that_reads_its_version_is_read_back(tmp_path):
    network = build("torchvision:mnasnet0_5", classes=3, shape=(3, 32, 32))
    save_network(network, tmp_path / "one.safetensors", spec=NetworkSpec("torchvision:mnasnet0_5", {}, 3, (3, 32, 32)))
    assert same(load_network(tmp_path / "one.safetensors")[0], network)


def test_network_is_read_back_bit_for_bit_from_its_file_alone(tmp_path):
    network, path = resnet(), tmp_path / "new" / "student.safetensors"
    save_network(network, path, spec=SPEC)
    restored, spec = load_network(path)
    assert spec == SPEC
    assert same(network, restored)
    assert restored.stem.norm.num_batches_tracked == 1
    assert os.listdir(path.parent) == ["student.safetensors"]


def test_spec_keeps_options_and_types(tmp_path):
    path = tmp_path / "a.safetensors"
    spec = NetworkSpec("mlp", {"hidden": [5], "max_norm": None}, 3, (4,))
    save_network(small(), path, spec=spec)
    assert read_spec(path) == spec
    assert isinstance(read_spec(path).shape, tuple)
    assert load_network(path)[0].stage1.linear.out_features == 5


def test_strided_and_shared_weights_are_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 4), nn.Linear(4, 4)).to(memory_format=torch.channels_last)
    network[2].weight = network[1].weight
    save_network(network, path, spec=SPEC)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 4), nn.Linear(4, 4))
    load_weights(other, path)
    assert same(network, other)


def test_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LimbeckError, match="disk full"):
        save_network(resnet(), saved, spec=SPEC)
    assert saved.read_bytes() == before


def test_options_that_are_not_plain_values_are_refused(tmp_path):
    with pytest.raises(LimbeckError, match="of mlp cannot be saved"):
        save_network(small(), tmp_path / "a.safetensors", spec=NetworkSpec("mlp", {"hidden": nn.ReLU}, 3, (4,)))


def test_files_of_others_have_no_spec(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors", {"format": "pt"})
    torch.save({}, tmp_path / "c.pt")
    assert [read_spec(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c.pt")] == [None] * 3
    with pytest.raises(LimbeckError, match=r"a\.safetensors does not say which network it holds"):
        load_network(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "mlp"}', '{"shape": [1], "labels": [], "newer": 1}'])
def test_metadata_of_another_form_is_refused(tmp_path, text):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"limbeck": text})
    with pytest.raises(LimbeckError, match="has a description of its network that limbeck cannot read"):
        read_spec(tmp_path / "a.safetensors")


@pytest.mark.parametrize("read", [read_spec, load_network, lambda path: load_weights(small(), path)])
def test_missing_file_is_answered_with_the_nearest(saved, read):
    with pytest.raises(LimbeckError, match=r"no file .*studnt\.safetensors: did you mean 'student\.safetensors'"):
        read(saved.with_name("studnt.safetensors"))


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
@pytest.mark.parametrize("read", [read_spec, lambda path: load_weights(small(), path)])
def test_file_cut_short_is_named(saved, kept, read):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(LimbeckError, match=r"student\.safetensors is truncated or damaged"):
        read(saved)


@pytest.mark.parametrize("kept", [0, 5, 500, -1])
def test_pytorch_file_cut_short_is_named(tmp_path, kept):
    path = tmp_path / "a.pth"
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LimbeckError, match=r"a\.pth is (truncated or )?damaged"):
        load_weights(small(), path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"epoch": 3, "model": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_loads_what_others_wrote(tmp_path, wrap, suffix):
    network, other = small(), small()
    torch.save(wrap(network.state_dict()), tmp_path / f"a.{suffix}")
    assert not same(network, other)
    load_weights(other, tmp_path / f"a.{suffix}")
    assert same(network, other)


def test_prefix_that_is_the_networks_own_stays(tmp_path):
    network, other = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    load_weights(other, tmp_path / "a.pt")
    assert same(network, other)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}])
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LimbeckError, match=r"contains no weights, it.*: save only the weights, with torch\.save"):
        load_weights(small(), tmp_path / "a.pt")


def test_other_class_count_is_said_plainly(tmp_path):
    save_network(small(classes=100), tmp_path / "a.safetensors", spec=SPEC)
    with pytest.raises(LimbeckError, match="the checkpoint has 100 classes, the network 10"):
        load_weights(small(classes=10), tmp_path / "a.safetensors")


def test_other_layers_are_counted_and_the_first_named(tmp_path):
    save_network(small(hidden=(5, 5, 5)), tmp_path / "a.safetensors", spec=SPEC)
    network = small(hidden=(6,))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(LimbeckError) as caught:
        load_weights(network, tmp_path / "a.safetensors")
    message = str(caught.value)
    assert "4 unexpected (" in message
    assert ", ...); 3 of another shape (" in message
    assert "stage1.linear.weight (5, 4) instead of (6, 4)" in message
    assert "missing" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_missing_layers_are_counted(tmp_path):
    state = small().state_dict()
    del state["head.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(
        LimbeckError, match=r"1 missing \(head\.bias\) \(it contains tensors such as head\.weight, stage1"
    ):
        load_weights(small(), tmp_path / "a.safetensors")


def test_other_input_of_the_classifier_is_not_taken_for_other_classes(tmp_path):
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(LimbeckError, match=r"1 of another shape \(weight \(3, 4\) instead of \(3, 5\)\)"):
        load_weights(nn.Linear(5, 3), tmp_path / "a.safetensors")


def test_other_width_of_several_layers_is_not_taken_for_other_classes(tmp_path):
    wide, narrow = (nn.Sequential(nn.BatchNorm1d(width), nn.BatchNorm1d(width)) for width in (3, 2))
    save_file(narrow.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(LimbeckError, match="8 of another shape"):
        load_weights(wide, tmp_path / "a.safetensors")


def test_type_of_the_network_stays(tmp_path):
    save_network(small().double(), tmp_path / "a.safetensors", spec=SPEC)
    network = small()
    load_weights(network, tmp_path / "a.safetensors")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {torch.float64}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("timm:test_resnet", {"pretrained": True, "drop_rate": 0.1}, {"drop_rate": 0.1}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, {}),
        ("mlp", {"weights": 1}, {"weights": 1}),
    ],
)
def test_loading_downloads_nothing(tmp_path, monkeypatch, name, options, expected):
    save_network(small(), tmp_path / "a.safetensors", spec=NetworkSpec(name, options, 3, (4,)))
    calls = []

    def record(name, *, classes, shape, **options):
        calls.append(options)
        return small()

    monkeypatch.setattr("limbeck.models.rebuilding.build", record)
    load_network(tmp_path / "a.safetensors")
    assert calls == [expected] * 2  # without memory, to look at it, and for use


def test_a_flipped_byte_in_a_pytorch_file_is_found(tmp_path):
    network = small()
    file = tmp_path / "net.pth"
    torch.save(network.state_dict(), file)
    content = bytearray(file.read_bytes())
    place = content.find(network.state_dict()["head.weight"].numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(LimbeckError, match=r"net\.pth is truncated or damaged .*checksum"):
        load_weights(small(), file)


def test_a_network_is_read_from_a_path_as_text_and_is_ready_for_use(saved):
    network, spec = limbeck.load_network(str(saved))
    assert not network.training
    assert spec == read_spec(saved)
