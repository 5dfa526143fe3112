"""Weights files as training scripts write them: each form loads what the network had, or says what the file holds."""

import argparse
import collections
import functools
import json
import pathlib
from types import SimpleNamespace

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from limbeck.core import LimbeckError
from limbeck.models import load_weights
from limbeck.models.checkpoints import find_state
from limbeck.models.files import load_all_but_classifier


class Net(nn.Module):
    """A network with all kinds of entries."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)


class Wrapped(nn.Module):
    def __init__(self, inner, name="model"):
        super().__init__()
        self.add_module(name, inner)


def trained(classes=3):
    network = Net(classes)
    network.norm.running_mean.normal_()
    network.norm.num_batches_tracked += 7
    return network


NET = trained()
STATE = dict(NET.state_dict())
OTHER = dict(trained().state_dict())
WIDER = {name: torch.zeros(9, *tensor.shape) for name, tensor in STATE.items()}


def under(prefix, state=None):
    return {prefix + name: tensor for name, tensor in (state or STATE).items()}


def optimizer():
    network = trained()
    made = torch.optim.AdamW(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    made.step()
    return made.state_dict()


ARGS = argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), milestones=[1, 2], amp=None)

FORMS = {
    "plain": STATE,
    "torchvision's references": {
        "model": STATE,
        "optimizer": optimizer(),
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": ARGS,
        "scaler": {},
        "model_ema": {**under("module.", OTHER), "n_averaged": torch.tensor(4)},
    },
    "timm": {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": STATE,
        "optimizer": optimizer(),
        "version": 2,
        "args": ARGS,
        "state_dict_ema": OTHER,
        "metric": numpy.float64(71.5),
    },
    "Lightning": {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**under("model."), "criterion.weight": torch.ones(3)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "kth": {}}},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [],
        "hyper_parameters": {"optimizer": functools.partial(torch.optim.AdamW, lr=0.1), "net": "resnet"},
    },
    "Lightning, net": {"state_dict": under("net.")},
    "Lightning, network": {"state_dict": under("network.")},
    "Lightning, distillation": {"state_dict": {**under("student."), **under("teacher.", WIDER)}},
    "Lightning, compiled": {"state_dict": under("model._orig_mod.")},
    "mmengine": {
        "meta": {"seed": 1, "cfg": "model = dict()", "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": under("backbone."),
        "message_hub": collections.OrderedDict(scalars=SimpleNamespace(values=numpy.arange(3))),
    },
    "fastai": {"model": STATE, "opt": optimizer()},
    "ImageNet example": {
        "epoch": 90,
        "arch": "resnet18",
        "best_acc1": torch.tensor(69.7),
        "state_dict": under("module."),
    },
    "DeepSpeed": {"module": STATE, "global_steps": 3},
    "DDP": under("module."),
    "compile": under("_orig_mod."),
    "DDP of compile": under("module._orig_mod."),
    "compile of DDP": under("_orig_mod.module."),
    "compile of AveragedModel of DDP": {**under("_orig_mod.module.module."), "_orig_mod.n_averaged": torch.tensor(1)},
    "parts that are compiled": {
        name.replace("conv.", "conv._orig_mod.").replace("head.", "head.module."): tensor
        for name, tensor in STATE.items()
    },
    "AveragedModel": dict(AveragedModel(NET).state_dict()),
    "ema alone": {"ema": under("module."), "updates": 3},
    "model_ema alone": {"model_ema": STATE},
    "ema_state_dict alone": {"ema_state_dict": STATE, "epoch": 1},
    "teacher alone": {"teacher": STATE},
    "student and teacher": {"teacher": OTHER, "student": STATE},
    "ema first": {"ema": OTHER, "net": STATE},
    "params": {"params": STATE},
    "model_state_dict": {"epoch": 3, "model_state_dict": STATE, "loss": 0.1},
    "net": {"net": STATE, "acc": 95.0},
    "network": {"network": STATE},
    "weights": {"weights": STATE},
    "any key": {"my_resnet": STATE, "history": [1.0, 2.0]},
    "nested": {"checkpoint": {"model": {"state_dict": under("module.")}}},
    "profiled by thop": {**STATE, "total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)},
    "older PyTorch": {name: tensor for name, tensor in STATE.items() if "num_batches" not in name},
    "dictionaries of all kinds": {
        "model": collections.OrderedDict(STATE),
        "log": collections.defaultdict(list, {"loss": [1.0]}),
        "last": collections.deque([1, 2], maxlen=3),
        "count": collections.Counter("ab"),
        "set": {1, 2},
    },
    "parameters": {
        name: nn.Parameter(t, requires_grad=False) if t.is_floating_point() else t for name, t in STATE.items()
    },
}


def same(network, state=None, but=()):
    mine = network.state_dict()
    return all(torch.equal(mine[name], tensor) for name, tensor in (state or STATE).items() if name not in but)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_weights_of_every_training_script_load(tmp_path, form, legacy):
    file = tmp_path / "checkpoint.pth"
    torch.save(FORMS[form], file, _use_new_zipfile_serialization=not legacy)
    network = Net()
    load_weights(network, file)
    assert same(network, but=["norm.num_batches_tracked"] if form == "older PyTorch" else ())


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("plain", ""),
        ("fastai", "takes the weights under 'model'"),
        ("compile of DDP", ""),
        ("older PyTorch", ""),
        ("torchvision's references", "takes the weights under 'model', one of 2 state dicts that fit (also model_ema)"),
        ("Lightning, net", "takes the weights under 'state_dict', without the prefix 'net.'"),
        (
            "Lightning",
            "takes the weights under 'state_dict', without the prefix 'model.', "
            "1 other tensors ignored (criterion.weight)",
        ),
        ("nested", "takes the weights under 'checkpoint.model.state_dict'"),
    ],
)
def test_what_was_taken_is_said(tmp_path, form, expected):
    torch.save(FORMS[form], tmp_path / "checkpoint.pth")
    assert load_weights(Net(), tmp_path / "checkpoint.pth") == expected


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.", "model.net."])
def test_safetensors_may_have_prefixes_too(tmp_path, prefix):
    save_file(under(prefix), tmp_path / "model.safetensors", {"format": "pt"})
    network = Net()
    load_weights(network, tmp_path / "model.safetensors")
    assert same(network)


def test_a_network_whose_names_have_a_prefix_takes_a_file_without(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    network = Wrapped(Wrapped(Net()), "backbone")
    assert load_weights(network, tmp_path / "a.pt") == "takes the weights with the prefix 'backbone.model.' added"
    assert same(network.backbone.model)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, AveragedModel])
def test_a_wrapped_network_takes_a_plain_file(tmp_path, wrap):
    torch.save(STATE, tmp_path / "a.pt")
    network = wrap(Net())
    load_weights(network, tmp_path / "a.pt")
    assert same(next(module for module in network.modules() if isinstance(module, Net)))


def test_shards_of_hugging_face_are_read_together(tmp_path):
    names = list(STATE)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, held in parts.items():
        save_file({name: STATE[name] for name in held}, tmp_path / file, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {n: file for file, held in parts.items() for n in held}})
    )
    network = Net()
    load_weights(network, index)
    assert same(network)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "truncated or damaged"),
        ("[" * 100_000, "truncated or damaged"),
        ("{}", "truncated or damaged"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "allowed are names of files in its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "allowed are names of files in its folder"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "allowed are names of files in its folder"),
        ('{"weight_map": {"a": 3}}', "allowed are names of files in its folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "there is no file"),
    ],
)
def test_an_index_of_shards_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LimbeckError, match=message):
        load_weights(Net(), tmp_path / "model.safetensors.index.json")


def test_what_does_not_fit_is_listed_with_what_the_file_holds(tmp_path):
    content = {"epoch": 1, "state_dict": {**under("module."), "module.extra.weight": torch.ones(1)}, "opt": optimizer()}
    del content["state_dict"]["module.conv.bias"]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LimbeckError) as caught:
        load_weights(Net(), tmp_path / "a.pt")
    message = str(caught.value)
    assert "1 missing (conv.bias); 1 unexpected (extra.weight)" in message
    assert "its keys are epoch, state_dict, opt; it contains tensors such as state_dict.module.conv.weight" in message


def test_tensors_under_another_prefix_are_listed(tmp_path):
    content = {(f"classifier.{name}" if "head" in name else f"backbone.{name}"): STATE[name] for name in STATE}
    torch.save(content, tmp_path / "a.pt")
    listed = r"2 missing \(head\.weight, head\.bias\); 2 under other prefixes \(classifier\.head\.weight, "
    with pytest.raises(LimbeckError, match=listed):
        load_weights(Net(), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it contains a list"),
        ({}, "it is empty"),
        ({"a": 1, "b": {"c": "d"}}, "its keys are a, b; it contains no tensors"),
        ({str(n): n for n in range(9)}, "its keys are 0, 1, 2, 3, 4, 5 and 3 more"),
        (torch.ones(3), "it contains a Tensor"),
        (NET, r"it contains an object of .*\.Net, and loading that would run its code: save only the weights"),
        ({"model": NET, "epoch": 3}, r"'model' is an object of .*\.Net, and loading that would run its code"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LimbeckError, match=message):
        load_weights(Net(), tmp_path / "a.pt")


def test_a_layer_among_others_is_not_taken_for_a_network_of_one_layer(tmp_path):
    torch.save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(LimbeckError, match="does not fit the network"):
        load_weights(nn.Linear(4, 3), tmp_path / "a.pt")


def test_a_network_that_keeps_its_weights_if_the_file_does_not_fit(tmp_path):
    torch.save({"model": WIDER}, tmp_path / "a.pt")
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(LimbeckError, match="9 of another shape"):
        load_weights(network, tmp_path / "a.pt")
    assert same(network, before)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda t: t.to_sparse(), "sparse or nested"),
        (lambda t: t.to("meta"), "without values"),
        (lambda t: t.to(torch.complex64), "as torch.complex64 instead of torch.float32"),
        (lambda t: t.to(torch.int8), "as torch.int8 instead of torch.float32"),
    ],
)
def test_numbers_of_another_kind_are_refused(tmp_path, tensor, message):
    torch.save({**STATE, "head.weight": tensor(STATE["head.weight"])}, tmp_path / "a.pt")
    with pytest.raises(LimbeckError, match=rf"has the weights head\.weight {message}"):
        load_weights(Net(), tmp_path / "a.pt")


@pytest.mark.parametrize("form", ["torchvision's references", "timm", "Lightning", "AveragedModel", "older PyTorch"])
def test_all_but_the_classifier_loads_from_every_form(tmp_path, form):
    torch.save(FORMS[form], tmp_path / "a.pt")
    network = Net(classes=7)
    load_all_but_classifier(network, tmp_path / "a.pt", "head")
    assert torch.equal(network.conv.weight, NET.conv.weight)
    assert torch.equal(network.norm.running_mean, NET.norm.running_mean)
    assert network.head.weight.shape == (7, 4)


def test_what_is_looked_at_is_bounded():
    content = {}
    content["again"] = content
    for _ in range(2000):
        content = {"deeper": content}
    assert find_state(content, STATE) is None


def test_counts_that_a_file_lacks_are_the_networks_own():
    found = find_state(FORMS["older PyTorch"], STATE)
    assert found.fits
    assert found.state["norm.num_batches_tracked"] == 7
