import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.models.mlp import MaxNormLinear, mlp


def test_children_are_the_layers_in_order():
    network = mlp(classes=4, shape=(2, 3), hidden=(5, 6), input_dropout=0.2)
    assert [name for name, _ in network.named_children()] == ["flatten", "input_dropout", "stage1", "stage2", "head"]
    assert [name for name, _ in network.stage1.named_children()] == ["linear", "relu", "dropout"]


def test_computes_affine_maps_with_relu_between():
    network = mlp(classes=4, shape=(2, 3), hidden=(5,))
    inputs = torch.randn(7, 2, 3)
    linear, head = network.stage1.linear, network.head
    hidden = (inputs.reshape(7, 6) @ linear.weight.T + linear.bias).clamp(min=0)
    torch.testing.assert_close(network(inputs), hidden @ head.weight.T + head.bias)


def test_drops_out_only_in_training():
    network = mlp(classes=4, shape=(64,), hidden=(64,), dropout=0.5, input_dropout=0.2)
    inputs = torch.ones(50, 64)
    dropped = {}
    for name in ("input_dropout", "stage1.dropout"):
        network.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: dropped.update({name: (x[0], y)}))
    network(inputs)
    for name, rate in (("input_dropout", 0.2), ("stage1.dropout", 0.5)):
        before, after = dropped[name]
        assert (after[before > 0] == 0).float().mean().item() == pytest.approx(rate, abs=0.05)
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


def test_max_norm_holds_for_every_hidden_unit_and_leaves_short_vectors_alone():
    layer = MaxNormLinear(2, 3, max_norm=1.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]]))
        layer.bias.fill_(9.0)
    layer(torch.zeros(1, 2))
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, -1.0]]))
    assert (layer.bias == 9).all()


def test_max_norm_changes_nothing_in_evaluation():
    layer = MaxNormLinear(2, 2, max_norm=0.01).eval()
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 2))
    assert torch.equal(layer.weight, before)


def test_max_norm_network_trains_within_its_bound():
    network = mlp(classes=3, shape=(8,), hidden=(5, 4), max_norm=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    inputs = torch.randn(16, 8)
    for _ in range(5):
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()
    network(inputs)
    for layer in (network.stage1.linear, network.stage2.linear):
        assert layer.weight.norm(dim=1).max() <= 0.5 + 1e-6
    assert type(network.head) is nn.Linear


def test_max_norm_is_shown():
    assert "max_norm=0.5" in repr(mlp(classes=3, shape=(8,), hidden=(5,), max_norm=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (5, 0)}, r"got hidden \(5, 0\), allowed are widths of 1 and more"),
        ({"hidden": (5,), "max_norm": 0.0}, "got max_norm 0.0, allowed are numbers above 0"),
        ({"hidden": (5,), "dropout": 1.0}, "got dropout 1.0"),
        ({"hidden": (5,), "input_dropout": -0.1}, "got input_dropout -0.1"),
    ],
)
def test_refuses_values_out_of_range(options, message):
    with pytest.raises(LimbeckError, match=message):
        mlp(classes=3, shape=(8,), **options)
