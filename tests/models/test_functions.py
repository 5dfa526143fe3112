"""Functions, TorchScript and modules of torch.export as teachers of which only the output can be read."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.cache.fingerprint import structure_digest
from limbeck.core import LimbeckError, Tap
from limbeck.models.functions import FunctionNetwork, GraphNetwork, as_network, calls_function
from limbeck.outline import outline
from limbeck.taps import check, closed_kind
from limbeck.train.freeze import check_learns

INPUTS = torch.randn(4, 6)


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


def exported(module):
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(module, (INPUTS[:3],), dynamic_shapes=dynamic).module()


def test_a_function_is_called_without_gradients_and_gives_what_it_returns():
    weight = torch.randn(6, 3, requires_grad=True)
    logits = FunctionNetwork(lambda inputs: inputs @ weight)(INPUTS)
    assert torch.equal(logits, (INPUTS @ weight).detach())
    assert not logits.requires_grad


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_arrays_get_the_dtype_of_the_inputs_in_any_structure(dtype):
    logits = np.arange(12).reshape(4, 3).astype(dtype)
    given = FunctionNetwork(lambda inputs: {"all": [logits, "text"]})(INPUTS)
    assert given["all"][1] == "text"
    assert given["all"][0].dtype == torch.float32
    assert torch.equal(given["all"][0], torch.arange(12.0).view(4, 3))


def test_a_copy_calls_the_same_function():
    class Service:
        def __init__(self):
            self.lock, self.calls = threading.Lock(), 0  # a lock cannot be copied

        def __call__(self, inputs):
            self.calls += 1
            return inputs

    service = Service()
    copy.deepcopy(as_network(service))(INPUTS)
    assert service.calls == 1


def test_functions_are_told_apart_by_name_and_by_identity():
    def one(inputs):
        return inputs

    def other(inputs):
        return inputs

    def digest(function, identity=""):
        return structure_digest(as_network(function, identity=identity))

    assert digest(one) == digest(one) != digest(other)
    assert digest(one, "a") != digest(one, "b")


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript
@pytest.mark.parametrize(
    ("make", "kind"),
    [(torch.jit.script, "TorchScript"), (exported, "a module of torch.export")],
    ids=["script", "exported"],
)
def test_a_module_that_runs_a_graph_gets_a_module_around_it(make, kind):
    given = network()
    wrapped = as_network(make(given))
    assert isinstance(wrapped, GraphNetwork)
    assert closed_kind(wrapped) == kind
    assert torch.allclose(wrapped(INPUTS), given(INPUTS))
    wrapped.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    wrapped.register_forward_hook(lambda module, args, output: output[:, [2, 0, 1]])
    assert torch.allclose(copy.deepcopy(wrapped)(INPUTS), given(INPUTS * 2)[:, [2, 0, 1]])


def test_other_modules_stay_as_they_are():
    for given in (network(), torch.fx.symbolic_trace(network())):
        assert as_network(given) is given
        assert not calls_function(given)


@pytest.mark.parametrize("tap", [Tap("teacher", "", "input"), Tap("teacher", "fc"), Tap("teacher", "1.fc")])
def test_a_layer_of_a_function_cannot_be_read(tap):
    given = as_network(lambda inputs: inputs)
    given = nn.Sequential(nn.Identity(), given) if tap.layer.startswith("1") else given
    with pytest.raises(LimbeckError, match="is a function, which only exposes its output: use the original module, or"):
        check({"teacher": given}, tap)


def test_the_output_of_a_function_can_be_read_also_as_a_member():
    check({"teacher": as_network(torch.neg)}, Tap("teacher"))
    check({"teacher": nn.ModuleList([as_network(torch.neg)])}, Tap("teacher", "0"))


def test_a_method_that_reads_layers_says_why_it_cannot():
    with pytest.raises(LimbeckError, match="reads layers of the teacher, which is a function, so only its output can"):
        outline("teacher", as_network(torch.neg), None)


def test_a_function_cannot_learn():
    with pytest.raises(LimbeckError, match="the teacher is a function, which cannot learn: use a method that does not"):
        check_learns("teacher", as_network(torch.neg))
