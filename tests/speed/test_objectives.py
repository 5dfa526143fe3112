"""The plain loop's losses are limbeck's: what is compared does the same work."""

import copy

import pytest
import torch

from benchmarks.speed.limbeck_loop import first_stage, training_of
from benchmarks.speed.objectives import Hooked, objective
from benchmarks.speed.workloads import WORKLOADS
from limbeck.core import Batch
from limbeck.data import normalise
from limbeck.taps import Taps


def both(case):
    """The plain objective's value and its gradients, and those of limbeck's stage, on one batch."""
    networks = case.networks()
    student, teacher = networks["student"].eval(), networks["teacher"].eval()
    (stage,) = first_stage(case, networks, training_of(case))
    for module in (student, teacher, *(term.loss for term in stage.terms.values())):
        if isinstance(module, torch.nn.Module):
            module.double()  # in 32 bits the plain loss is not right to five digits at T = 20
    inputs = normalise(case.images, case.data.mean, case.data.std).double()
    targets = case.data.train.targets
    layers = case.workload.layers

    plain_student = copy.deepcopy(student)
    hooked_student, hooked_teacher = Hooked(plain_student, layers), Hooked(copy.deepcopy(teacher), layers)
    with torch.no_grad():
        taught = hooked_teacher(inputs)
    head = copy.deepcopy(teacher.head)
    criterion, connector = objective(case.workload.method, layers, hooked_student(inputs), taught, head)
    connector.double()
    own = [term.loss for term in stage.terms.values() if hasattr(term.loss, "connector")]
    for loss in own:  # random connectors: limbeck's weights for both
        connector.load_state_dict(dict(zip(connector.state_dict(), loss.connector.state_dict().values(), strict=True)))
    value = criterion(hooked_student(inputs), taught, targets)
    value.backward()

    reads = {tap for term in stage.terms.values() for tap in term.reads}
    total = 0.0
    with Taps(networks, reads, learns=["student"]) as taps:
        seen = taps.read(Batch(inputs, targets, torch.arange(len(targets)), 0))
        for term in stage.terms.values():
            total = total + term.weight * term.loss(*(seen[tap] for tap in term.reads))
    total.backward()
    return value, total, plain_student, student


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_plain_loss_is_that_of_limbeck(tiny_case, name):
    plain, own, plain_student, student = both(tiny_case(name))
    torch.testing.assert_close(plain, own, rtol=1e-5, atol=1e-6)
    compared = 0
    for one, other in zip(plain_student.parameters(), student.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            compared += int(one.grad.any())
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert compared


def test_a_hooked_network_gives_its_layers_and_logits(tiny_case):
    network = tiny_case("at").student.eval()
    inputs = torch.randn(2, 3, 8, 8)
    seen = Hooked(network, ("stage1", "stage3"))(inputs)
    assert set(seen) == {"stage1", "stage3", ""}
    assert torch.equal(seen["stage1"], network.stage1(network.stem(inputs)))
    assert torch.equal(seen[""], network(inputs))


def test_what_was_seen_before_stays(tiny_case):
    hooked = Hooked(tiny_case("at").student.eval(), ("stage1",))
    first = hooked(torch.zeros(1, 3, 8, 8))
    kept = first["stage1"].clone()
    hooked(torch.ones(1, 3, 8, 8))
    assert torch.equal(first["stage1"], kept)
