import pytest
import torch

from limbeck.connectors import Through, conv1x1, linear
from limbeck.core import LimbeckError


def test_linear_maps_vectors():
    assert linear((6,), (9,))(torch.zeros(2, 6)).shape == (2, 9)


def test_conv1x1_maps_channels_and_keeps_the_size():
    assert conv1x1((6, 4, 5), (9, 4, 5))(torch.zeros(2, 6, 4, 5)).shape == (2, 9, 4, 5)


def test_through_applies_the_connector_to_the_student_alone():
    connector = linear((3,), (2,))
    student, teacher = torch.randn(4, 3), torch.randn(4, 2)
    loss = Through(connector, lambda s, t: (s - t).square().sum())
    assert torch.equal(loss(student, teacher), (connector(student) - teacher).square().sum())
    assert [name for name, _ in loss.named_parameters()] == ["connector.weight", "connector.bias"]


@pytest.mark.parametrize(
    ("make", "source", "target"),
    [(linear, (3, 4, 4), (2,)), (conv1x1, (3, 4, 4), (2, 8, 8)), (conv1x1, (3,), (2, 8, 8))],
)
def test_shapes_that_do_not_fit_are_refused(make, source, target):
    with pytest.raises(LimbeckError, match="connector maps"):
        make(source, target)
