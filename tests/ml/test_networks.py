"""The networks' arithmetic: densities that integrate to one, twins that are two networks, targets that follow."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ml.tradingbots.components.networks import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    SquashedGaussianActor,
    TwinCritic,
    mlp,
    soft_update,
    squashed_gaussian_log_prob,
)


def log_prob_of(before_squash, mean, log_std):
    """Log-probability of tanh(u), with the noise that leads to u."""
    noise = (before_squash - mean) / log_std.exp()
    return squashed_gaussian_log_prob(noise, log_std, before_squash)


def exact_log_prob(u, mean, log_std):
    """The change of variables in Python's own float64, with 1 − tanh²u as 4·e^(−2|u|) / (1 + e^(−2|u|))²."""
    std = math.exp(log_std)
    log_normal = -0.5 * ((u - mean) / std) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = math.log(4.0) - 2.0 * abs(u) - 2.0 * math.log1p(math.exp(-2.0 * abs(u)))
    return log_normal - log_slope


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-1.2, 0.4)])
def test_the_density_of_squashed_actions_integrates_to_one(mean, log_std):
    # Over actions, not over u: a wrong slope term would pass an integral over u. The nodes are those of u, so that the
    # steep ends at ±1 are resolved; 1e-6 is what the trapezium rule leaves on this grid.
    u = torch.linspace(mean - 9.0 * math.exp(log_std), mean + 9.0 * math.exp(log_std), 200_001, dtype=torch.float64)
    action = torch.tanh(u)
    density = log_prob_of(u[:, None], torch.tensor(mean), torch.tensor(log_std, dtype=torch.float64)).exp()
    assert torch.trapezoid(density, action).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-1.2, 0.4)])
