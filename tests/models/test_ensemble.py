import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.models import Ensemble


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, inputs):
        return self.logits


def members(*shape, number=3, scale=1.0):
    return [Fixed(torch.randn(*shape, dtype=torch.float64) * scale) for _ in range(number)]


def test_arithmetic_mean_is_that_of_the_probabilities():
    networks = members(4, 5)
    expected = sum(network.logits.softmax(1) for network in networks) / 3
    torch.testing.assert_close(Ensemble(networks, "arithmetic")(torch.zeros(4)).softmax(1), expected)


def test_arithmetic_output_is_the_logarithm_of_the_mean_itself():
    output = Ensemble(members(4, 5), "arithmetic")(torch.zeros(4))
    torch.testing.assert_close(output.exp().sum(1), torch.ones(4, dtype=torch.float64))


def test_geometric_mean_is_the_normalised_product():
    networks = members(4, 5)
    product = torch.stack([network.logits.softmax(1) for network in networks]).prod(0) ** (1 / 3)
    expected = product / product.sum(1, keepdim=True)
    torch.testing.assert_close(Ensemble(networks, "geometric")(torch.zeros(4)).softmax(1), expected)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_huge_logits_stay_finite(mean):
    output = Ensemble(members(4, 5, scale=1e5), mean)(torch.zeros(4))
    assert output.isfinite().all()


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_one_member_is_its_own_mean(mean):
    (network,) = members(4, 5, number=1)
    torch.testing.assert_close(Ensemble([network], mean)(torch.zeros(4)).softmax(1), network.logits.softmax(1))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_order_of_members_does_not_matter(mean):
    networks = members(4, 5)
    forward = Ensemble(networks, mean)(torch.zeros(4))
    torch.testing.assert_close(Ensemble(networks[::-1], mean)(torch.zeros(4)), forward)


def test_members_can_be_tapped_by_name():
    ensemble = Ensemble([nn.Linear(3, 2), nn.Linear(3, 2)], "geometric")
    assert ensemble.mean == "geometric"
    assert [name for name, _ in ensemble.named_modules() if name] == ["members", "members.0", "members.1"]


def test_refuses_to_be_empty():
    with pytest.raises(LimbeckError, match="at least one"):
        Ensemble([], "geometric")


def test_refuses_an_unknown_mean():
    with pytest.raises(LimbeckError, match="got mean 'harmonic', allowed are arithmetic and geometric"):
        Ensemble(members(4, 5), "harmonic")


def test_refuses_members_of_different_classes():
    with pytest.raises(LimbeckError, match=r"member 0 \(4, 5\), member 1 \(4, 6\)"):
        Ensemble([*members(4, 5, number=1), *members(4, 6, number=1)], "arithmetic")(torch.zeros(4))
