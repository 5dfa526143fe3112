import pytest
import torch
from safetensors.torch import save_file

from limbeck.core import LimbeckError
from limbeck.models import NetworkSpec, build, save_network
from limbeck.models.files import load_all_but_classifier

SHAPE = (3, 8, 8)


def resnet(classes):
    """A network whose BatchNorm buffers are not as they were made."""
    network = build("resnet8", classes=classes, shape=SHAPE)
    network(torch.randn(4, *SHAPE))
    return network


def mlp(classes, hidden=(5,), **options):
    return build("mlp", classes=classes, shape=(4,), hidden=list(hidden), **options)


def copy(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one, other):
    return {name for name in one if torch.equal(one[name], other[name])}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "teacher.safetensors"
    network = resnet(7)
    save_network(network, path, spec=NetworkSpec("resnet8", {}, 7, SHAPE))
    return path, network


@pytest.mark.parametrize("classes", [3, 7])
def test_all_but_the_classifier_is_loaded(saved, classes):
    path, source = saved
    network = resnet(classes)
    before, wanted = copy(network), copy(source)
    load_all_but_classifier(network, path, "head")
    after = network.state_dict()
    assert equal(after, before) & {"head.weight", "head.bias"} == {"head.weight", "head.bias"}
    loaded = {name for name in after if not name.startswith("head.")}
    assert "stem.norm.running_mean" in loaded
    assert equal({name: after[name] for name in loaded}, wanted) == loaded
    assert not torch.equal(before["stem.conv.weight"], after["stem.conv.weight"])


def test_other_classes_have_the_features_of_the_file(saved):
    path, source = saved
    network = resnet(2)
    load_all_but_classifier(network, path, "head")
    inputs = torch.randn(3, *SHAPE)
    source.head = network.head
    assert torch.equal(network.eval()(inputs), source.eval()(inputs))


@pytest.mark.parametrize("wrapper", ["state_dict", None])
def test_files_of_others_are_read_as_load_weights_reads_them(tmp_path, wrapper):
    source, network = mlp(3), mlp(9)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "a.pt")
    load_all_but_classifier(network, tmp_path / "a.pt", "head")
    assert torch.equal(network.stage1.linear.weight, source.stage1.linear.weight)


def test_file_may_have_no_classifier(tmp_path):
    source, network = mlp(3), mlp(9)
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("head")}
    save_file(state, tmp_path / "a.safetensors")
    load_all_but_classifier(network, tmp_path / "a.safetensors", "head")
    assert torch.equal(network.stage1.linear.weight, source.stage1.linear.weight)


def test_only_the_layer_of_that_very_name_is_left_out(tmp_path):
    source, network = mlp(3, (5,) * 12), mlp(9, (5,) * 12)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(LimbeckError, match="does not fit"):
        load_all_but_classifier(network, tmp_path / "a.safetensors", "stage1")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (mlp(3, (6,)), r"stage1\.linear\.weight \(6, 4\) instead of \(5, 4\)"),
        (mlp(3, (5, 5)), r"2 unexpected \(stage2\.linear"),
        (mlp(3, ()), r"2 missing \(stage1\.linear"),
    ],
)
def test_every_other_layer_must_fit(tmp_path, other, said):
    network = mlp(9)
    before = copy(network)
    save_file(other.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(LimbeckError, match=said):
        load_all_but_classifier(network, tmp_path / "a.safetensors", "head")
    assert equal(network.state_dict(), before) == set(before)


@pytest.mark.parametrize("name", ["haed", "", "flatten", "head.weight"])
def test_classifier_must_be_a_layer_with_weights(saved, name):
    with pytest.raises(LimbeckError, match=f"the network has no layer '{name}' with weights"):
        load_all_but_classifier(resnet(3), saved[0], name)


def test_likely_classifier_is_named(saved):
    with pytest.raises(LimbeckError, match="did you mean 'head'"):
        load_all_but_classifier(resnet(3), saved[0], "haed")


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LimbeckError, match="there is no file"):
        load_all_but_classifier(mlp(3), tmp_path / "none.safetensors", "head")
