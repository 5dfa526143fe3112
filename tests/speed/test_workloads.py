import copy

import pytest
import torch

from benchmarks.speed.workloads import DIGITS, WORKLOADS, prepare, set_norms, upto
from limbeck.data import Augment, normalise
from limbeck.models import build


def test_the_workloads_are_those_that_were_agreed():
    assert list(WORKLOADS) == ["kd", "hint", "srrl", "at", "mnist_mlp"]
    for name, workload in WORKLOADS.items():
        assert workload.name == name
        if name != "mnist_mlp":
            assert (workload.teacher, workload.student) == ({"name": "resnet32x4"}, {"name": "resnet8x4"})
            assert (workload.shape, workload.classes, workload.batch_size) == ((3, 32, 32), 100, 64)
            assert workload.augment == Augment(crop=4, flip=True)
    mnist = WORKLOADS["mnist_mlp"]
    assert mnist.teacher["hidden"] == [1200, 1200]
    assert mnist.student["hidden"] == [800, 800]
    assert (mnist.shape, mnist.batch_size, mnist.augment) == ((1, 28, 28), 512, Augment())


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_case_is_what_the_workload_says(tiny, name):
    workload = tiny(name)
    case = prepare(workload)
    assert case.images.shape == (8, *workload.shape)
    assert case.images.dtype == torch.uint8
    assert torch.equal(case.images, case.data.train.inputs)
    assert len(case.data.classes) == workload.classes
    inputs = normalise(case.images, case.data.mean, case.data.std)
    assert case.teacher(inputs).shape == case.student(inputs).shape == (8, workload.classes)


def test_the_layers_that_a_loop_reads_are_there(tiny_case):
    for name in WORKLOADS:
        case = tiny_case(name)
        for layer in (*case.workload.layers, case.workload.ends):
            assert case.teacher.get_submodule(layer) is not None
            assert case.student.get_submodule(layer) is not None


def test_the_same_seed_gives_the_same_case_and_leaves_the_generator(tiny):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = prepare(tiny("kd")), prepare(tiny("kd")), prepare(tiny("kd"), seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.teacher.head.weight, same.teacher.head.weight)
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.student.head.weight, other.student.head.weight)


def test_every_variant_gets_networks_of_its_own(tiny_case):
    case = tiny_case("kd")
    first, second = case.networks(), case.networks()
    first["student"].head.weight.data.zero_()
    assert second["student"].head.weight.any()
    assert case.student.head.weight.any()
    assert first["teacher"] is not case.teacher


def test_a_network_with_its_inputs_statistics_gives_the_same_in_eval_mode_as_in_training():
    network = build("resnet8", classes=3, shape=(3, 8, 8))
    inputs = torch.randn(16, 3, 8, 8) * 3 + 1
    with torch.no_grad():
        expected = copy.deepcopy(network).train()(inputs)
        set_norms(network, inputs)
        assert not network.training
        torch.testing.assert_close(network(inputs), expected, rtol=0.1, atol=0.05)  # the variances are unbiased ones


def test_a_network_is_cut_after_a_child():
    network = build("resnet8", classes=3, shape=(3, 8, 8)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    part = upto(network, "stage2")
    assert [name for name, _ in part.named_children()] == ["stem", "stage1", "stage2"]
    assert torch.equal(part(inputs), network.stage2(network.stage1(network.stem(inputs))))
    assert upto(network, "") is network


def test_the_workload_of_the_overhead_is_next_to_no_work():
    case = prepare(DIGITS)
    assert case.workload.shape == (1, 8, 8)
    assert case.workload.batch_size == 32
    assert sum(parameter.numel() for parameter in case.student.parameters()) < 5_000
