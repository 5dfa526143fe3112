"""Networks whose output is no tensor: what of it is read."""

import copy
import pickle
from collections import OrderedDict, namedtuple
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Tap, from_teacher
from limbeck.models import Ensemble
from limbeck.models.outputs import find, install
from limbeck.taps import Taps
from limbeck.train.compile import traced
from limbeck.train.copies import copy_of
from limbeck.train.fuse import fuse

CLASSES = 3
Pair = namedtuple("Pair", "features logits")
Heads = namedtuple("Heads", "logits aux")


@dataclass
class Output:
    loss: float
    logits: Tensor


class Model(nn.Module):
    """A network that gives whatever is made of its logits."""

    def __init__(self, make, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head, self.make = nn.Linear(width, CLASSES), make

    def forward(self, inputs):
        features = self.body(inputs)
        return self.make(features, self.head(features))


class Auxiliary(nn.Module):
    """As GoogLeNet: in train mode it gives another head's logits too."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(6, 4), nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, inputs):
        features = self.body(inputs)
        return Heads(self.head(features), self.aux(features)) if self.training else self.head(features)


def batch(count=2):
    index = torch.arange(count)
    return Batch(torch.randn(count, 6), index % CLASSES, index, 0)


def logits(network, inputs):
    with torch.no_grad():
        return network.eval().head(network.body(inputs))


@contextmanager
def installed(name, network, given, **options):
    handles, notes = install(name, network, given, CLASSES, **options)
    yield notes
    for handle in handles:
        handle.remove()


KINDS = {
    "tuple": (lambda features, rows: (features, rows), "'1'"),
    "list": (lambda features, rows: [rows, features], "'0'"),
    "dict": (lambda features, rows: {"features": rows * 2, "out": rows}, "'out'"),
    "OrderedDict": (lambda features, rows: OrderedDict(loss=None, logits=rows), "'logits'"),
    "Pair": (lambda features, rows: Pair(rows * 2, rows), "'logits'"),
    "Output": (lambda features, rows: Output(0.0, rows), "'logits'"),
    "inside": (lambda features, rows: (features, {"logits": rows}), "'1.logits'"),
}


@pytest.mark.parametrize(("make", "place"), KINDS.values(), ids=KINDS)
def test_the_logits_of_an_output_are_found_and_told(make, place):
    network, given = Model(make), batch()
    with installed("student", network, given) as notes:
        network.eval()
        assert torch.equal(network(given.inputs), logits(network, given.inputs))
        assert network.train()(given.inputs).shape == (2, CLASSES)
    assert [note.startswith("the student returns a ") and f"its {place} is used" in note for note in notes[:1]] == [
        True
    ]
    assert not isinstance(network(given.inputs), Tensor)


@pytest.mark.parametrize("output", ["1", "logits", "head"])
def test_a_place_a_key_or_a_layer_names_the_logits(output):
    network, given = Model(lambda features, rows: Pair(rows * 2, rows)).eval(), batch()
    expected = logits(network, given.inputs)
    with installed("teacher", network, given, output=output):
        assert torch.equal(network(given.inputs), expected)
        assert torch.equal(network(given.inputs), expected)


def test_a_layer_that_a_method_names_counts_where_the_output_has_no_logits():
    network, given = Model(lambda features, rows: (features,)).eval(), batch()
    with pytest.raises(LimbeckError, match=r"the teacher returns a tuple of 0 \(2, 4\): none is logits of 3 classes"):
        install("teacher", network, given, CLASSES)
    with installed("teacher", network, given, layer="head") as notes:
        assert torch.equal(network(given.inputs), logits(network, given.inputs))
        assert notes == ["the teacher's logits are the output of its layer head"]
    with pytest.raises(LimbeckError, match="the teacher has no layer 'haed': did you mean head"):
        install("teacher", network, given, CLASSES, layer="haed")


def test_a_network_that_gives_a_tensor_has_no_hook():
    network = Model(lambda features, rows: rows)
    with installed("student", network, batch()) as notes:
        assert notes == []
        assert not any(module._forward_hooks for module in network.modules())


def test_auxiliary_heads_of_train_mode_are_dropped_and_it_is_told():
    network, given = Auxiliary(), batch()
    with installed("student", network, given) as notes:
        F.cross_entropy(network.train()(given.inputs), given.targets).backward()
        assert network.head.weight.grad is not None
        assert network.aux.weight.grad is None
        assert network.eval()(given.inputs).shape == (2, CLASSES)
    assert "auxiliary outputs of the student are not trained" in notes
    assert "in training mode" in notes[0]
    assert install("teacher", network, given, CLASSES)[1] == []


def test_the_logarithm_of_probabilities_is_read_and_is_finite():
    network, given = Model(lambda features, rows: torch.softmax(rows * 200, dim=1)), batch()
    with installed("teacher", network, given, output="probabilities") as notes:
        found = network(given.inputs)
        assert torch.isfinite(found).all()
        assert torch.allclose(found.exp().sum(dim=1), torch.ones(2))
    assert notes == ["the teacher returns probabilities: their logarithm is used"]


def test_logits_are_not_taken_for_probabilities():
    network = Model(lambda features, rows: rows * 10 - 5)
    with pytest.raises(LimbeckError, match="output is 'probabilities', but the teacher returns values from -"):
        install("teacher", network, batch(), CLASSES, output="probabilities")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("logit", "has no output 'logit': its output has features, logits"),
        ("2", "output is '2', but the teacher returns a Pair: allowed are features, logits"),
        ("1.0", "output is '1.0', but the teacher returns a Tensor: it has no parts"),
    ],
)
def test_an_output_that_is_not_there_is_refused_with_what_is(output, message):
    with pytest.raises(LimbeckError, match=message):
        install("teacher", Model(Pair), batch(), CLASSES, output=output)


def test_naming_a_part_of_one_tensor_is_refused():
    with pytest.raises(LimbeckError, match="the teacher has no output 'logits': it returns one tensor"):
        install("teacher", Model(lambda features, rows: rows), batch(), CLASSES, output="logits")


def test_installing_leaves_buffers_modes_and_generators_as_they_were():
    network = Model(Pair)
    network.body.eval()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    install("student", network, replaced := batch(), CLASSES)
    assert replaced is not None
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert (network.training, network.body.training) == (True, False)
    torch.manual_seed(3)
    assert torch.equal(generator, torch.get_rng_state())


def make_pair(features, rows):
    return Pair(features, rows)


def test_a_copy_and_a_pickled_copy_give_their_own_logits():
    network, given = Model(make_pair).eval(), batch()
    install("student", network, given, CLASSES, output="head")
    made = copy.deepcopy(network)
    with torch.no_grad():
        made.head.weight.zero_()
        made.head.bias.zero_()
    assert made(given.inputs).abs().sum() == 0
    assert network(given.inputs).abs().sum() > 0
    hooks = pickle.loads(pickle.dumps(list(network._forward_hooks.values())))
    assert hooks == list(network._forward_hooks.values())


def test_the_members_of_an_ensemble_are_each_seen_to():
    members = [Model(Pair), Model(lambda features, rows: rows)]
    network, given = Ensemble(members, "geometric").eval(), batch()
    expected = (logits(members[0], given.inputs) + logits(members[1], given.inputs)) / 2
    _, notes = install("teacher", network, given, CLASSES)
    assert torch.allclose(network(given.inputs), expected)
    assert notes == ["the teacher's member 0 returns a Pair: its 'logits' is used"]


def test_a_member_that_is_refused_leaves_no_hook_on_the_others():
    members = [Model(Pair), Model(lambda features, rows: (features,))]
    with pytest.raises(LimbeckError, match="the teacher's member 1 returns a tuple"):
        install("teacher", Ensemble(members, "geometric"), batch(), CLASSES)
    assert not members[0]._forward_hooks


def test_taps_the_fused_copy_and_the_tracer_read_the_logits():
    network, given = Model(make_pair).eval(), batch()
    install("teacher", network, given, CLASSES)
    expected, taps = logits(network, given.inputs), (from_teacher(), from_teacher("body"))
    with torch.no_grad(), Taps({"teacher": network}, taps) as tapped:
        assert torch.equal(tapped.read(given)[Tap("teacher")], expected)
    fused, reason = fuse(network, given.inputs, taps, precision="32", channels_last=False)
    assert (type(fused.get_submodule("body.1")), reason) == (nn.Identity, "")
    assert torch.allclose(fused(given.inputs), expected, atol=1e-6)
    first, _ = traced(network, given.inputs, taps).module()(given.inputs)
    assert torch.allclose(first, expected, atol=1e-6)
    assert torch.equal(copy_of(network, given.inputs)(given.inputs), expected)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_with_several_outputs_is_refused_with_a_wrapper():
    network = torch.jit.trace(Model(lambda features, rows: (features, rows)), torch.randn(2, 6))
    with pytest.raises(
        LimbeckError, match=r"TorchScript, which does not support the hooks that select logits: wrap it in a module"
    ):
        install("teacher", network, batch(), CLASSES)


def test_a_part_whose_name_says_output_but_whose_width_is_another_is_not_taken_for_the_logits():
    output = {"output": torch.zeros(2, 7), "scores": torch.zeros(2, 3)}
    assert find("student", output, 3) == ("scores",)
    assert find("student", output, 7) == ("output",)
    assert find("student", {"features": torch.zeros(2, 3), "logits": torch.zeros(2, 3)}, 3) == ("logits",)
