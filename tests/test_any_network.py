"""Networks of every form through the whole of `limbeck.distill`: they work, or are refused before any training."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from limbeck.api import distill
from limbeck.core import LimbeckError
from limbeck.data import arrays

QUICK = {"epochs": 1, "device": "cpu", "precision": "32", "compile": False, "cache": False}

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what is old in it


@pytest.fixture(scope="module")
def data():
    inputs = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    return arrays(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())


def mlp(*norm):
    return nn.Sequential(nn.Linear(6, 8), *norm, nn.ReLU(), nn.Linear(8, 3))


def pruned():
    network = mlp()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


def weight_normed():
    network = mlp()
    with warnings.catch_warnings(action="ignore"):
        nn.utils.weight_norm(network[0])
    return network


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.feature = mlp(), None
        self(torch.randn(2, 6))

    def forward(self, inputs):
        self.feature = self.network[:2](inputs)
        return self.network[2](self.feature)


class Serving(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = mlp()

    @torch.inference_mode()
    def forward(self, inputs):
        return self.network(inputs)


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))


class Wrapped(nn.Module):
    def __init__(self, wrap, network=None):
        super().__init__()
        self.network, self.wrap = network or mlp(), wrap

    def forward(self, inputs):
        return self.wrap(self.network(inputs))


def scripted():
    return torch.jit.script(mlp())


def traced():
    return torch.jit.trace(mlp(), torch.randn(4, 6))


def exported():
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(mlp(), (torch.randn(3, 6),), dynamic_shapes=dynamic).module()


def loaded():
    with torch.inference_mode():
        return mlp()


def tuples():
    return Wrapped(lambda logits: (logits, logits))


def dicts():
    return Wrapped(lambda logits: {"logits": logits})


def quantised():
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})


@pytest.mark.parametrize(
    "make", [pruned, weight_normed, Kept, scripted, traced, exported, Serving, loaded, tuples, dicts]
)
def test_a_teacher_of_any_form_teaches_and_stays_as_it_was(data, make):
    teacher = make()
    hooks = list(teacher._forward_hooks)
    before = {name: value.clone() for name, value in teacher.state_dict().items() if isinstance(value, torch.Tensor)}
    _, result = distill(teacher, mlp(), data, baseline=False, **QUICK)
    assert result.student.test.agreement > 0
    after = teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert list(teacher._forward_hooks) == hooks


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("make", [pruned, weight_normed, Kept, scripted, traced, tuples, dicts])
def test_a_student_of_any_form_learns(data, make, baseline):
    student = make()
    before = [parameter.detach().clone() for parameter in student.parameters()]
    trained, _ = distill(mlp(), student, data, baseline=baseline, **QUICK)
    assert trained is student
    assert all(not torch.equal(one, other) for one, other in zip(before, student.parameters(), strict=True))
    assert not student._forward_hooks


def test_a_pruned_student_keeps_its_zeros(data):
    student = pruned()
    zeros = student[0].weight == 0
    distill(mlp(), student, data, **QUICK)
    student(torch.randn(2, 6))
    assert torch.equal(student[0].weight == 0, zeros)


def test_a_compiled_student_is_trained_itself(data):
    network = mlp()
    before = network[0].weight.clone()
    student = torch.compile(network)
    trained, result = distill(torch.compile(mlp()), student, data, **QUICK)
    assert trained is student
    assert not torch.equal(before, network[0].weight)
    assert sum("compiled by torch.compile" in note for note in result.notes) == 2


@pytest.mark.parametrize("make", [exported, loaded, Serving, quantised])
def test_a_student_that_cannot_learn_is_refused_before_any_training(data, make):
    told = []
    with pytest.raises(LimbeckError, match="the student"):
        distill(mlp(), make(), data, on_epoch=lambda *epoch: told.append(epoch), **QUICK)
    assert told == []


@pytest.mark.parametrize("method", ["mimic", {"name": "kd", "teacher_layer": "0"}])
@pytest.mark.parametrize("make", [scripted, traced, exported])
def test_layers_inside_torchscript_are_refused_before_any_training(data, make, method):
    told = []
    with pytest.raises(LimbeckError, match=r"teacher"):
        distill(make(), mlp(), data, method=method, on_epoch=lambda *epoch: told.append(epoch), **QUICK)
    assert told == []


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_layer_that_the_method_names_is_what_is_trained_and_measured(data, name):
    networks = {"student": mlp(), "teacher": mlp()}
    networks[name] = Wrapped(lambda logits: ("nothing", logits[:, :2]))
    with pytest.raises(LimbeckError, match=f"the {name} returns a tuple of"):
        distill(*(networks[one] for one in ("teacher", "student")), data, **QUICK)
    method = {"name": "kd", f"{name}_layer": "network"}
    _, result = distill(networks["teacher"], networks["student"], data, method=method, **QUICK)
    assert f"the {name}'s logits are the output of its layer network" in result.notes


def test_a_teacher_that_ends_in_softmax_teaches_as_its_logits_do(data):
    teacher, student = mlp(), mlp()
    inside = Wrapped(lambda logits: logits.softmax(1), teacher)
    same = mlp()
    same.load_state_dict(student.state_dict())
    distill(teacher, student, data, baseline=False, **QUICK)
    _, result = distill(inside, same, data, baseline=False, teacher_output="probabilities", **QUICK)
    assert all(
        torch.allclose(one, other, atol=1e-4)
        for one, other in zip(student.parameters(), same.parameters(), strict=True)
    )
    assert "the teacher returns probabilities: their logarithm is used" in result.notes


def test_a_network_whose_sizes_are_not_known_yet_is_trained(data):
    student = Lazy()
    _, result = distill(mlp(), student, data, **QUICK)
    assert result.student.parameters == result.alone.parameters == 6 * 8 + 8 + 8 * 3 + 3