def test_the_density_matches_a_histogram_of_probabilities(mean, log_std):
    # P(a <= x) = Φ((atanh x − mean)/std): its numerical derivative is the density. Central differences of step 1e-5 leave
    # errors of the order 1e-9 relative to the density's curvature; 1e-6 is ample.
    step, std = 1e-5, math.exp(log_std)

    def cumulative(action):
        return 0.5 * (1.0 + math.erf((math.atanh(action) - mean) / std / math.sqrt(2.0)))

    for action in (-0.7, -0.2, 0.0, 0.3, 0.8):
        derivative = (cumulative(action + step) - cumulative(action - step)) / (2.0 * step)
        u = torch.tensor([[math.atanh(action)]], dtype=torch.float64)
        density = log_prob_of(u, torch.tensor(mean), torch.tensor(log_std, dtype=torch.float64)).exp().item()
        assert density == pytest.approx(derivative, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("u", [-12.0, -9.0, -3.0, -1e-3, 0.0, 0.5, 3.0, 9.0, 10.0, 12.0])
def test_the_log_probability_is_accurate_in_float32_far_into_saturation(u):
    # Noise and u are given as the policy makes them; the direct form log(1 − tanh²u) is −inf from |u| = 10 on.
    mean, log_std = 0.0, math.log(4.0)
    noise = torch.tensor([[u / 4.0]])
    found = squashed_gaussian_log_prob(noise, torch.tensor([[log_std]]), torch.tensor([[u]]))
    # Sums of terms up to 24 in size: a few units in the last place of 24 in float32 (2e-6).
    assert found.item() == pytest.approx(exact_log_prob(u, mean, log_std), abs=1e-5)


def test_the_log_probability_sums_over_action_dimensions():
    u = torch.tensor([[0.3, -1.1, 2.0]], dtype=torch.float64)
    zero = torch.zeros((1, 3), dtype=torch.float64)
    expected = sum(exact_log_prob(value, 0.0, 0.0) for value in u[0].tolist())
    # Twelve digits: float64 on both sides.
    assert squashed_gaussian_log_prob(u, zero, u).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_log_probability_is_finite_at_the_ends():
    u = torch.tensor([[-12.0], [12.0]], requires_grad=True)
    squashed_gaussian_log_prob(u / 4.0, torch.full((2, 1), math.log(4.0)), u).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_sampled_log_probabilities_are_those_of_the_sampled_actions():
    torch.manual_seed(0)
    actor = SquashedGaussianActor(3, 2, 8, 2).double()
    observation = torch.randn(16, 3, dtype=torch.float64)
    with torch.no_grad():
        action, log_prob = actor.sample(observation, torch.Generator().manual_seed(5))
        mean, log_std = actor(observation)
    u = torch.atanh(action)
    expected = [
        sum(exact_log_prob(u[row, k].item(), mean[row, k].item(), log_std[row, k].item()) for k in range(2))
        for row in range(16)
    ]
    # atanh loses digits where actions saturate; these do not, and eight digits are left.
    np.testing.assert_allclose(log_prob, expected, rtol=1e-8)


def test_sampling_draws_from_the_generator_it_is_given():
    torch.manual_seed(0)
    actor, observation = SquashedGaussianActor(3, 2, 8, 2), torch.randn(4, 3)
    first, _ = actor.sample(observation, torch.Generator().manual_seed(5))
    again, _ = actor.sample(observation, torch.Generator().manual_seed(5))
    other, _ = actor.sample(observation, torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_deterministic_action_is_the_squashed_mean():
    torch.manual_seed(0)
    actor, observation = SquashedGaussianActor(3, 2, 8, 1), torch.randn(4, 3)
    assert torch.equal(actor.deterministic(observation), torch.tanh(actor(observation)[0]))


@pytest.mark.parametrize(("bias", "expected"), [(1e6, LOG_STD_MAX), (-1e6, LOG_STD_MIN)])
def test_the_log_standard_deviation_stays_within_its_bounds(bias, expected):
    actor = SquashedGaussianActor(3, 2, 8, 1)
    with torch.no_grad():
        actor.head.bias[2:] = bias
        _, log_std = actor(torch.zeros(1, 3))
    assert torch.equal(log_std, torch.full((1, 2), expected))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_the_twin_critic_equals_two_separate_networks(n_layers):
    torch.manual_seed(0)
    twin = TwinCritic(5, 2, 8, n_layers)
    observation, action = torch.randn(7, 5), torch.randn(7, 2)
    both = twin(observation, action)
    assert both.shape == (2, 7)
    for number in range(2):
        single = mlp([7, *[8] * n_layers, 1])
        linear = [layer for layer in single if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for layer, weight, bias in zip(linear, twin.weights, twin.biases, strict=True):
                layer.weight.copy_(weight[number].T)
                layer.bias.copy_(bias[number, 0])
        # Batched and single products may sum in another order: a few units in the last place.
        torch.testing.assert_close(
            both[number], single(torch.cat([observation, action], 1)).squeeze(1), rtol=1e-5, atol=1e-6
        )


def test_the_twins_begin_different():
    torch.manual_seed(0)
    twin = TwinCritic(5, 2, 8, 2)
    assert not torch.equal(twin.weights[0][0], twin.weights[0][1])


def test_the_gradient_of_one_twin_does_not_touch_the_other():
    torch.manual_seed(0)
    twin = TwinCritic(5, 2, 8, 2)
    twin(torch.randn(7, 5), torch.randn(7, 2))[0].sum().backward()
    assert all(torch.count_nonzero(parameter.grad[1]) == 0 for parameter in twin.parameters())


def test_hidden_weights_begin_within_the_bound_of_a_linear_layer():
    torch.manual_seed(0)
    for weight in TwinCritic(14, 2, 64, 2).weights:
        bound = 1.0 / math.sqrt(weight.shape[1])
        assert 0.8 * bound < weight.abs().max().item() <= bound


def test_soft_update_mixes_in_a_share_tau():
    target, online = [torch.tensor([1.0, 2.0]), torch.tensor(4.0)], [torch.tensor([3.0, 0.0]), torch.tensor(8.0)]
    soft_update(target, online, 0.25)
    assert target[0].tolist() == [1.5, 1.5]
    assert target[1].item() == 5.0


def test_soft_update_with_tau_one_copies():
    target, online = [torch.randn(3, generator=torch.Generator().manual_seed(0))], [torch.tensor([0.1, 0.2, 0.3])]
    soft_update(target, online, 1.0)
    assert torch.equal(target[0], online[0])


def test_a_multilayer_perceptron_has_no_activation_after_its_last_layer():
    layers = list(mlp([3, 8, 8, 2]))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
