"""Large affine layers: oneDNN's products are MKL's to rounding, forward and backward, and small ones stay where they were."""

import pytest
import torch

from ml.tradingbots.components import affine
from ml.tradingbots.components.affine import is_large, large_affine
from ml.tradingbots.components.encoders import FlatEncoder
from ml.tradingbots.components.networks import BatchedMLP, Body, Critic

needs_onednn = pytest.mark.skipif(not affine._AVAILABLE, reason="PyTorch was built without oneDNN")
# Sums of 256 products in float32, in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def layer(rows, width_in, width_out, *, transposed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width_in, generator=generator, requires_grad=True)
    shape = (width_out, width_in) if transposed else (width_in, width_out)
    weight = torch.randn(shape, generator=generator, requires_grad=True)
    bias = torch.randn(width_out, generator=generator, requires_grad=True)
    return x, weight, bias


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_large_layer_and_its_gradients_are_those_of_the_plain_form(transposed, relu):
    x, weight, bias = layer(256, 192, 128, transposed=transposed)
    stored = weight.T if transposed else weight
    assert is_large(x, stored)
    upstream = torch.randn(256, 128, generator=torch.Generator().manual_seed(1))
    plain = torch.addmm(bias, x, stored)
    plain = torch.relu(plain) if relu else plain
    expected = torch.autograd.grad(plain, (x, weight, bias), upstream)
    large = large_affine(x, stored, bias, relu=relu)
    torch.testing.assert_close(large, plain, **CLOSE)
    for one, other in zip(torch.autograd.grad(large, (x, weight, bias), upstream), expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    with torch.no_grad():
        assert torch.equal(large_affine(x, stored, bias, relu=relu), large)


@needs_onednn
def test_a_layer_gives_the_same_bits_every_time():
    x, weight, bias = layer(256, 256, 256)
    first = large_affine(x, weight, bias, relu=True)
    assert all(torch.equal(large_affine(x, weight, bias, relu=True), first) for _ in range(5))


@needs_onednn
def test_what_is_not_a_number_stays_so():
    x, weight, bias = layer(256, 256, 256)
    with torch.no_grad():
        x[3, 5] = float("nan")
    y = large_affine(x, weight, bias, relu=True)
    assert y[3].isnan().all()
    assert torch.isfinite(y[4]).all()


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "expected"),
    [(256, 256, torch.float32, True), (64, 64, torch.float32, False), (256, 256, torch.float64, False)],
)
@needs_onednn
def test_only_large_products_of_float32_are_taken(rows, width, dtype, expected):
    x, weight, _ = layer(rows, width, width)
    assert is_large(x.to(dtype), weight.to(dtype)) is expected


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_stacked_wide_networks_are_the_same_in_float32_and_in_float64(activation):
    torch.manual_seed(0)
    mlp = BatchedMLP(2, [6, 256, 256, 1], activation=activation)
    x = torch.randn(256, 6)
    mlp(x).square().sum().backward()
    gradients = [parameter.grad for parameter in mlp.parameters()]
    exact = BatchedMLP(2, [6, 256, 256, 1], activation=activation).double()
    exact.load_state_dict(mlp.state_dict())
    exact(x.double()).square().sum().backward()
    torch.testing.assert_close(mlp(x).double(), exact(x.double()), **CLOSE)
    for one, other in zip(gradients, exact.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other.grad, rtol=1e-4, atol=1e-3)
    each = [torch.randn(256, 6), torch.randn(256, 6)]
    torch.testing.assert_close(mlp(torch.stack(each))[1], mlp.evaluate(1, each[1]), **CLOSE)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_wide_body_is_the_same_in_float32_and_in_float64(activation):
    torch.manual_seed(0)
    body, x = Body(FlatEncoder(5), [256, 256], activation), torch.randn(256, 5)
    body(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in body.parameters()]
    body.zero_grad()
    body.double()
    body(x.double()).sum().backward()
    for one, other in zip(gradients, body.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [8, 256])
def test_a_frozen_critic_passes_the_same_gradient_to_the_action_and_takes_none(width):
    torch.manual_seed(0)
    critic = Critic(FlatEncoder(4), 2, [width, width], activation="relu", n_critics=2)
    observation, action = torch.randn(256, 4), torch.randn(256, 2, requires_grad=True)
    for values in (critic.first, critic):
        (free,) = torch.autograd.grad(values(observation, action).sum(), action)
        frozen = values(observation, action, frozen=True)
        frozen.sum().backward()
        assert torch.equal(action.grad, free)
        assert all(parameter.grad is None for parameter in critic.parameters())
        action.grad = None
