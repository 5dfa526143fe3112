import pytest
import torch
import torch.nn.functional as F

from limbeck.models.binary import BinaryConv2d, sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_sign_of_zero_is_plus_one(dtype):
    inputs = torch.tensor([-2.0, -1e-20, -0.0, 0.0, 1e-20, 3.0], dtype=dtype)
    found = sign(inputs)
    assert found.tolist() == [-1, -1, 1, 1, 1, 1]
    assert found.dtype == dtype


def test_the_gradient_goes_straight_through_up_to_one():
    inputs = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.9, 1.0, 1.01], requires_grad=True)
    given = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    (sign(inputs) * given).sum().backward()
    assert inputs.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]


def test_the_kernels_are_alpha_times_signs():
    layer = BinaryConv2d(3, 4, 3)
    weight = layer.weight.detach().clone()
    found = layer.binary_weight()
    for kernel in range(4):
        alpha = sum(abs(value) for value in weight[kernel].flatten().tolist()) / 27
        wanted = torch.where(weight[kernel] >= 0, alpha, -alpha)
        torch.testing.assert_close(found[kernel], wanted)


def test_alpha_times_signs_is_the_nearest_such_kernel():
    """XNOR-Net, Eq. 3 to 6: of all alpha and signs the least squared distance to W."""
    layer = BinaryConv2d(2, 1, 2)
    distance = (layer.weight - layer.binary_weight()).square().sum()
    signs = layer.binary_weight().sign()
    for scale in torch.linspace(0, 1, 101):
        assert (layer.weight - scale * signs).square().sum() >= distance - 1e-6
    other = layer.binary_weight().detach().clone()
    other[0, 0, 0, 0] *= -1
    assert (layer.weight - other).square().sum() >= distance


def test_is_a_convolution_with_these_kernels():
    layer = BinaryConv2d(3, 4, 3, stride=2, padding=1)
    inputs = torch.randn(2, 3, 8, 6)
    assert layer.bias is None
    assert layer(inputs).shape == (2, 4, 4, 3)
    assert torch.equal(layer(inputs), F.conv2d(inputs, layer.binary_weight(), stride=2, padding=1))


def test_the_real_weights_get_the_gradient_of_alpha_and_of_the_signs():
    """dC/dW_i = sign(W_i)/n * sum_j G_j sign(W_j) + alpha G_i 1(|W_i| <= 1), G the gradient of the binary kernel."""
    layer = BinaryConv2d(2, 1, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -0.2, 1.5, 0.1, -3.0, 0.0, 0.7, -1.0]).reshape(1, 2, 2, 2))
    given = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    (layer.binary_weight() * given).sum().backward()
    weight = layer.weight.detach()
    signs = torch.where(weight >= 0, 1.0, -1.0).double()
    alpha = weight.abs().mean()
    wanted = weight.sign() / 8 * (given * signs).sum() + alpha * given * (weight.abs() <= 1)
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-12, atol=1e-14)


def test_learns_signs():
    """The student's kernels come to the teacher's signs by the estimated gradient."""
    teacher, student = BinaryConv2d(2, 3, 3), BinaryConv2d(2, 3, 3)
    inputs = torch.randn(64, 2, 6, 6)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for _ in range(300):
        loss = F.mse_loss(student(inputs), teacher(inputs).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    agreement = (sign(student.weight) == sign(teacher.weight)).float().mean()
    assert agreement > 0.95
