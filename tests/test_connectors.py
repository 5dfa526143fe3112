import pytest
import torch
from torch import nn

from limbeck.connectors import Maxout, Through, linear, valid_conv
from limbeck.core import LimbeckError


def test_linear_maps_vectors():
    assert linear((6,), (9,))(torch.zeros(2, 6)).shape == (2, 9)


def test_through_applies_the_connector_to_the_student_alone():
    connector = linear((3,), (2,))
    student, teacher = torch.randn(4, 3), torch.randn(4, 2)
    loss = Through(connector, lambda s, t: (s - t).square().sum())
    assert torch.equal(loss(student, teacher), (connector(student) - teacher).square().sum())
    assert [name for name, _ in loss.named_parameters()] == ["connector.weight", "connector.bias"]


def test_through_owns_the_parameters_of_a_loss_that_has_some():
    loss = Through(linear((3,), (2,)), nn.BatchNorm1d(2))
    assert {name.partition(".")[0] for name, _ in loss.named_parameters()} == {"connector", "loss"}


def test_maxout_keeps_the_largest_of_each_run_of_channels():
    inputs = torch.tensor([[1.0, 5.0, -2.0, -3.0, 0.0, 0.0]])
    assert Maxout(2)(inputs).tolist() == [[5.0, -2.0, 0.0]]
    assert Maxout(3)(inputs).tolist() == [[5.0, 0.0]]
    assert torch.equal(Maxout(1)(inputs), inputs)


def test_maxout_of_maps_is_by_place():
    inputs = torch.randn(2, 6, 3, 4)
    wanted = torch.stack([torch.maximum(inputs[:, 2 * unit], inputs[:, 2 * unit + 1]) for unit in range(3)], dim=1)
    assert torch.equal(Maxout(2)(inputs), wanted)


def test_maxout_gives_the_gradient_to_the_largest():
    inputs = torch.tensor([[1.0, 5.0, -2.0, -3.0]], requires_grad=True)
    Maxout(2)(inputs).sum().backward()
    assert inputs.grad.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("source", "target", "kernel"),
    [((3, 8, 8), (5, 7, 7), (2, 2)), ((3, 4, 4), (5, 4, 4), (1, 1)), ((3, 9, 4), (5, 3, 1), (7, 4))],
)
def test_a_convolution_without_padding_meets_the_size(source, target, kernel):
    made = valid_conv(source, target, pieces=2)
    assert made.kernel_size == kernel
    assert made.padding == (0, 0)
    assert made(torch.zeros(2, *source)).shape == (2, 2 * target[0], *target[1:])
    assert made.weight.shape == (2 * target[0], source[0], *kernel)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(LimbeckError, match="connector maps"):
        linear((3, 4, 4), (2,))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ((3, 4, 4), (5, 5, 4), "cannot map 4x4 to the larger size 5x4"),
        ((3, 4, 4), (5, 4, 5), "cannot map 4x4 to the larger size 4x5"),
        ((3,), (5, 1, 1), r"maps \(C, H, W\) to \(C, H, W\), got \(3,\)"),
        ((3, 4, 4), (5,), r"got \(3, 4, 4\) -> \(5,\)"),
    ],
)
def test_a_convolution_that_cannot_be_is_refused(source, target, message):
    with pytest.raises(LimbeckError, match=message):
        valid_conv(source, target)
